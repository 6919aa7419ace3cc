"""The search: measured plans for every budget, from the dense model down, training-free and forward only.

From each starting point a descent passes every budget; there what is left is spent, what recipes and presets reach at the same budget
is measured too, and the best plan known floats, down and up again: the result is never worse than any of them on the calibration
samples. Ways down and up look at a part of the samples, and measure on all what they take.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from math import ceil, inf, isfinite
from pathlib import Path
from typing import Any

from ...calibration.batch import add_hashes, hash_of
from ...calibration.statistics import Statistics
from ...errors import YopoError
from ...families import family_of
from ...runtime.plan import Grid, Plan, dense_plan, normalise
from ..cost import dense_visual_flops
from ..fill_budget import is_spent, limit_of, spent
from ..frontier import Frontier, Point, differing
from ..importance import Ranks, ranks
from ..measure.answers import MAX_ANSWER_TOKENS, Answered, answered
from ..measure.trial import MEMORY_BYTES, Trials
from ..presets import PRESETS, preset
from ..recipes import RECIPES, make_plan
from .descent import Pace, Prices, Step, descend, measured
from .journal import Journal
from .moves import visual_flops
from .refine import float_at, hope

FLOATED = ", floated"
STRIDES = ("stride",)
"""Left alone where K and V may come through fewer dimensions: most descents did as well without (`benchmarks/planner.md`)."""
NEGLIGIBLE = 0.03  # shift of the answers that needs no thought
ONE_DESCENT = 0.4  # of the forwards that are left, what one descent may use before it hurries
PATIENCE = 5.0  # seconds of measurements that a killed search may lose
LOOK_BACK = 2  # forwards that measuring a plan of another budget can cost, since states are made again
PRESET_SLACK = 0.5  # by which a preset may be worse on the first questions; recipes are measured on all, to be sure


@dataclass(frozen=True)
class Effort:
    """How much to search: forward-equivalents in all, and how descents go (see `Pace`).

    Moves are looked at on the first `few` samples. Knobs `without` are left alone. Plans are measured with K and V of visual tokens
    refitted, and float, unless told otherwise.
    """

    forwards: float
    block: int = 1
    slack: float = 0.05
    fading: float = 0.98
    grain: float = 0.01
    few: int = 48
    without: tuple[str, ...] = ()
    refit: bool = True
    floats: bool = True


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
    questions_from: str = "",
    effort: Effort | None = None,
    state: Path | None = None,
    max_answer_tokens: int = MAX_ANSWER_TOKENS,
    memory_bytes: int = MEMORY_BYTES,
    progress: Progress = lambda report: None,
) -> Frontier:
    """The frontier of a dense transformers model for these budgets (shares of dense visual FLOPs, within 0..1).

    `batches` are processor outputs of questions, left-padded, that end where the answer begins; `statistics` those of the same
    model; `grids` what budgets are counted on (default: the statistics'). `state` is a file in which prices are kept while the
    search runs: an interrupted search that is given it again goes on where it was. `seed` and
    `questions_from`, which samples were drawn and from where, are recorded only.
    Raises YopoError for no samples, budgets out of range or too small, and the state of another search.
    """
    config = model.config.to_dict()
    sizes = family_of(config).sizes(config)
    dense = dense_plan(sizes, grids or statistics.grids)
    effort = effort or usual_effort(sizes.num_hidden_layers)
    left_alone = STRIDES if effort.refit and "rank" not in effort.without else ("rank",)  # factors are fitted
    effort = replace(effort, without=tuple(dict.fromkeys((*effort.without, *left_alone))))
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
    return Frontier(
        points, tuple(hunt.path), order, trials.forwards, trials.samples, seed, statistics.model, data, questions_from, effort.refit
    )  # fmt: skip


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
        self.few = trials.some(effort.few)
        self.descents = 0.0
        self._last = Step(self.dense, 0.0, visual_flops(self.dense)), "dense"
        trials.heard = self._measured
        self.way = _Way(measured(trials, self.dense), "dense", {})
        self.path = [Point(self.dense, self.way.step.shift, "dense")]

    def through(self, budgets: Sequence[float], presets: Mapping[float, Mapping[str, Plan]]) -> list[Point]:
        """The plans of the budgets, which fall."""
        found = []
        for done, budget in enumerate(budgets, 1):
            self._reach(budget, presets[budget])
            # Descents to come are taken to cost half of what those so far did, for there is less and less to take.
            needed = self.descents / done * (len(budgets) - done) / 2 + LOOK_BACK * len(budgets) + 1
            found.append(self._floated(budget, 1 / (len(budgets) - done + 1), needed))
        return found

    def _reach(self, budget: float, presets: Mapping[str, Plan]) -> None:
        """Go down to a budget by the best way there is."""
        limit, began = limit_of(budget, self.dense), self.trials.forwards
        allowance = (self.effort.forwards - began) * ONE_DESCENT
        starts = self._starts(limit)
        ways = [self._down(way, limit, allowance / len(starts)) for way in starts]
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

    def rising(self, points: Sequence[Point]) -> list[Point]:
        """The same points, each at least as good as the smaller ones with the rest of its budget spent, while there are forwards left."""
        found = [points[-1]]
        for point in reversed(points[:-1]):
            smaller = found[0]
            assert point.asked is not None
            if self.trials.forwards + LOOK_BACK > self.effort.forwards:
                found.insert(0, point)
                continue
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

    def _pace(self) -> Pace:
        effort = self.effort
        return Pace(block=effort.block, grain=effort.grain, slack=effort.slack, fading=effort.fading, without=effort.without)

    def _down(self, way: _Way, limit: int, allowance: float) -> _Way:
        """The way after its descent, with the rest of the budget spent where the last step took it from."""
        pace = replace(self._pace(), forwards=max(0.0, allowance))
        hope(way.prices)
        before = step = measured(self.trials, way.step.plan)
        for following in descend(self.few, step, limit, self.order, pace, way.prices):
            before, step = step, following
            self.path.append(Point(step.plan, step.shift, way.origin))
            self._told(step, f"from {way.origin}")
        rest = spent(step.plan, limit, self.order, differing(step.plan, before.plan)) if step.flops <= limit else step.plan
        return way.at(rest)

    def _floated(self, budget: float, share: float, needed: float) -> Point:
        """The plan of a budget, improved by this share of the forwards that are left, but for those needed elsewhere."""
        way = self.way
        left = self.effort.forwards - self.trials.forwards - needed
        if self.effort.floats and way.step.shift >= NEGLIGIBLE and left > 0:
            where = limit_of(budget, self.dense), self.order, self._pace()
            step = float_at(self.few, way.step, *where, left * share, left, way.prices, lambda step: self._told(step, "floating"))
            if step is not way.step:
                self.way = replace(way, step=step, origin=way.origin.removesuffix(FLOATED) + FLOATED)
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
