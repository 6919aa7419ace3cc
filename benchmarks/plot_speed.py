"""Draw what `yopo bench --json` recorded: prefill speed-up over dense against the number of visual tokens, at equal visual FLOPs.

python benchmarks/plot_speed.py benchmarks/records/speed-cpu.jsonl -o benchmarks/speed-tokens
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib import figure

PLANS = {"yopo": "black", "interlaced": "tab:blue"}


def curves(lines: Iterable[str]) -> dict[str, dict[str, dict[int, float]]]:
    """By dtype and side, visual tokens -> times faster than dense, of records with several numbers of tokens; the last one counts."""
    found: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for record in map(json.loads, lines):
        if len({run["visual_tokens"] for run in record["runs"]}) == 1:
            continue
        for run in record["runs"]:
            for side in run["sides"]:
                if side["kind"] != "dense":
                    found[record["dtype"]][side["name"]][run["visual_tokens"]] = 1 / side["prefill"]["ratio"]
    return found


def draw(axes: Any, dtype: str, sides: dict[str, dict[int, float]]) -> None:
    for name, points in sides.items():
        style = {"color": PLANS[name], "linewidth": 2.5, "zorder": 9} if name in PLANS else {"linestyle": "--", "linewidth": 1}
        axes.plot(list(points), list(points.values()), marker="o", markersize=4, label=f"{name} ({points[max(points)]:.1f}x)", **style)
    tokens = sorted({token for points in sides.values() for token in points})
    axes.set(xscale="log", xlabel="visual tokens", title=dtype)
    axes.set_xticks(tokens, [f"{token:,}" for token in tokens])
    axes.xaxis.minorticks_off()
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="NAME of NAME.png and NAME.svg")
    options = parser.parse_args()
    found = curves(options.records.read_text(encoding="utf-8").splitlines())
    drawn = figure.Figure(figsize=(6 * len(found), 4.5), layout="constrained")
    for axes, (dtype, sides) in zip(drawn.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        draw(axes, dtype, sides)
        axes.set_ylabel("prefill, times faster than dense")
    for suffix in (".png", ".svg"):
        drawn.savefig(options.output.with_name(options.output.name + suffix), dpi=130)


if __name__ == "__main__":
    main()
