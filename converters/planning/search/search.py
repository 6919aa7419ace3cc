"""The search for plans: for each budget the plan that changes the model's answers least, by measuring really pruned models.

It starts at the dense model and removes, step by step, what changes the answers least for the FLOPs that it saves (`descent`). Whenever
it arrives at a budget, what is left of that is filled up, the plans that recipes make for this budget are measured as well, and the best
of all is refined (`refine`). The search needs forward passes only, no gradients.
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
from .descent import DescentOptions, Prices, Step, descend, measured
from .journal import Journal
from .moves import visual_flops
from .refine import discount_prices, refine

REFINED = ", refined"
STRIDES = ("stride",)
"""Knobs left alone where K and V may come through fewer dimensions: most searches did as well without (`benchmarks/planner.md`)."""
NEGLIGIBLE = 0.03  # a drift that leaves nothing to refine
ONE_DESCENT = 0.4  # of the forward passes that are left: what one descent may use before it hurries
PATIENCE = 5.0  # seconds of measurements that an interrupted search may lose
LOOK_BACK = 2  # forward passes that measuring a plan of another budget can take, since all layers are run again
RECIPE_SLACK = 0.5  # share by which a recipe of others may be worse on the first questions; our own is measured on all, to be sure


@dataclass(frozen=True)
class Effort:
    """How much to search: forward passes in all (of all questions through all layers), and how descents go (see `DescentOptions`).

    Moves are looked at on the first `few` questions. Knobs `without` are left alone. `refit`: plans are measured with the linear
    compensation that they will be written with. `refines`: plans are refined.
    """

    forwards: float
    block: int = 1
    slack: float = 0.05
    fading: float = 0.98
    grain: float = 0.01
    few: int = 48
    without: tuple[str, ...] = ()
    refit: bool = True
    refines: bool = True

    @property
    def descent(self) -> DescentOptions:
        return DescentOptions(block=self.block, grain=self.grain, slack=self.slack, fading=self.fading, without=self.without)


@dataclass(frozen=True)
class Report:
    """How far a search is: the share of the dense visual FLOPs reached, the forward passes used and allowed, the bytes of its cache."""

    stage: str
    share: float
    shift: float
    forwards: float
    allowed: float
    memory_bytes: int
    disk_bytes: int


Progress = Callable[[Report], None]
PlansByBudget = Mapping[float, Mapping[str, Plan]]


def usual_effort(layers: int) -> Effort:
    """400 forward passes up to 16 layers; beyond, 800 at most, and neighbouring layers change together, in eight blocks."""
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
    """The frontier of a dense transformers model for these budgets (shares of the dense visual FLOPs, within 0..1).

    `batches` are processor outputs of questions, left-padded, that end where the answer begins; `statistics` are those of the same
    model; `grids` are the visual grids that budgets are counted on (default: the statistics'). `state` is a file in which measurements
    are kept while the search runs: given again after an interruption, the search continues where it was. `seed` and `questions_from`
    say which questions these are, and are only recorded.
    Raises YopoError for no questions, budgets out of range or too small, and the state of another search.
    """
    config = model.config.to_dict()
    sizes = family_of(config).sizes(config)
    dense = dense_plan(sizes, grids or statistics.grids)
    effort = effort or usual_effort(sizes.num_hidden_layers)
    left_alone = STRIDES if effort.refit and "rank" not in effort.without else ("rank",)  # factors are fitted
    effort = replace(effort, without=tuple(dict.fromkeys((*effort.without, *left_alone))))
    budgets = sorted(set(budgets), reverse=True)
    recipes = {budget: recipe_plans(statistics, dense, budget) for budget in budgets}
    hashes: list[str] = []
    trials = Trials(
        model, _answers(model, batches, max_answer_tokens, hashes), dense, fitting=effort.refit, memory_bytes=memory_bytes
    )  # fmt: skip
    data = add_hashes(hashes)
    facts = {"model": statistics.model, "statistics": statistics.data, "data": data, "seed": seed, "budgets": budgets}
    journal = Journal(state, {**facts, "grids": [str(grid) for grid in dense.grids], "effort": asdict(effort), "answer": max_answer_tokens})
    trials.measured = journal.prices
    order = ranks(statistics, sizes)
    points, path = search_trials(trials, recipes, order, effort, journal, progress)
    return Frontier(points, path, order, trials.forwards, trials.samples, seed, statistics.model, data, questions_from, effort.refit)


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


def recipe_plans(statistics: Statistics, dense: Plan, budget: float) -> dict[str, Plan]:
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
    """Visual tokens are never updated, and text reads all of them in every head of every layer."""
    return normalise(replace(dense, layers=tuple(replace(layer, self_heads=(), neurons=()) for layer in dense.layers)))


def search_trials(
    trials: Trials, recipes: PlansByBudget, order: Ranks, effort: Effort, journal: Journal | None = None,
    progress: Progress = lambda report: None,
) -> tuple[tuple[Point, ...], tuple[Point, ...]]:  # fmt: skip
    """The plans of the budgets, from the largest to the smallest, and the plans that were passed on the way.

    `trials` stand at the dense plan; `recipes` are plans of each budget that take part. No plan is worse than that of a smaller budget.
    """
    running = Search(trials, order, effort, journal or Journal(None, {}), progress)
    try:
        points = running.down(sorted(recipes, reverse=True), recipes)
        return tuple(running.back(points)), tuple(running.path)
    finally:
        running.journal.write()


@dataclass(frozen=True)
class Branch:
    """Where a descent has come to, the plan that it began at, and the prices that it knows."""

    step: Step
    origin: str
    prices: Prices

    def at(self, plan: Plan) -> "Branch":
        """The same branch at another plan, which is not measured yet."""
        plan = normalise(plan)
        return replace(self, step=Step(plan, inf, visual_flops(plan)))


class Search:
    """A running search: the branch that it follows, all plans passed so far, and the forward passes of its descents."""

    def __init__(self, trials: Trials, order: Ranks, effort: Effort, journal: Journal, progress: Progress) -> None:
        self.trials, self.order, self.effort, self.journal, self.progress = trials, order, effort, journal, progress
        self.dense = trials.plan
        self.few = trials.some(effort.few)
        self.descents = 0.0
        self._last = Step(self.dense, 0.0, visual_flops(self.dense)), "dense"
        trials.heard = self._measured
        self.branch = Branch(measured(trials, self.dense), "dense", {})
        self.path = [Point(self.dense, self.branch.step.shift, "dense")]

    def down(self, budgets: Sequence[float], recipes: PlansByBudget) -> list[Point]:
        """The plans of falling budgets."""
        points = []
        for done, budget in enumerate(budgets, 1):
            self._reach(budget, recipes[budget])
            # Descents to come are taken to need half of what those so far did, for there is less and less to remove.
            needed = self.descents / done * (len(budgets) - done) / 2 + LOOK_BACK * len(budgets) + 1
            points.append(self._refined(budget, 1 / (len(budgets) - done + 1), needed))
        return points

    def back(self, points: Sequence[Point]) -> list[Point]:
        """The same points, from the smallest budget to the largest made at least as good as the one before."""
        better = [points[-1]]
        for point in reversed(points[:-1]):
            better.insert(0, self._no_worse(point, better[0]))
        return better

    def _no_worse(self, point: Point, smaller: Point) -> Point:
        """The point, or the smaller budget's plan filled up to this budget where that is better, or that plan as it is where both are
        worse."""
        assert point.asked is not None
        if self.trials.forwards + LOOK_BACK <= self.effort.forwards:
            knobs = differing(smaller.plan, self.dense)
            step = measured(self.trials, spent(smaller.plan, limit_of(point.asked, self.dense), self.order, knobs))
            self._report_step(step, f"back to {point.asked:g}")
            if step.shift < point.shift and step.flops >= visual_flops(point.plan) * 0.995:
                point = Point(step.plan, step.shift, f"{smaller.origin}, more", point.asked)
        return replace(smaller, asked=point.asked) if smaller.shift < point.shift else point

    def _reach(self, budget: float, recipes: Mapping[str, Plan]) -> None:
        """Go down to a budget by the best branch."""
        limit, began = limit_of(budget, self.dense), self.trials.forwards
        allowance = (self.effort.forwards - began) * ONE_DESCENT
        starts = self._starts(limit)
        branches = [self._down(branch, limit, allowance / len(starts)) for branch in starts]
        branches = [replace(branch, step=measured(self.trials, branch.step.plan)) for branch in branches]
        best = self._best(branches, limit)
        for name, plan in recipes.items():
            plan = normalise(plan)
            shift = self.trials.race(plan, best.step.plan, inf if name in RECIPES else RECIPE_SLACK)
            if isfinite(shift):
                best = self._best([best, Branch(Step(plan, shift, visual_flops(plan)), name, self.branch.prices)], limit)
        self.descents += self.trials.forwards - began
        self._report_step(best.step, f"measured {budget:g}")
        self.branch = best

    def _best(self, branches: Sequence[Branch], limit: int) -> Branch:
        """The one that changes the answers least of those within the limit, of those that use it up where there is one."""
        fitting = [branch for branch in branches if branch.step.flops <= limit]
        return min([branch for branch in fitting if is_spent(branch.step.plan, limit)] or fitting, key=lambda branch: branch.step.shift)

    def _starts(self, limit: int) -> list[Branch]:
        """The branch so far; beside it, once, where the descent passes the cost of that, the plan that updates nothing and reads all."""
        plan = reading_plan(self.dense)
        if not limit < visual_flops(plan) < self.branch.step.flops:
            return [self.branch]
        return [self.branch, Branch(self.branch.step, "reading", {}).at(plan)]

    def _down(self, branch: Branch, limit: int, allowance: float) -> Branch:
        """The branch after its descent, with the rest of the budget filled where the last step took it from."""
        options = replace(self.effort.descent, forwards=max(0.0, allowance))
        discount_prices(branch.prices)
        before = step = measured(self.trials, branch.step.plan)
        for following in descend(self.few, step, limit, self.order, options, branch.prices):
            before, step = step, following
            self.path.append(Point(step.plan, step.shift, branch.origin))
            self._report_step(step, f"from {branch.origin}")
        return branch.at(spent(step.plan, limit, self.order, differing(step.plan, before.plan)) if step.flops <= limit else step.plan)

    def _refined(self, budget: float, share: float, needed: float) -> Point:
        """The plan of a budget, refined with this share of the forward passes that are left, but for those needed elsewhere."""
        branch = self.branch
        left = self.effort.forwards - self.trials.forwards - needed
        if self.effort.refines and branch.step.shift >= NEGLIGIBLE and left > 0:
            where = limit_of(budget, self.dense), self.order, self.effort.descent
            report = lambda step: self._report_step(step, "refining")  # noqa: E731
            step = refine(self.few, branch.step, *where, left * share, left, branch.prices, report)
            if step is not branch.step:
                self.branch = replace(branch, step=step, origin=branch.origin.removesuffix(REFINED) + REFINED)
        point = Point(self.branch.step.plan, self.branch.step.shift, self.branch.origin, budget)
        self.path.append(point)
        return point

    def _report_step(self, step: Step, stage: str) -> None:
        self._last = step, stage
        self.journal.write()
        self._report()

    def _measured(self) -> None:
        self.journal.write(PATIENCE)
        self._report()

    def _report(self) -> None:
        step, stage = self._last
        share = step.flops / dense_visual_flops(self.dense.sizes, self.dense.grids)
        cache = self.trials.prefixes
        self.progress(Report(stage, share, step.shift, self.trials.forwards, self.effort.forwards, cache.held_bytes, cache.disk_bytes))
