"""The search: measured plans for every budget, from the dense model down, training-free and forward only.

From each starting point a descent passes every budget; there what is left is spent, the best plan known is improved by swaps, and
what presets reach at the same budget is measured too, so that the result is never worse on the calibration samples.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from math import ceil, log
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
from .ranks import Ranks, ranks
from .recipes import RECIPES, make_plan
from .remainder import is_spent, limit_of, spent
from .swaps import swap
from .trial import MEMORY_BYTES, Trials

SWAPPED = " and swaps"
NEGLIGIBLE = 1e-4  # nats by which answers may differ without a thought


@dataclass(frozen=True)
class Effort:
    """How much to search: forward-equivalents in all, the share of them for descents, and how descents go (see `Pace`)."""

    forwards: float
    block: int = 1
    descents: float = 0.65
    slack: float = 0.05
    fading: float = 0.98
    grain: float = 0.01


@dataclass(frozen=True)
class Report:
    """How far a search is: `share` of the dense visual FLOPs reached, out of `budget` asked for last, and what it has used."""

    stage: str
    share: float
    kl: float
    forwards: float
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
    budgets = sorted(set(budgets), reverse=True)
    presets = _presets(statistics, dense, budgets)
    hashes: list[str] = []
    trials = Trials(model, _answers(model, batches, max_answer_tokens, hashes), dense, memory_bytes=memory_bytes)
    data = add_hashes(hashes)
    effort = effort or usual_effort(sizes.num_hidden_layers)
    facts = {"model": statistics.model, "statistics": statistics.data, "data": data, "seed": seed, "budgets": budgets}
    journal = Journal(state, {**facts, "grids": [str(grid) for grid in dense.grids], "effort": asdict(effort), "answer": max_answer_tokens})
    trials.measured = journal.prices
    order = ranks(statistics, sizes)
    hunt = _Hunt(trials, order, effort, journal, progress)
    asked = hunt.rising([hunt.reach(budget, presets[budget], budgets) for budget in budgets])
    return Frontier(tuple(asked), tuple(hunt.path), order, trials.forwards, trials.samples, seed, statistics.model, data)


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


def _presets(statistics: Statistics, dense: Plan, budgets: Sequence[float]) -> dict[float, dict[str, Plan]]:
    """What each recipe makes of each budget, where it can reach it; the first recipe reaches all that can be reached."""
    found: dict[float, dict[str, Plan]] = {}
    for budget in budgets:
        first, *others = RECIPES
        found[budget] = {first: make_plan(first, statistics, dense.sizes, dense.grids, budget)}
        for recipe in others:
            with suppress(YopoError):
                found[budget][recipe] = make_plan(recipe, statistics, dense.sizes, dense.grids, budget)
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


class _Hunt:
    """A search under way: where it stands, all plans passed so far, and the forwards that descents and swaps have used."""

    def __init__(self, trials: Trials, order: Ranks, effort: Effort, journal: Journal, progress: Progress) -> None:
        self.trials, self.order, self.effort, self.journal, self.progress = trials, order, effort, journal, progress
        self.dense = trials.plan
        self.descents = self.swaps = 0.0
        self.way = _Way(measured(trials, self.dense), "dense", {})
        self.path = [Point(self.dense, self.way.step.kl, "dense")]

    def reach(self, budget: float, presets: Mapping[str, Plan], budgets: Sequence[float]) -> Point:
        """The plan for the next smaller of the budgets, which the search goes on from."""
        limit, began = limit_of(budget, self.dense), self.trials.forwards
        allowance = self.effort.forwards * self.effort.descents * _progress(budget, budgets[-1]) - self.descents
        starts = self._starts(limit)
        ways = [self._down(way, limit, allowance / len(starts)) for way in starts]
        ways += [_Way(measured(self.trials, plan), name, self.way.prices) for name, plan in presets.items()]
        fitting = [way for way in ways if way.step.flops <= limit]
        best = min([way for way in fitting if is_spent(way.step.plan, limit)] or fitting, key=lambda way: way.step.kl)
        self.descents += self.trials.forwards - began
        self._told(best.step, f"measured {budget:g}")
        self.way = self._swapped(best, limit, sum(other <= budget for other in budgets))
        point = Point(self.way.step.plan, self.way.step.kl, self.way.origin, budget)
        self.path.append(point)
        return point

    def rising(self, points: Sequence[Point]) -> list[Point]:
        """The same points, each at least as good as the smaller ones with the rest of its budget spent."""
        found = [points[-1]]
        for point in reversed(points[:-1]):
            smaller = found[0]
            assert point.asked is not None
            step = measured(
                self.trials, spent(smaller.plan, limit_of(point.asked, self.dense), self.order, differing(smaller.plan, self.dense))
            )
            better = step.kl < point.kl and step.flops >= visual_flops(point.plan) * 0.995
            found.insert(0, Point(step.plan, step.kl, f"{smaller.origin}, more", point.asked) if better else point)
            self._told(step, f"back to {point.asked:g}")
        return found

    def _starts(self, limit: int) -> list[_Way]:
        """The way so far; beside it, once, freezing all and reading all, where the way passes what that costs."""
        plan = reading_plan(self.dense)
        if not limit < visual_flops(plan) < self.way.step.flops:
            return [self.way]
        return [self.way, _Way(measured(self.trials, plan), "reading", {})]

    def _down(self, way: _Way, limit: int, allowance: float) -> _Way:
        """The way after its descent, with the rest of the budget spent where the last step took it from."""
        effort = self.effort
        pace = Pace(max(0.0, allowance), effort.block, effort.grain, slack=effort.slack, fading=effort.fading)
        before, step = way.step, way.step
        for following in descend(self.trials, step, limit, self.order, pace, way.prices):
            before, step = step, following
            self.path.append(Point(step.plan, step.kl, way.origin))
            self._told(step, f"from {way.origin}")
        rest = spent(step.plan, limit, self.order, differing(step.plan, before.plan)) if step.flops <= limit else step.plan
        return replace(way, step=measured(self.trials, rest))

    def _swapped(self, way: _Way, limit: int, left: int) -> _Way:
        """The way with its plan improved at this budget, as far as the share of the budgets left goes."""
        forwards = self.effort.forwards
        allowance = min(forwards * (1 - self.effort.descents) - self.swaps, forwards - self.trials.forwards) / left
        if way.step.kl < NEGLIGIBLE or allowance <= 0:
            return way
        began = self.trials.forwards
        step = swap(self.trials, way.step, limit, self.order, way.prices, began + allowance)
        self.swaps += self.trials.forwards - began
        self._told(step, "swaps")
        return way if step is way.step else replace(way, step=step, origin=way.origin.removesuffix(SWAPPED) + SWAPPED)

    def _told(self, step: Step, stage: str) -> None:
        self.journal.write()
        share = step.flops / dense_visual_flops(self.dense.sizes, self.dense.grids)
        held = self.trials.prefixes
        self.progress(Report(stage, share, step.kl, self.trials.forwards, held.held_bytes, held.disk_bytes))


def _progress(budget: float, smallest: float) -> float:
    """How much of the descents' forwards may be used up when a budget is reached: the first look at all moves costs the most."""
    return 0.2 + 0.8 * log(1 / budget) / log(1 / smallest)
