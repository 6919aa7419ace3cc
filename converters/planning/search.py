"""The search: measured plans for every budget, from the dense model down, training-free and forward only.

From each starting point a descent passes every budget, and stops between; there what is left is spent, what recipes and presets
reach at the same budget is measured too, and the best plan known is improved by swaps: the result is never worse than any of them on
the calibration samples. Descents look at a part of the samples, swaps and choices at all.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from math import ceil, inf, isfinite, log
from pathlib import Path
from typing import Any

from ..calibration.batch import add_hashes, hash_of
from ..calibration.statistics import Statistics
from ..errors import YopoError
from ..families import family_of
from ..runtime.plan import Grid, Plan, dense_plan, normalise
from .answers import MAX_ANSWER_TOKENS, Answered, answered
from .cost import dense_visual_flops
from .descent import Pace, Prices, Step, descend, measured
from .frontier import Frontier, Point, differing
from .journal import Journal
from .moves import visual_flops
from .presets import PRESETS, preset
from .ranks import Ranks, ranks
from .recipes import RECIPES, make_plan
from .remainder import is_spent, limit_of, spent
from .swaps import swap
from .trial import MEMORY_BYTES, Some, Trials

SWAPPED = " and swaps"
NEGLIGIBLE = 2e-3  # shift of the answers that needs no thought
ASKED_WEIGHT = 2  # of swaps at a budget that was asked for, against 1 at a stop on the way
HURRIED = 4.0  # forwards that a descent to the next stop takes at least
PATIENCE = 5.0  # seconds of measurements that a killed search may lose
PRESET_SLACK = 0.5  # by which a preset may be worse on the first questions; recipes are measured on all, to be sure


@dataclass(frozen=True)
class Effort:
    """How much to search: forward-equivalents in all, the share of them for descents (less where they measure on some samples only),
    and how descents go (see `Pace`).

    Descents measure on a share `high` of the samples above a budget of `low_budget`, on a share `low` below, on `fewest` at least.
    Between budgets the search stops where less than a share `stride` of the last stop is left. Knobs `without` are left alone. Plans
    are measured with K and V of visual tokens refitted, and improved by swaps, unless told otherwise.
    """

    forwards: float
    block: int = 1
    descents: float = 0.65
    slack: float = 0.05
    fading: float = 0.98
    grain: float = 0.01
    high: float = 0.25
    low: float = 0.5
    low_budget: float = 0.2
    fewest: int = 48
    stride: float = 0.6
    without: tuple[str, ...] = ()
    refit: bool = True
    swaps: bool = True


@dataclass(frozen=True)
class Report:
    """How far a search is: the share of the dense visual FLOPs reached, what it has used, and the forwards it may use."""

    stage: str
    share: float
    shift: float
    forwards: float
    allowed: float
    memory_bytes: int
    disk_bytes: int


Progress = Callable[[Report], None]


def usual_effort(layers: int) -> Effort:
    """400 forward-equivalents up to 16 layers; beyond, at most 800 and neighbouring layers that move together, eight blocks in all."""
    return Effort(400.0) if layers <= 16 else Effort(800.0, block=ceil(layers / 8))


def search(
    model: Any,
    batches: Iterable[Any],
    statistics: Statistics,
    budgets: Sequence[float],
    *,
    grids: tuple[Grid, ...] | None = None,
    seed: int = 0,
    effort: Effort | None = None,
    state: Path | None = None,
    max_answer_tokens: int = MAX_ANSWER_TOKENS,
    memory_bytes: int = MEMORY_BYTES,
    progress: Progress = lambda report: None,
) -> Frontier:
    """The frontier of a dense transformers model for these budgets (shares of dense visual FLOPs, within 0..1).

    `batches` are processor outputs of questions, left-padded, that end where the answer begins; `statistics` those of the same
    model; `grids` what budgets are counted on (default: the statistics'). `state` is a file in which prices are kept while the
    search runs: an interrupted search that is given it again goes on where it was. `seed` is recorded only: nothing is drawn.
    Raises YopoError for no samples, budgets out of range or too small, and the state of another search.
    """
    config = model.config.to_dict()
    sizes = family_of(config).sizes(config)
    dense = dense_plan(sizes, grids or statistics.grids)
    effort = effort or usual_effort(sizes.num_hidden_layers)
    effort = effort if effort.refit else replace(effort, without=(*effort.without, "rank"))  # its factors are fitted
    budgets = sorted(set(budgets), reverse=True)
    presets = {budget: _presets(statistics, dense, budget) for budget in budgets}
    hashes: list[str] = []
    trials = Trials(
        model, _answers(model, batches, max_answer_tokens, hashes), dense, fitting=effort.refit, memory_bytes=memory_bytes
    )  # fmt: skip
    data = add_hashes(hashes)
    facts = {"model": statistics.model, "statistics": statistics.data, "data": data, "seed": seed, "budgets": budgets}
    journal = Journal(state, {**facts, "grids": [str(grid) for grid in dense.grids], "effort": asdict(effort), "answer": max_answer_tokens})
    trials.measured = journal.prices
    order = ranks(statistics, sizes)
    hunt = _Hunt(trials, order, effort, journal, progress)
    try:
        found = hunt.through(budgets, presets)
        points = tuple(hunt.rising(found))
    finally:
        journal.write()
    return Frontier(points, tuple(hunt.path), order, trials.forwards, trials.samples, seed, statistics.model, data, effort.refit)


def auto_plan(model: Any, batches: Iterable[Any], statistics: Statistics, budget: float, **options: Any) -> Plan:
    """The measured plan for one budget; `options` as in `search`."""
    return search(model, batches, statistics, [budget], **options).at(budget).plan


def _answers(model: Any, batches: Iterable[Any], max_new_tokens: int, hashes: list[str]) -> Iterator[Answered]:
    """Batches with the dense model's answers, one at a time; their hashes are added to the list."""
    config = model.config.to_dict()
    visuals = family_of(config).visuals(config)
    for batch in batches:
        hashes.append(hash_of(batch, visuals))
        yield answered(model, batch, max_new_tokens)
    if not hashes:
        raise YopoError("There is no calibration sample.", "Pass at least one image with a question.")


def _presets(statistics: Statistics, dense: Plan, budget: float) -> dict[str, Plan]:
    """What recipes and presets make of a budget, where they can reach it; the first recipe reaches all that can be reached."""
    first, *others = RECIPES
    target = (statistics, dense.sizes, dense.grids, budget)
    found = {first: make_plan(first, *target)}
    for make, names in ((make_plan, others), (preset, PRESETS)):
        for name in names:
            with suppress(YopoError):
                found[name] = make(name, *target)
    return found


def stops(budgets: Sequence[float], stride: float) -> list[float]:
    """The budgets, falling, and stops between them and above, so that none is less than a share `stride` of the one before."""
    found = [1.0]
    for budget in sorted(budgets, reverse=True):
        between = ceil(log(budget / found[-1]) / log(stride) - 1e-9)
        found += [found[-1] * (budget / found[-1]) ** (part / between) for part in range(1, between)] + [budget]
    return found[1:]


def reading_plan(dense: Plan) -> Plan:
    """Freeze all, read all: visual tokens are never updated, text reads all of them in every head of every layer."""
    return normalise(replace(dense, layers=tuple(replace(layer, self_heads=(), neurons=()) for layer in dense.layers)))


@dataclass(frozen=True)
class _Way:
    """Where a descent has come to, where it began, and the prices it knows."""

    step: Step
    origin: str
    prices: Prices

    def at(self, plan: Plan) -> "_Way":
        """The same way at another plan, not yet measured."""
        plan = normalise(plan)
        return replace(self, step=Step(plan, inf, visual_flops(plan)))


class _Hunt:
    """A search under way: where it stands, all plans passed so far, the forwards of descents so far."""

    def __init__(self, trials: Trials, order: Ranks, effort: Effort, journal: Journal, progress: Progress) -> None:
        self.trials, self.order, self.effort, self.journal, self.progress = trials, order, effort, journal, progress
        self.dense = trials.plan
        self.descents = 0.0
        self._last = Step(self.dense, 0.0, visual_flops(self.dense)), "dense"
        trials.heard = self._measured
        self.way = _Way(measured(trials, self.dense), "dense", {})
        self.path = [Point(self.dense, self.way.step.shift, "dense")]

    def through(self, budgets: Sequence[float], presets: Mapping[float, Mapping[str, Plan]]) -> list[Point]:
        """The plans of the budgets, by way of the stops between."""
        found = []
        left = stops(budgets, self.effort.stride)
        while left:
            stop = left[0]
            self._reach(stop, presets.get(stop, {}), left[-1])
            weights = [ASKED_WEIGHT if other in presets else 1 for other in left]
            share, left = weights[0] / sum(weights), left[1:]
            point = self._swapped(stop, share, self._needed(left, presets))
            found += [point] if stop in presets else []
        return found

    def _needed(self, left: Sequence[float], presets: Mapping[float, Mapping[str, Plan]]) -> float:
        """Forwards that are not for swaps: for the descents to the stops left, for looking at presets there, for looking back.

        A look can cost two: the states before it may have to be made again.
        """
        looks = sum(1 + len(presets[stop]) / len(self.trials.batches) for stop in left if stop in presets)
        planned = self._for_descents(self._some(min(presets))) - self.descents if left else 0.0
        return max(planned, HURRIED * len(left)) + looks + 2 * len(presets) + 1

    def _for_descents(self, some: Some) -> float:
        """Forwards of all samples that descents may use in all."""
        return self.effort.forwards * self.effort.descents * self.trials.samples_of(some.batches) / self.trials.samples

    def _reach(self, budget: float, presets: Mapping[str, Plan], smallest: float) -> None:
        """Go down to a budget by the best way there is."""
        limit, began = limit_of(budget, self.dense), self.trials.forwards
        some = self._some(budget)
        allowance = self._for_descents(some) * _progress(budget, smallest) - self.descents
        starts = self._starts(limit)
        ways = [self._down(some, way, limit, allowance / len(starts)) for way in starts]
        ways = [replace(way, step=measured(self.trials, way.step.plan)) for way in ways]
        best = self._best(ways, limit)
        for name, plan in presets.items():
            shift = self.trials.race(plan, best.step.plan, inf if name in RECIPES else PRESET_SLACK)
            if isfinite(shift):
                best = self._best([best, _Way(Step(normalise(plan), shift, visual_flops(normalise(plan))), name, self.way.prices)], limit)
        self.descents += self.trials.forwards - began
        self._told(best.step, f"measured {budget:g}")
        self.way = best

    def _best(self, ways: Sequence["_Way"], limit: int) -> "_Way":
        """The one that changes the answers least of those within the limit, of those that use it up where there is one."""
        fitting = [way for way in ways if way.step.flops <= limit]
        return min([way for way in fitting if is_spent(way.step.plan, limit)] or fitting, key=lambda way: way.step.shift)

    def _some(self, budget: float) -> Some:
        """The samples that descents measure on."""
        effort = self.effort
        return self.trials.some(max(effort.fewest, self.trials.samples * (effort.high if budget > effort.low_budget else effort.low)))

    def rising(self, points: Sequence[Point]) -> list[Point]:
        """The same points, each at least as good as the smaller ones with the rest of its budget spent."""
        found = [points[-1]]
        for point in reversed(points[:-1]):
            smaller = found[0]
            assert point.asked is not None
            step = measured(
                self.trials, spent(smaller.plan, limit_of(point.asked, self.dense), self.order, differing(smaller.plan, self.dense))
            )
            better = step.shift < point.shift and step.flops >= visual_flops(point.plan) * 0.995
            found.insert(0, Point(step.plan, step.shift, f"{smaller.origin}, more", point.asked) if better else point)
            self._told(step, f"back to {point.asked:g}")
        return found

    def _starts(self, limit: int) -> list[_Way]:
        """The way so far; beside it, once, freezing all and reading all, where the way passes what that costs."""
        plan = reading_plan(self.dense)
        if not limit < visual_flops(plan) < self.way.step.flops:
            return [self.way]
        return [self.way, _Way(self.way.step, "reading", {}).at(plan)]

    def _down(self, some: Some, way: _Way, limit: int, allowance: float) -> _Way:
        """The way after its descent, with the rest of the budget spent where the last step took it from."""
        effort = self.effort
        pace = Pace(max(0.0, allowance), effort.block, effort.grain, slack=effort.slack, fading=effort.fading, without=effort.without)
        before = step = measured(some, way.step.plan)
        for following in descend(some, step, limit, self.order, pace, way.prices):
            before, step = step, following
            self.path.append(Point(step.plan, step.shift, way.origin))
            self._told(step, f"from {way.origin}")
        rest = spent(step.plan, limit, self.order, differing(step.plan, before.plan)) if step.flops <= limit else step.plan
        return way.at(rest)

    def _swapped(self, budget: float, share: float, needed: float) -> Point:
        """The plan of a budget, improved by this share of the forwards that are left, but for those needed elsewhere."""
        way = self.way
        allowance = (self.effort.forwards - self.trials.forwards - needed) * share
        if self.effort.swaps and way.step.shift >= NEGLIGIBLE and allowance > 0:
            limit, pace = limit_of(budget, self.dense), Pace(allowance, without=self.effort.without)
            step = swap(self.trials, way.step, limit, self.order, way.prices, pace, lambda step: self._told(step, "swaps"))
            if step is not way.step:
                self.way = replace(way, step=step, origin=way.origin.removesuffix(SWAPPED) + SWAPPED)
        point = Point(self.way.step.plan, self.way.step.shift, self.way.origin, budget)
        self.path.append(point)
        return point

    def _told(self, step: Step, stage: str) -> None:
        self._last = step, stage
        self.journal.write()
        self._report()

    def _measured(self) -> None:
        self.journal.write(PATIENCE)
        self._report()

    def _report(self) -> None:
        step, stage = self._last
        share = step.flops / dense_visual_flops(self.dense.sizes, self.dense.grids)
        held = self.trials.prefixes
        self.progress(Report(stage, share, step.shift, self.trials.forwards, self.effort.forwards, held.held_bytes, held.disk_bytes))


def _progress(budget: float, smallest: float) -> float:
    """How much of the descents' forwards may be used up when a budget is reached: the first look at all moves costs the most."""
    return 0.2 + 0.8 * log(1 / budget) / log(1 / smallest)
