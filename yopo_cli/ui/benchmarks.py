"""Benchmarks as tables: for each task a row a side with intervals, and the scores by kind; then what each side executed."""

from collections.abc import Iterator, Mapping
from typing import Any

from .costs import share_text

Side = Mapping[str, Any]
ABREAST = 5  # sides of a table
Table = tuple[tuple[str, ...], list[tuple[str, ...]]]


def benchmark_tables(evaluation: Mapping[str, Any]) -> Iterator[Table]:
    """Columns and rows of each table, at most 80 columns wide with the usual sides."""
    for name, task in evaluation["tasks"].items():
        sides = task["sides"]
        headline = next(iter(next(iter(sides.values()))["figures"]))
        columns = (name, headline, "95 %", "kept", "95 %", "lost/won", "p", "changed")
        yield columns, [_row(side, one) for side, one in sides.items()]
        yield from _others(name, sides)
        if task["kinds"]:
            yield from _by_kind(name, list(sides), task["kinds"])


def _by_kind(name: str, sides: list[str], kinds: Mapping[str, Mapping[str, Side]]) -> Iterator[Table]:
    """Scores by kind, a few sides at a time, the first of all in every table."""
    first, *others = sides
    for start in range(0, max(1, len(others)), ABREAST - 1):
        some = [first, *others[start : start + ABREAST - 1]]
        rows = [(kind, str(_questions(of)), *(_score(of[side]) for side in some)) for kind, of in kinds.items()]
        yield (f"{name} by kind", "questions", *some), rows


def _others(name: str, sides: Mapping[str, Side]) -> Iterator[Table]:
    """The figures beside the headline, where a benchmark has some."""
    _, *others = next(iter(sides.values()))["figures"]
    if others:
        rows = [(side, *(_points(one["figures"][figure]["value"]) for figure in others)) for side, one in sides.items()]
        yield (name, *others), rows


def _questions(sides: Mapping[str, Side]) -> int:
    return int(next(iter(sides.values()))["questions"])


def _score(side: Side) -> str:
    return _points(next(iter(side["figures"].values()))["value"])


def _points(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _row(name: str, side: Side) -> tuple[str, ...]:
    kept = side.get("retention") or {}
    return (
        name,
        _score(side),
        _range(next(iter(side["figures"].values())), 1),
        _percent(kept.get("value")),
        _range(kept, 100),
        f"{side['lost']}/{side['won']}" if side.get("lost") is not None else "-",
        f"{side['p_value']:.2g}" if side.get("p_value") is not None else "-",
        _percent(side.get("changed")),
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _range(value: Side, scale: int) -> str:
    return "-" if value.get("low") is None else f"{scale * value['low']:.1f}-{scale * value['high']:.1f}"


def executed_lines(evaluation: Mapping[str, Any]) -> Iterator[str]:
    """What was asked and how, what each side executed, and whether the dense model does what was published of it."""
    machine = f"{evaluation['dtype']} on {evaluation['device']}"
    yield f"protocol {evaluation['protocol']}; greedy, {evaluation['batch_size']} questions at a time, {machine}"
    yield from (f"{side}: {_executed(facts)}" for side, facts in evaluation["executed"].items())
    for name, task in evaluation["tasks"].items():
        origin = task["origin"]
        place = origin.get("place") or f"{origin['repository']}@{origin['revision'][:12]}"
        yield f"{name}: {origin['asked']} of {origin['questions']} questions about {task['pictures']} pictures; {place}"
        if published := task["sides"].get("dense", {}).get("published"):
            yield f"{name}: {_score(task['sides']['dense'])} dense here, {published:g} published for {evaluation['base']} (protocol llava)"


def _executed(facts: Mapping[str, Any]) -> str:
    if "left_out" in facts:
        return f"left out. {facts['left_out']}"
    layers = facts.get("tokens_by_layer")
    parts = [
        f"{share_text(facts.get('visual_share'))} of the dense visual FLOPs",
        f"visual tokens by layer {_runs(layers)}" if layers else "",
        str(facts.get("setting", "")),
    ]
    return "; ".join(filter(None, parts))


def _runs(layers: list[int]) -> str:
    """`576 x 2, 61 x 30`."""
    runs: list[list[int]] = []
    for count in layers:
        if runs and runs[-1][0] == count:
            runs[-1][1] += 1
        else:
            runs.append([count, 1])
    return ", ".join(f"{count} x {times}" for count, times in runs)
