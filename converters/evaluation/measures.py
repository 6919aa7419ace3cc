"""The measures of the published benchmarks: shares of right answers, F1, sums over categories."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .task import Measure, Scored, Sums

PERCENT = 100.0


def share(part: Any, whole: Any) -> Any:
    """`part / whole`, NaN where there is nothing; of numbers or arrays."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.true_divide(part, whole)


def _scores(unit: Sequence[Scored]) -> list[float]:
    return [one.score for one in unit]


def _mean(unit: Sequence[Scored]) -> dict[str, float]:
    return {"score": sum(_scores(unit)), "questions": len(unit)}


ACCURACY = Measure("question", _mean, lambda sums: {"accuracy": PERCENT * share(sums["score"], sums["questions"])}, _scores)
"""The mean score of all questions, in percent."""

POINTS = Measure("question", _mean, lambda sums: {"points": sums["score"] * 1.0}, _scores)
"""The sum of the scores (OCRBench)."""


def _all_right(unit: Sequence[Scored]) -> list[float]:
    return [min(_scores(unit))]


CIRCULAR = Measure(
    "rotation group",
    lambda unit: {"score": min(_scores(unit)), "groups": 1, "rows": sum(_scores(unit)), "questions": len(unit)},
    lambda sums: {
        "circular": PERCENT * share(sums["score"], sums["groups"]),
        "rows": PERCENT * share(sums["rows"], sums["questions"]),
    },
    _all_right,
)
"""A question counts if it is right in every rotation of its options (MMBench), in percent; and the share of right rows."""


def by_group(group: Callable[[Scored], str], groups: Sequence[str], figures: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Measure:
    """Figures of the mean score of each group that has questions."""

    def counts(unit: Sequence[Scored]) -> dict[str, float]:
        tally: dict[str, float] = {}
        for one in unit:
            name = group(one)
            tally[f"{name}:score"] = tally.get(f"{name}:score", 0) + one.score
            tally[f"{name}:questions"] = tally.get(f"{name}:questions", 0) + 1
        return tally

    def means(sums: Sums) -> dict[str, Any]:
        named = [name for name in groups if f"{name}:questions" in sums] or sorted(name[:-6] for name in sums if name.endswith(":score"))
        return figures({name: share(sums[f"{name}:score"], sums[f"{name}:questions"]) for name in named})

    return Measure("question", counts, means, _scores)


def _kind(one: Scored) -> str:
    return one.question.kind or ""


MEAN_OF_KINDS = by_group(_kind, (), lambda means: {"accuracy": PERCENT * sum(means.values()) / len(means)})
"""The mean over kinds of each kind's mean, in percent (MMStar)."""


def _confusion(unit: Sequence[Scored]) -> dict[str, float]:
    """By split: yes said rightly, yes said wrongly, no said wrongly, no said rightly."""
    tally: dict[str, float] = {}
    for one in unit:
        truth, right = one.question.accepted[0] == "yes", one.score == 1
        name = f"{one.question.kind}:{'yes' if truth == right else 'no'}:{'right' if right else 'wrong'}"
        tally[name] = tally.get(name, 0) + 1
    return tally


def _pope(sums: Sums) -> dict[str, Any]:
    splits = sorted({name.partition(":")[0] for name in sums})
    rows = [{name.partition(":")[2]: value for name, value in sums.items() if name.partition(":")[0] == split} for split in splits]
    said = [[row.get(name, 0) for name in ("yes:right", "yes:wrong", "no:wrong", "no:right")] for row in rows]
    figures = [
        {
            "f1": PERCENT * share(2 * hit, 2 * hit + false + missed),
            "accuracy": PERCENT * share(hit + passed, hit + false + missed + passed),
            "precision": PERCENT * share(hit, hit + false),
            "recall": PERCENT * share(hit, hit + missed),
            "yes": PERCENT * share(hit + false, hit + false + missed + passed),
        }
        for hit, false, missed, passed in said
    ]
    return {name: sum(one[name] for one in figures) / len(figures) for name in figures[0]}


POPE = Measure("question", _confusion, _pope, _scores)
"""Means over the splits, in percent, of F1 for yes, accuracy, precision, recall and the share of answers that are yes."""

MME_PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
MME_COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def _pairs(unit: Sequence[Scored]) -> dict[str, float]:
    kind = unit[0].question.kind
    both = min(_scores(unit)) if len(unit) == 2 else 0.0
    return {f"{kind}:score": sum(_scores(unit)), f"{kind}:questions": len(unit), f"{kind}:both": both, f"{kind}:pairs": 1}


def _mme(sums: Sums) -> dict[str, Any]:
    def of(names: Sequence[str]) -> Any:
        seen = [name for name in names if f"{name}:pairs" in sums]
        rows = [share(sums[f"{name}:score"], sums[f"{name}:questions"]) for name in seen]
        pairs = [share(sums[f"{name}:both"], sums[f"{name}:pairs"]) for name in seen]
        return PERCENT * sum(rows + pairs)

    parts = {"perception": MME_PERCEPTION, "cognition": MME_COGNITION}
    return {part: of(names) for part, names in parts.items() if any(f"{name}:pairs" in sums for name in names)}


MME = Measure("picture pair", _pairs, _mme, _scores)
"""Sums over categories of 100 x the share of right answers + 100 x the share of pictures with both right: at most 2000 and 800."""
