"""Draw what `yopo bench --json` recorded: prefill speed-up over dense against the number of visual tokens, as an SVG.

python benchmarks/plot_speed.py benchmarks/records/speed-cpu-tokens.jsonl > benchmarks/speed-tokens.svg
python benchmarks/plot_speed.py --selftest
"""

import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

WIDTH, HEIGHT = 760, 460
LEFT, RIGHT, TOP, BOTTOM = 64, 200, 44, 64
LINE = 15  # between two labels
COLOURS = ("#1b6ca8", "#c0392b", "#27875b", "#8e44ad", "#b9770e", "#566573", "#148f77", "#7b241c", "#2e4053")
Points = dict[tuple[str, str], list[tuple[int, float]]]


def points(lines: Iterable[str]) -> Points:
    """Per kind and name of side, (visual tokens, times faster than dense) of batch 1, ascending."""
    found: Points = defaultdict(list)
    for line in lines:
        for run in json.loads(line)["runs"]:
            for side in run["sides"]:
                if side["kind"] != "dense" and run["batch"] == 1:
                    name = f"{side['name']} {side['budget']:g}"
                    found[side["kind"], name].append((run["visual_tokens"], 1 / side["prefill"]["ratio"]))
    return {name: sorted(values) for name, values in sorted(found.items())}


def svg(found: Points) -> Iterator[str]:
    """Lines of a plot with a logarithmic token axis; every curve is labelled at its end, plans drawn through, token pruners dashed."""
    tokens = sorted({x for values in found.values() for x, _ in values})
    top = math.ceil(max(y for values in found.values() for _, y in values))
    low, high = math.log(tokens[0]), math.log(tokens[-1])
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + (math.log(x) - low) / (high - low or 1) * (right - LEFT), bottom - y / top * (bottom - TOP)

    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">'
    yield f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    yield f'<text x="{LEFT}" y="{TOP - 20}" font-size="14">Prefill, times faster than the dense model, at equal visual FLOPs</text>'
    for y in range(0, top + 1, max(1, round(top / 8))):
        level = place(tokens[0], y)[1]
        yield f'<line x1="{LEFT}" y1="{level:.1f}" x2="{right}" y2="{level:.1f}" stroke="#ddd"/>'
        yield f'<text x="{LEFT - 8}" y="{level + 4:.1f}" text-anchor="end">{y}x</text>'
    for x in tokens:
        yield f'<text x="{place(x, 0)[0]:.1f}" y="{bottom + 20}" text-anchor="middle">{x:,}</text>'
    yield f'<text x="{(LEFT + right) / 2}" y="{bottom + 44}" text-anchor="middle">visual tokens (logarithmic)</text>'
    heights = _apart({name: place(*values[-1])[1] for name, values in found.items()})
    for number, ((kind, name), values) in enumerate(found.items()):
        end = f"{name}, {values[-1][1]:.1f}x"
        yield from _curve(COLOURS[number % len(COLOURS)], kind, end, [place(x, y) for x, y in values], heights[kind, name])
    yield "</svg>"


def _apart(wanted: dict[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """Heights of labels near the wanted ones that do not overlap, moved down where they would, and up where that leaves the plot."""
    heights, last = {}, -math.inf
    for name, height in sorted(wanted.items(), key=lambda pair: pair[1]):
        heights[name] = last = max(height, last + LINE)
    over = max(0.0, last - (HEIGHT - BOTTOM))
    return {name: height - over for name, height in heights.items()}


def _curve(colour: str, kind: str, label: str, places: list[tuple[float, float]], height: float) -> Iterator[str]:
    style = "" if kind == "plan" else ' stroke-dasharray="5 3"'
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    yield f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="{2.5 if kind == "plan" else 1.5}"{style}/>'
    yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places)
    x, y = places[-1]
    yield f'<line x1="{x + 5:.1f}" y1="{y:.1f}" x2="{x + 20:.1f}" y2="{height:.1f}" stroke="{colour}" stroke-width="0.7"/>'
    yield f'<text x="{x + 24:.1f}" y="{height + 4:.1f}" fill="{colour}">{label}</text>'


def _selftest() -> None:
    side: Any = {"name": "interlaced", "kind": "plan", "budget": 0.12, "prefill": {"ratio": 0.25}}
    line = json.dumps({"runs": [{"visual_tokens": tokens, "batch": 1, "sides": [side]} for tokens in (2304, 576)]})
    assert points([line]) == {("plan", "interlaced 0.12"): [(576, 4.0), (2304, 4.0)]}
    assert sum("<circle" in text for text in svg(points([line]))) == 2
    heights = _apart({("a", "a"): 50, ("a", "b"): 51, ("a", "c"): 200})
    assert list(heights.values()) == [50, 50 + LINE, 200]


if __name__ == "__main__":
    if sys.argv[1:] == ["--selftest"]:
        _selftest()
    else:
        print("\n".join(svg(points(line for name in sys.argv[1:] for line in Path(name).read_text().splitlines() if line.strip()))))
