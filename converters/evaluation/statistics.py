"""How sure a figure is: intervals by drawing pictures anew, and whether two models' answers differ by more than chance.

Questions about one picture are alike, so what is drawn, with replacement, are pictures with all their questions (a cluster
bootstrap: Efron and Tibshirani, An Introduction to the Bootstrap, 1993). Both models are drawn together, so what they have in
common does not widen the interval of their difference.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .measures import share
from .task import Measure, Scored

RESAMPLES = 2000
CHUNK = 2**24  # draws held at a time
OUTSIDE = (2.5, 97.5)  # percentiles of a 95 % interval


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval; `low` and `high` are None where there is one picture."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Comparison:
    """What another model keeps of the dense one's headline: `retention` and `difference` (other - dense) with intervals.

    `p_value` says how likely such a difference is by chance, by `test`: McNemar's (exact, two-sided) on the units where one model
    is right and the other wrong, `lost` and `won` of them; where scores are not 0 or 1, the paired bootstrap.
    """

    retention: Interval | None
    difference: Interval
    p_value: float | None
    test: str
    lost: int | None
    won: int | None


@dataclass(frozen=True)
class PictureCounts:
    """One model's counts by picture: `names` of the counts, `[pictures, names]`, and what its units came to."""

    names: tuple[str, ...]
    counts: Any
    outcomes: tuple[float, ...]
    measure: Measure

    @classmethod
    def of(cls, scored: Sequence[Scored], measure: Measure) -> "PictureCounts":
        """The counts of a model's answers. Units and pictures are in the order of their first question."""
        units: dict[str, list[Scored]] = {}
        for one in scored:
            units.setdefault(one.question.unit, []).append(one)
        counted = [(unit[0].question.picture, measure.counts(unit)) for unit in units.values()]
        names = sorted({name for _, counts in counted for name in counts})
        pictures = {picture: place for place, picture in enumerate(dict.fromkeys(picture for picture, _ in counted))}
        table = np.zeros((len(pictures), len(names)))
        for picture, counts in counted:
            for name, count in counts.items():
                table[pictures[picture], names.index(name)] += count
        return cls(tuple(names), table, tuple(outcome for unit in units.values() for outcome in measure.outcomes(unit)), measure)

    def figures(self) -> dict[str, float]:
        """The published figures, by name, the headline first."""
        return {name: float(value) for name, value in self._figures(self.counts.sum(0)).items()}

    def resampled(self, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Any]:
        """The figures of each resample; two samples of the same pictures and seed are drawn alike."""
        pictures = len(self.counts)
        draw, size = np.random.default_rng(seed), max(1, CHUNK // pictures)
        chances = np.full(pictures, 1 / pictures)
        parts = [draw.multinomial(pictures, chances, min(size, resamples - start)) @ self.counts for start in range(0, resamples, size)]
        return self._figures(np.concatenate(parts).T)

    def _figures(self, sums: Any) -> dict[str, Any]:
        return self.measure.figures(dict(zip(self.names, sums, strict=True)))


def intervals(sample: PictureCounts) -> dict[str, Interval]:
    """Every figure with its interval."""
    resampled = sample.resampled()
    return {name: _interval(value, resampled[name], len(sample.counts)) for name, value in sample.figures().items()}


def compare(dense: PictureCounts, other: PictureCounts) -> Comparison:
    """What the other model keeps of the dense one's headline, on the same questions."""
    name = next(iter(dense.figures()))
    before, after = dense.figures()[name], other.figures()[name]
    drawn_before, drawn_after = dense.resampled()[name], other.resampled()[name]
    pictures = len(dense.counts)
    difference = _interval(after - before, drawn_after - drawn_before, pictures)
    retention = _interval(after / before, share(drawn_after, drawn_before), pictures) if before else None
    if {*dense.outcomes, *other.outcomes} <= {0.0, 1.0}:
        pairs = list(zip(dense.outcomes, other.outcomes, strict=True))
        lost, won = sum(one > two for one, two in pairs), sum(one < two for one, two in pairs)
        return Comparison(retention, difference, mcnemar(lost, won), "McNemar", lost, won)
    p_value = _bootstrap_p(drawn_after - drawn_before) if pictures > 1 else None
    return Comparison(retention, difference, p_value, "paired bootstrap", None, None)


def mcnemar(lost: int, won: int) -> float:
    """McNemar's exact test, two-sided: how likely `lost` against `won` (or farther apart) is if either is as likely as the other."""
    count, tail, total = lost + won, 0, 1
    for chosen in range(min(lost, won) + 1):
        tail += total
        total = total * (count - chosen) // (chosen + 1)
    p_value: float = 2 * tail / 2**count
    return min(1.0, p_value)


def _bootstrap_p(differences: Any) -> float:
    """Twice the share of resamples on the rarer side of zero, at least one of them."""
    below, above = int((differences <= 0).sum()), int((differences >= 0).sum())
    return min(1.0, 2 * (min(below, above) + 1) / (len(differences) + 1))


def _interval(value: float, drawn: Any, pictures: int) -> Interval:
    drawn = drawn[np.isfinite(drawn)]
    if pictures < 2 or not len(drawn):
        return Interval(float(value), None, None)
    low, high = np.percentile(drawn, OUTSIDE)
    return Interval(float(value), float(low), float(high))
