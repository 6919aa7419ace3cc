"""A descent: from a plan down to a budget, step by step by the move with the lowest price, its change of the answers per FLOP saved.

Not every move is measured at every step. A price is kept from step to step and falls a little with each, and only the move that looks
cheapest is measured again, until the cheapest one was measured at this very step. A move is measured on a few questions first, and on
all of them before it is taken.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import inf, isfinite, log

from ...runtime.plan import Plan, normalise
from ..importance import ImportanceOrder
from ..measure.trials import Trials, TrialSubset
from .moves import Move, blocks, moves_worth, visual_flops

LARGE_GRAIN = 0.05  # of a plan, what a step saves at least when the forwards are used up

Prices = dict[Move, float]
"""Rise of the drift per FLOP that a move saves, as last measured or guessed."""


@dataclass(frozen=True)
class SearchStep:
    """A plan on the way, its drift on all questions, its visual FLOPs, and the move that led to it (None: the start)."""

    plan: Plan
    logit_drift: float
    flops: int
    move: Move | None = None


@dataclass(frozen=True)
class DescentOptions:
    """How carefully to go. `block` neighbouring layers change together, and a move saves at least a share `grain` of the plan's FLOPs.

    A move just measured is taken if its price is at most a share `slack` above what the next one's is believed to be, or if it is the
    best of `trials` measured. With every step the prices that were not measured are multiplied by `fading`, so that moves that have
    become cheap are found. `forwards` is how many forward passes the descent may use; behind its schedule it measures no more than
    eight moves a step, and beyond the end four, of larger steps: a price that was never measured can be wrong by orders of magnitude.
    Knobs `without` are left alone.
    """

    forwards: float = inf
    block: int = 1
    grain: float = 0.0
    trials: int = 1_000_000
    slack: float = 0.0
    fading: float = 1.0
    without: tuple[str, ...] = ()


def measured(trials: Trials | TrialSubset, plan: Plan, move: Move | None = None) -> SearchStep:
    """A plan with its drift."""
    plan = normalise(plan)
    return SearchStep(plan, trials.logit_drift(plan), visual_flops(plan), move)


def descend(
    few: TrialSubset, start: SearchStep, limit: int, order: ImportanceOrder, options: DescentOptions, prices: Prices
) -> Iterator[SearchStep]:
    """The steps below `start` down to the first plan of at most `limit` visual FLOPs, or until no move saves anything.

    `prices` are those of an earlier descent, or empty; they are kept up to date.
    """
    few.settle(start.plan)
    step, began = start, few.forwards
    while step.flops > limit:
        done = log(start.flops / step.flops) / log(start.flops / max(1, limit))
        used = few.forwards - began
        chosen = _cheapest(few, step, limit, order, prices, _hurried(options, used, options.forwards * (0.1 + 0.9 * done)))
        if chosen is None:
            return
        few.settle(chosen.plan)
        step = chosen
        yield step


def _hurried(options: DescentOptions, used: float, schedule: float) -> DescentOptions:
    """The options of a descent behind its schedule, and of one whose forward passes are used up."""
    if used > options.forwards:
        return replace(options, trials=4, slack=max(options.slack, 2.0), grain=max(options.grain, LARGE_GRAIN))
    return replace(options, trials=8, slack=max(options.slack, 1.0)) if used > schedule else options


def _cheapest(
    few: TrialSubset, step: SearchStep, limit: int, order: ImportanceOrder, prices: Prices, options: DescentOptions
) -> SearchStep | None:
    """The step of the cheapest move; None where nothing can be saved.

    What a move saves beyond the limit does not count. `fresh` are the moves measured at this step, `sure` those measured on all questions.
    """
    plans = _open_moves(step, order, options)
    _guess(prices, plans)
    beyond = {move: max(1.0, (step.flops - visual_flops(plan)) / (step.flops - limit)) for move, plan in plans.items()}
    fresh: set[Move] = set()
    sure: set[Move] = set()
    while plans:
        enough = len(fresh & plans.keys()) >= options.trials and min(prices.values()) > -inf
        best = min(fresh if enough else plans, key=lambda move: (prices[move] * beyond[move], move))
        if best not in sure:
            prices[best] = price(few if best not in fresh else few.trials, step, plans[best])
            (sure if best in fresh else fresh).add(best)
        following = min((prices[move] * beyond[move] for move in plans if move != best), default=inf)
        if best in sure and (enough or _stands(prices[best] * beyond[best], following, options.slack)):
            for move in prices:
                prices[move] *= options.fading if prices[move] > 0 and move not in fresh else 1
            return measured(few.trials, plans[best], best)
    return None


def price(trials: Trials | TrialSubset, step: SearchStep, plan: Plan) -> float:
    """The rise of the drift from the plan of a step to another one, per FLOP saved; of a larger plan the fall, per FLOP added."""
    return (trials.logit_drift(plan) - trials.logit_drift(step.plan)) / (step.flops - visual_flops(plan))


def _stands(price: float, following: float, slack: float) -> bool:
    """Whether a move just measured is taken, where the next one is believed to have the price `following`."""
    return price <= following or (isfinite(following) and price <= following + abs(following) * slack)


def _open_moves(step: SearchStep, order: ImportanceOrder, options: DescentOptions) -> dict[Move, Plan]:
    """Every move that saves enough, and its plan."""
    together = blocks(len(step.plan.layers), options.block)
    worth = [pair for layers in together for pair in moves_worth(step.plan, layers, order, options.grain)]
    return {move: plan for move, plan in worth if move.knob not in options.without}


def _guess(prices: Prices, plans: dict[Move, Plan]) -> None:
    """Give a move that was never measured the lowest price of its knob and layers; where none is known, it is measured first."""
    for move in plans:
        if move not in prices:
            alike = [price for other, price in prices.items() if (other.layers, other.knob) == (move.layers, move.knob)]
            prices[move] = min(alike, default=-inf)
