"""Draw what `yopo bench --json` recorded: prefill speed-up over dense against the number of visual tokens, as an SVG.

python benchmarks/plot_speed.py benchmarks/records/tokens.jsonl > speed.svg
python benchmarks/plot_speed.py --selftest
"""

import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, MARGIN = 720, 420, 60
COLOURS = ("#1b6ca8", "#c0392b", "#27875b", "#8e44ad", "#d68910", "#566573", "#148f77", "#7b241c")
Points = dict[str, list[tuple[int, float]]]


def points(lines: Iterable[str]) -> Points:
    """Per side and budget, (visual tokens, times faster than dense) of batch 1, ascending."""
    found: Points = defaultdict(list)
    for line in lines:
        for run in json.loads(line)["runs"]:
            for side in run["sides"]:
                if side["kind"] != "dense" and run["batch"] == 1:
                    found[f"{side['name']} {side['budget']:g}"].append((run["visual_tokens"], 1 / side["prefill"]["ratio"]))
    return {name: sorted(values) for name, values in sorted(found.items())}


def svg(found: Points) -> Iterator[str]:
    """Lines of a plot with a logarithmic token axis."""
    tokens = sorted({x for values in found.values() for x, _ in values})
    top = max(y for values in found.values() for _, y in values) * 1.1
    low, high = math.log(tokens[0]), math.log(tokens[-1])

    def place(x: float, y: float) -> str:
        across = (math.log(x) - low) / (high - low or 1) * (WIDTH - 3.5 * MARGIN)
        return f"{MARGIN + across:.1f},{HEIGHT - MARGIN - y / top * (HEIGHT - 2 * MARGIN):.1f}"

    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">'
    yield f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    for x in tokens:
        left, bottom = place(x, 0).split(",")
        yield f'<text x="{left}" y="{float(bottom) + 18}" text-anchor="middle">{x}</text>'
    for y in range(math.ceil(top)):
        left, level = place(tokens[0], y).split(",")
        yield f'<text x="{float(left) - 8}" y="{level}" text-anchor="end">{y}x</text>'
        yield f'<line x1="{left}" y1="{level}" x2="{WIDTH - 2.5 * MARGIN}" y2="{level}" stroke="#ddd"/>'
    yield f'<text x="{MARGIN}" y="{MARGIN / 2}">prefill, times faster than dense, by visual tokens</text>'
    for number, (name, values) in enumerate(found.items()):
        yield from _curve(number, name, [place(x, y) for x, y in values])
    yield "</svg>"


def _curve(number: int, name: str, places: list[str]) -> Iterator[str]:
    colour = COLOURS[number % len(COLOURS)]
    yield f'<polyline points="{" ".join(places)}" fill="none" stroke="{colour}" stroke-width="2"/>'
    for place in places:
        x, y = place.split(",")
        yield f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>'
    yield f'<text x="{WIDTH - 2.4 * MARGIN:.0f}" y="{MARGIN + 18 * number}" fill="{colour}">{name}</text>'


def _selftest() -> None:
    side: Any = {"name": "interlaced", "kind": "plan", "budget": 0.12, "prefill": {"ratio": 0.25}}
    line = json.dumps({"runs": [{"visual_tokens": tokens, "batch": 1, "sides": [side]} for tokens in (2304, 576)]})
    assert points([line]) == {"interlaced 0.12": [(576, 4.0), (2304, 4.0)]}
    assert sum("<circle" in text for text in svg(points([line]))) == 2


if __name__ == "__main__":
    if sys.argv[1:] == ["--selftest"]:
        _selftest()
    else:
        print("\n".join(svg(points(line for name in sys.argv[1:] for line in Path(name).read_text().splitlines() if line.strip()))))
