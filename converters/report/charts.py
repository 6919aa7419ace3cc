"""Charts as SVG that takes the page's text colour, by matplotlib."""

import re
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from typing import Any

from ..errors import YopoError
from ..planning.cost import layer_cost
from ..runtime.plan import Plan, normalise

INK = "#010203"
"""Stands for the page's text colour."""
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#ee7733", "#009988")  # Paul Tol's bright
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
}
WIDTH = 6.0
Side = Mapping[str, Any]


def _figure(height: float, width: float = WIDTH) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise YopoError("Charts are drawn by matplotlib, which is not installed.", "pip install 'yopo[plot]'") from None
    return Figure(figsize=(width, height), layout="constrained")


def _drawn(name: str, draw: Any, height: float, width: float = WIDTH) -> str:
    """The chart that `draw(figure)` makes, as an SVG element."""
    figure = _figure(height, width)
    from matplotlib import rc_context

    with rc_context({**STYLE, "svg.hashsalt": name}):
        draw(figure)
        stream = StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    return re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1)


def budget_chart(task: str, points: Mapping[str, Sequence[tuple[float, Side]]]) -> str:
    """Headline figures against the share of visual FLOPs, a colour a side, the dense model as a line."""

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        colours = _coloured(points)
        for side, of_side in points.items():
            of_side = sorted(of_side, key=lambda point: point[0])
            if side == "dense":
                axes.axhline(of_side[0][1]["value"], color=INK, linestyle="--", linewidth=1, label="dense")
                continue
            shares, values = [share for share, _ in of_side], [one["value"] for _, one in of_side]
            axes.errorbar(shares, values, yerr=_errors([one for _, one in of_side]), fmt="o-", color=colours[side], capsize=3, label=side)
        axes.set(xlabel="visual FLOPs, share of dense", ylabel=task)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.22), ncols=4)

    return _drawn(f"budget {task}", draw, 4)


def _errors(figures: Sequence[Side]) -> list[list[float]]:
    """How far an interval reaches below and above."""
    return [[0.0 if one["low"] is None else abs(one["value"] - one[end]) for one in figures] for end in ("low", "high")]


def kinds_chart(task: str, kinds: Mapping[str, Mapping[str, Side]]) -> str:
    """Headline figures of each kind of question, with intervals, sides above each other."""
    sides = list(dict.fromkeys(side for of in kinds.values() for side in of))
    step = 0.8 / len(sides)

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        colours = _coloured(sides)
        for number, side in enumerate(sides):
            of_side = [(place, next(iter(of[side]["figures"].values()))) for place, of in enumerate(kinds.values()) if side in of]
            of_side = [(place, one) for place, one in of_side if one["value"] is not None]
            places = [place + step * (number - (len(sides) - 1) / 2) for place, _ in of_side]
            values = [one["value"] for _, one in of_side]
            axes.errorbar(values, places, xerr=_errors([one for _, one in of_side]), fmt="o", markersize=4, color=colours[side], label=side)
        axes.set_yticks(range(len(kinds)), list(kinds))
        axes.invert_yaxis()
        axes.set_xlabel(f"{task} by kind")
        axes.grid(axis="x", alpha=0.25)
        axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)

    return _drawn(f"kinds {task}", draw, 1.2 + 0.14 * len(kinds) * len(sides) + 0.15 * len(kinds))


def plan_chart(name: str, plan: Plan) -> str:
    """Layers x heads: what text reads, what visual tokens compute, through which rank and stride."""
    plan = normalise(plan)

    def draw(figure: Any) -> None:
        from matplotlib.colors import ListedColormap
        from matplotlib.patches import Patch

        axes = figure.add_subplot()
        heads = range(plan.sizes.num_attention_heads)
        cells = [[(head in layer.read_heads) + 2 * (head in layer.self_heads) for head in heads] for layer in plan.layers]
        shades = ("#88888822", COLOURS[0], COLOURS[3], COLOURS[2])
        axes.imshow(cells, cmap=ListedColormap(shades), vmin=0, vmax=3, aspect="auto", interpolation="nearest")
        axes.set(xlabel="query head", ylabel="layer")
        axes.set_xticks(_ticks(len(heads)))
        axes.set_yticks(_ticks(len(plan.layers)))
        notes = [_notes(layer) for layer in plan.layers]
        for index, note in enumerate(notes):
            axes.text(len(heads) - 0.3, index, note, va="center", fontsize=7)
        words = ("nothing", "read by text", "computed for visual tokens", "both")
        patches = [Patch(color=shade, label=word) for shade, word in zip(shades, words, strict=True)]
        axes.legend(handles=patches, frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)

    return _drawn(f"plan {name}", draw, _height(len(plan.layers)))


def _notes(layer: Any) -> str:
    """Rank and stride of a layer, where it has some."""
    parts = [
        f"{len(layer.neurons)} neurons" if layer.neurons else "",
        f"rank {layer.kv_rank}" if layer.kv_rank else "",
        f"1/{layer.read_stride}" if layer.read_stride > 1 else "",
    ]
    return ", ".join(filter(None, parts))


def flops_chart(name: str, plan: Plan) -> str:
    """Visual FLOPs by layer and part."""
    plan = normalise(plan)
    costs = [layer_cost(layer, plan) for layer in plan.layers]

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        below = [0.0] * len(costs)
        for part, colour in zip(("projections", "scores", "ffn"), COLOURS, strict=False):
            values = [getattr(one, part) / 1e9 for one in costs]
            axes.bar(range(len(costs)), values, bottom=below, color=colour, label=part)
            below = [one + more for one, more in zip(below, values, strict=True)]
        axes.set(xlabel="layer", ylabel="visual GFLOPs")
        axes.set_xticks(_ticks(len(costs)))
        axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)

    return _drawn(f"flops {name}", draw, 3)


def read_chart(name: str, read: Sequence[Sequence[float]], plan: Plan | None) -> str:
    """Attention of text to visual tokens by layer and head; what the plan lets text read is framed."""

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        image = axes.imshow(read, cmap="viridis", aspect="auto", interpolation="nearest", vmin=0)
        figure.colorbar(image, label="share of attention")
        axes.set(xlabel="query head", ylabel="layer")
        axes.set_xticks(_ticks(len(read[0])))
        axes.set_yticks(_ticks(len(read)))
        for index, layer in enumerate(normalise(plan).layers if plan else ()):
            for head in layer.read_heads:
                axes.add_patch(_frame(head, index))

    return _drawn(f"read {name}", draw, _height(len(read)))


def distance_chart(name: str, by_distance: Sequence[Sequence[float]], plan: Plan | None) -> str:
    """Attention of visual tokens to each other by distance on the grid; layers whose visual tokens see each other are framed."""

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        image = axes.imshow(by_distance, cmap="viridis", aspect="auto", interpolation="nearest", vmin=0)
        figure.colorbar(image, label="share of attention")
        axes.set(xlabel="rows or columns away, whichever is more", ylabel="layer")
        axes.set_yticks(_ticks(len(by_distance)))
        for index, layer in enumerate(normalise(plan).layers if plan else ()):
            reach = len(by_distance[0]) if layer.window is None else layer.window // 2 + 1
            for distance in range(min(reach, len(by_distance[0]))) if layer.self_heads else ():
                axes.add_patch(_frame(distance, index))

    return _drawn(f"distance {name}", draw, _height(len(by_distance)))


def _frame(column: int, row: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.42, row - 0.42), 0.84, 0.84, fill=False, edgecolor="#ee6677", linewidth=1.2)


def _height(layers: int) -> float:
    return 1.6 + 0.16 * max(8, layers)


def _ticks(count: int) -> range:
    return range(0, count, max(1, count // 8))


def _coloured(sides: Iterable[str]) -> dict[str, str]:
    """A colour for each side, the same in every chart; the dense model has the text's."""
    others = [side for side in sides if side != "dense"]
    return {"dense": INK} | {side: COLOURS[place % len(COLOURS)] for place, side in enumerate(others)}
