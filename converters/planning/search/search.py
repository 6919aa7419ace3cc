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
from ...processes import ALONE, Processes
from ...runtime.plan import Grid, Plan, dense_plan, normalise
from ..cost import dense_visual_flops
from ..fill_budget import fill_budget, is_filled, limit_of
from ..frontier import Frontier, Point, differing
from ..importance import ImportanceOrder, importance_order
from ..measure.answers import MAX_ANSWER_TOKENS, Answered, answered
from ..measure.trials import MEMORY_BYTES, Trials
from ..recipes import RECIPES, make_plan
from .descent import DescentOptions, Prices, SearchStep, descend, measured
from .journal import Journal
from .moves import visual_flops
from .priced import PricedSteps
from .refine import DEPTHS, SLACK, discount_prices, refine

REFINED = ", refined"
STRIDES = ("stride",)
"""Knobs left alone where K and V may come through fewer dimensions: most searches did as well without (`benchmarks/planner.md`)."""
NEGLIGIBLE = 0.03  # a drift that leaves nothing to refine
ONE_DESCENT = 0.4  # of the forward passes that are left: what one descent may use before it hurries
PATIENCE = 5.0  # seconds of measurements that an interrupted search may lose
LOOK_BACK = 2  # forward passes that measuring a plan of another budget can take, since all layers are run again
SURE_RECIPES = "interlaced", "yopo"  # are measured on all questions, to be sure that no plan is worse
MEASURED = 2.0  # forward passes to measure the plan of a budget on all questions, and recipes on the first
EXCHANGES = 0.25  # of the forward passes that are left to price tables: what is kept for exchanges at the budgets
RECIPE_SLACK = 0.5  # share by which the others may be worse on the first questions


@dataclass(frozen=True)
class Effort:
    """How much to search: forward passes in all (of all questions through all layers), and how descents go (see `DescentOptions`).

    Moves are looked at on the first `few` questions. Knobs `without` are left alone; without `window`, recipes' plans have none either.
    `compensated`: plans are measured with the linear compensation that they will be written with. `refines`: plans are refined. With
    `probes` changes are chosen together by price tables from so many random gradients (see `measure.prices`); without, every move is
    measured.
    """

    forwards: float
    block: int = 1
    slack: float = 0.05
    fading: float = 0.98
    grain: float = 0.01
    few: int = 48
    without: tuple[str, ...] = ()
    compensated: bool = True
    refines: bool = True
    probes: int = 0

    @property
    def descent(self) -> DescentOptions:
        return DescentOptions(block=self.block, grain=self.grain, slack=self.slack, fading=self.fading, without=self.without)


EFFORTS = "quick", "usual", "thorough"
FEWEST_MEASURED = 150.0  # forward passes: with fewer a search that measures every move hurries
PROBES = 4
AMPLE = 45.0  # forward passes: from there on prices are of 128 questions, under half as many probes


@dataclass(frozen=True)
class SearchReport:
    """How far a search is: the share of the dense visual FLOPs reached, the forward passes used and allowed, the bytes of its cache."""

    stage: str
    share: float
    logit_drift: float
    forwards: float
    allowed: float
    memory_bytes: int
    disk_bytes: int


Progress = Callable[[SearchReport], None]
PlansByBudget = Mapping[float, Mapping[str, Plan]]


def thorough_effort(layers: int) -> Effort:
    """400 forward passes up to 16 layers; beyond, 800 at most, and neighbouring layers change together, in eight blocks."""
    return Effort(400.0) if layers <= 16 else Effort(800.0, block=ceil(layers / 8))


def priced_effort(forwards: float) -> Effort:
    """So many forward passes by price tables: made of fewer questions where these are few, although plans then fit these more."""
    return Effort(forwards, few=128, probes=PROBES // 2) if forwards >= AMPLE else Effort(forwards, few=64, probes=PROBES)


def effort_of(asked: str | float, layers: int, budgets: int) -> Effort:
    """What `quick`, `usual` and `thorough` mean for so many budgets, or a number of forward passes. Raises YopoError for anything else.

    `usual` is 20 passes for one budget and 5 for each more, `quick` half of that, both by price tables; `thorough` measures every move.
    Of a number, from `FEWEST_MEASURED` passes on every move is measured.
    """
    usual = 15.0 + 5 * budgets
    if asked in EFFORTS:
        return {"quick": priced_effort(usual / 2), "usual": priced_effort(usual), "thorough": thorough_effort(layers)}[str(asked)]
    try:
        forwards = float(asked)
    except ValueError:
        forwards = 0.0
    if not 0 < forwards < inf:
        raise YopoError(f"There is no effort {asked!r}.", f"There are: {', '.join(EFFORTS)}, or a number of forward passes.")
    return replace(thorough_effort(layers), forwards=forwards) if forwards >= FEWEST_MEASURED else priced_effort(forwards)


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
    processes: Processes = ALONE,
) -> Frontier:
    """The frontier of a dense transformers model for these budgets (shares of the dense visual FLOPs, within 0..1).

    `batches` are processor outputs of questions, left-padded, that end where the answer begins; `statistics` are those of the same
    model; `grids` are the visual grids that budgets are counted on (default: the statistics'). `state` is a file in which measurements
    are kept while the search runs: given again after an interruption, the search continues where it was. `seed` and `questions_from`
    say which questions these are, and are only recorded. Of several `processes` each is given its share of every batch (None: nothing of
    it); all of them come to the same frontier, and the first one alone reads and writes `state`.
    Raises YopoError for no questions, budgets out of range or too small, and the state of another search.
    """
    config = model.config.to_dict()
    sizes = family_of(config).sizes(config)
    dense = dense_plan(sizes, grids or statistics.grids)
    effort = effort or thorough_effort(sizes.num_hidden_layers)
    left_alone = STRIDES if effort.compensated and "rank" not in effort.without else ("rank",)  # factors are fitted
    effort = replace(effort, without=tuple(dict.fromkeys((*effort.without, *left_alone))))
    budgets = sorted(set(budgets), reverse=True)
    recipes = {budget: recipe_plans(statistics, dense, budget, windows="window" not in effort.without) for budget in budgets}
    hashes: list[str] = []
    trials = Trials(
        model, _answers(model, batches, max_answer_tokens, hashes), dense, fitting=effort.compensated, memory_bytes=memory_bytes,
        processes=processes,
    )  # fmt: skip
    if not trials.facts:
        raise YopoError("There is no calibration sample.", "Pass at least one image with a question.")
    data = add_hashes(processes.gathered(add_hashes(hashes)))
    facts = {"model": statistics.model, "statistics": statistics.data, "data": data, "seed": seed, "budgets": budgets}
    facts |= {"grids": [str(grid) for grid in dense.grids], "effort": asdict(effort), "answer": max_answer_tokens}
    journal = processes.of_first(lambda: Journal(state, facts))
    if not processes.first:
        journal.path = None
    trials.measured = journal.prices
    order = importance_order(statistics, sizes)
    points, path = search_trials(trials, recipes, order, effort, journal, progress)
    return Frontier(
        points,
        path,
        order,
        trials.forwards,
        trials.samples,
        seed,
        statistics.model,
        data,
        questions_from,
        effort.compensated,
        trials.dense_forwards,
    )


def auto_plan(model: Any, batches: Iterable[Any], statistics: Statistics, budget: float, **options: Any) -> Plan:
    """The measured plan for one budget; `options` as in `search`."""
    return search(model, batches, statistics, [budget], **options).at(budget).plan


def _answers(model: Any, batches: Iterable[Any], max_new_tokens: int, hashes: list[str]) -> Iterator[Answered | None]:
    """Batches with the dense model's answers, one at a time; their hashes are added to the list."""
    config = model.config.to_dict()
    visuals = family_of(config).visuals(config)
    for batch in batches:
        if batch is None:
            yield None
            continue
        hashes.append(hash_of(batch, visuals))
        yield answered(model, batch, max_new_tokens)


def recipe_plans(statistics: Statistics, dense: Plan, budget: float, windows: bool = True) -> dict[str, Plan]:
    """What recipes make of a budget, where they can reach it; the first one reaches all that can be reached."""
    first, *others = RECIPES
    target = (statistics, dense.sizes, dense.grids, budget, windows)
    plans = {first: make_plan(first, *target)}
    for name in others:
        with suppress(YopoError):
            plans[name] = make_plan(name, *target)
    return plans


def reading_plan(dense: Plan) -> Plan:
    """Visual tokens are never updated, and text reads all of them in every head of every layer."""
    return normalise(replace(dense, layers=tuple(replace(layer, self_heads=(), neurons=()) for layer in dense.layers)))


def search_trials(
    trials: Trials, recipes: PlansByBudget, order: ImportanceOrder, effort: Effort, journal: Journal | None = None,
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

    step: SearchStep
    origin: str
    prices: Prices

    def at(self, plan: Plan) -> "Branch":
        """The same branch at another plan, which is not measured yet."""
        plan = normalise(plan)
        return replace(self, step=SearchStep(plan, inf, visual_flops(plan)))


class Search:
    """A running search: the branch that it follows, all plans passed so far, and the forward passes of its descents."""

    def __init__(self, trials: Trials, order: ImportanceOrder, effort: Effort, journal: Journal, progress: Progress) -> None:
        self.trials, self.order, self.effort, self.journal, self.progress = trials, order, effort, journal, progress
        self.dense = trials.plan
        self.few = trials.some(effort.few)
        self.descents = 0.0
        self.priced = PricedSteps(self.few, effort.probes, effort.without, self.journal) if effort.probes else None
        self._last = SearchStep(self.dense, 0.0, visual_flops(self.dense)), "dense"
        trials.on_measurement = self._measured
        self.branch = Branch(measured(trials, self.dense), "dense", {})
        self.path = [Point(self.dense, self.branch.step.logit_drift, "dense")]

    def down(self, budgets: Sequence[float], recipes: PlansByBudget) -> list[Point]:
        """The plans of falling budgets."""
        points, self.last = [], limit_of(budgets[-1], self.dense)
        for done, budget in enumerate(budgets, 1):
            self.coming = len(budgets) - done
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
            step = measured(self.trials, fill_budget(smaller.plan, limit_of(point.asked, self.dense), self.order, knobs))
            self._report_step(step, f"back to {point.asked:g}")
            if step.logit_drift < point.logit_drift and step.flops >= visual_flops(point.plan) * 0.995:
                point = Point(step.plan, step.logit_drift, f"{smaller.origin}, more", point.asked)
        return replace(smaller, asked=point.asked) if smaller.logit_drift < point.logit_drift else point

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
            if self.priced and name not in SURE_RECIPES:
                continue
            sure = name in SURE_RECIPES and not self.priced
            logit_drift = self.trials.race(plan, best.step.plan, inf if sure else RECIPE_SLACK)
            if isfinite(logit_drift):
                best = self._best([best, Branch(SearchStep(plan, logit_drift, visual_flops(plan)), name, self.branch.prices)], limit)
        self.descents += self.trials.forwards - began
        self._report_step(best.step, f"measured {budget:g}")
        self.branch = best

    def _best(self, branches: Sequence[Branch], limit: int) -> Branch:
        """The one that changes the answers least of those within the limit, of those that use it up where there is one."""
        fitting = [branch for branch in branches if branch.step.flops <= limit]
        filled = [branch for branch in fitting if is_filled(branch.step.plan, limit)]
        return min(filled or fitting, key=lambda branch: branch.step.logit_drift)

    def _starts(self, limit: int) -> list[Branch]:
        """The branch so far; beside it, once, where the descent passes the cost of that, the plan that updates nothing and reads all."""
        plan = reading_plan(self.dense)
        if self.priced or not limit < visual_flops(plan) < self.branch.step.flops:
            return [self.branch]
        return [self.branch, Branch(self.branch.step, "reading", {}).at(plan)]

    def _down(self, branch: Branch, limit: int, allowance: float) -> Branch:
        """The branch after its descent, with the rest of the budget filled where the last step took it from."""
        if self.priced:
            return self._down_by_prices(self.priced, branch, limit)
        options = replace(self.effort.descent, forwards=max(0.0, allowance))
        discount_prices(branch.prices)
        before = step = measured(self.trials, branch.step.plan)
        for following in descend(self.few, step, limit, self.order, options, branch.prices):
            before, step = step, following
            self.path.append(Point(step.plan, step.logit_drift, branch.origin))
            self._report_step(step, f"from {branch.origin}")
        return branch.at(fill_budget(step.plan, limit, self.order, differing(step.plan, before.plan)) if step.flops <= limit else step.plan)

    def _down_by_prices(self, priced: PricedSteps, branch: Branch, limit: int) -> Branch:
        """The same by price tables; the plans on the way are measured on the first questions alone, and no part of the path."""
        left = self.effort.forwards - self.trials.forwards - MEASURED * (self.coming + 1)
        rounds = priced.rounds(branch.step.flops, limit, self.last, left * (1 - EXCHANGES))
        before = step = branch.step
        for following in priced.down(step, limit, rounds):
            before, step = step, following
            self._report_step(step, f"from {branch.origin}")
        return branch.at(fill_budget(step.plan, limit, self.order, differing(step.plan, before.plan)) if step.flops <= limit else step.plan)

    def _exchanged(self, priced: PricedSteps, start: SearchStep, limit: int) -> SearchStep:
        """The plan of a budget after rounds in which it goes down and up again by price tables, as long as that is better."""
        best, depths = start, list(DEPTHS)
        share = (self.effort.forwards - self.trials.forwards - self.coming * (MEASURED + priced.forwards)) / (self.coming + 1)
        until = self.trials.forwards + share
        while depths and self.trials.forwards + priced.forwards + 1 < until:
            plan = fill_budget(priced.chosen(best.plan, limit, depths[0]), limit, self.order, ())
            logit_drift = self.trials.race(plan, best.plan, SLACK)
            if isfinite(logit_drift) and logit_drift < best.logit_drift:
                best = SearchStep(plan, logit_drift, visual_flops(plan))
            else:
                depths.pop(0)
            self._report_step(best, "exchanging")
        return best

    def _refined(self, budget: float, share: float, needed: float) -> Point:
        """The plan of a budget, refined with this share of the forward passes that are left, but for those needed elsewhere."""
        branch = self.branch
        left = self.effort.forwards - self.trials.forwards - needed
        if self.effort.refines and branch.step.logit_drift >= NEGLIGIBLE and (self.priced or left > 0):
            where = limit_of(budget, self.dense), self.order, self.effort.descent
            report = lambda step: self._report_step(step, "refining")  # noqa: E731
            if self.priced:
                step = self._exchanged(self.priced, branch.step, where[0])
            else:
                step = refine(self.few, branch.step, *where, left * share, left, branch.prices, report)
            if step is not branch.step:
                self.branch = replace(branch, step=step, origin=branch.origin.removesuffix(REFINED) + REFINED)
        point = Point(self.branch.step.plan, self.branch.step.logit_drift, self.branch.origin, budget)
        self.path.append(point)
        return point

    def _report_step(self, step: SearchStep, stage: str) -> None:
        self._last = step, stage
        self.journal.write()
        self._report()

    def _measured(self) -> None:
        self.journal.write(PATIENCE)
        self._report()

    def _report(self) -> None:
        step, stage = self._last
        share = step.flops / dense_visual_flops(self.dense.sizes, self.dense.grids)
        cache = self.trials.cache
        self.progress(
            SearchReport(stage, share, step.logit_drift, self.trials.forwards, self.effort.forwards, cache.used_bytes, cache.disk_bytes)
        )
