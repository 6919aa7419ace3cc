"""A descent: from a plan down to a budget, always by the move that changes the answers least for what it saves.

Prices are measured lazily: they fade with age, and only the one that looks cheapest is measured again, until the cheapest is fresh. A
move is looked at on few questions first, and measured on all before it is taken.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import inf, isfinite, log

from ...runtime.plan import Plan, normalise
from ..importance import Ranks
from ..measure.trial import Some, Trials
from .moves import Move, blocks, moves_worth, visual_flops

LARGE_GRAIN = 0.05  # of a plan, what a step saves at least when the forwards are used up

Prices = dict[Move, float]
"""Divergence per FLOP that a move saves, as last measured or guessed."""


@dataclass(frozen=True)
class Step:
    """A plan on the way, its price, and the move that led to it (None: the start)."""

    plan: Plan
    shift: float
    flops: int
    move: Move | None = None


@dataclass(frozen=True)
class Pace:
    """How carefully to go: `block` layers move together, and a move saves at least a share `grain` of what there is.

    A move just measured stands within `slack` of what the next one looks like, or when it is the best of `trials` measured.
    With every step the prices of all moves fall by `fading`, so that moves that have become cheap are found. `forwards` is what the
    descent may use; behind its schedule it measures no more than eight moves a step, beyond them four, of larger steps: a guess alone
    can be wrong by orders of magnitude. Knobs `without` are left alone.
    """

    forwards: float = inf
    block: int = 1
    grain: float = 0.0
    trials: int = 1_000_000
    slack: float = 0.0
    fading: float = 1.0
    without: tuple[str, ...] = ()


def measured(trials: Trials | Some, plan: Plan, move: Move | None = None) -> Step:
    """A plan and its price."""
    plan = normalise(plan)
    return Step(plan, trials.shift(plan), visual_flops(plan), move)


def descend(few: Some, start: Step, limit: int, ranks: Ranks, pace: Pace, prices: Prices) -> Iterator[Step]:
    """The steps below `start` down to the first plan of at most `limit` visual FLOPs, or until no move saves anything.

    `prices` are those of an earlier descent, or empty; they are kept up to date.
    """
    few.settle(start.plan)
    step, began = start, few.forwards
    while step.flops > limit:
        done = log(start.flops / step.flops) / log(start.flops / max(1, limit))
        used = few.forwards - began
        chosen = _cheapest(few, step, limit, ranks, prices, _hurried(pace, used, pace.forwards * (0.1 + 0.9 * done)))
        if chosen is None:
            return
        few.settle(chosen.plan)
        step = chosen
        yield step


def _hurried(pace: Pace, used: float, schedule: float) -> Pace:
    """The pace behind its schedule, and that of a descent whose forwards are used up."""
    if used > pace.forwards:
        return replace(pace, trials=4, slack=max(pace.slack, 2.0), grain=max(pace.grain, LARGE_GRAIN))
    return replace(pace, trials=8, slack=max(pace.slack, 1.0)) if used > schedule else pace


def _cheapest(few: Some, step: Step, limit: int, ranks: Ranks, prices: Prices, pace: Pace) -> Step | None:
    """The step that the cheapest move makes, for what it saves above the limit; None where nothing can be saved."""
    plans = _open_moves(step, ranks, pace)
    _guess(prices, plans)
    beyond = {move: max(1.0, (step.flops - visual_flops(plan)) / (step.flops - limit)) for move, plan in plans.items()}
    fresh: set[Move] = set()
    sure: set[Move] = set()
    while plans:
        enough = len(fresh & plans.keys()) >= pace.trials and min(prices.values()) > -inf
        best = min(fresh if enough else plans, key=lambda move: (prices[move] * beyond[move], move))
        if best not in sure:
            prices[best] = price(few if best not in fresh else few.trials, step, plans[best])
            (sure if best in fresh else fresh).add(best)
        following = min((prices[move] * beyond[move] for move in plans if move != best), default=inf)
        if best in sure and (enough or _stands(prices[best] * beyond[best], following, pace.slack)):
            for move in prices:
                prices[move] *= pace.fading if prices[move] > 0 and move not in fresh else 1
            return measured(few.trials, plans[best], best)
    return None


def price(trials: Trials | Some, step: Step, plan: Plan) -> float:
    """By how much more than the plan of a step another one changes the answers, per FLOP that it saves; of one that costs more, by how
    much less, per FLOP."""
    return (trials.shift(plan) - trials.shift(step.plan)) / (step.flops - visual_flops(plan))


def _stands(price: float, following: float, slack: float) -> bool:
    """Whether a move just measured is taken although the following one looks that cheap."""
    return price <= following or (isfinite(following) and price <= following + abs(following) * slack)


def _open_moves(step: Step, ranks: Ranks, pace: Pace) -> dict[Move, Plan]:
    """Every move that saves enough, and its plan."""
    together = blocks(len(step.plan.layers), pace.block)
    worth = [found for layers in together for found in moves_worth(step.plan, layers, ranks, pace.grain)]
    return {move: plan for move, plan in worth if move.knob not in pace.without}


def _guess(prices: Prices, plans: dict[Move, Plan]) -> None:
    """A move that was never measured looks like the cheapest of its knob and layers; unknown ones come first."""
    for move in plans:
        if move not in prices:
            alike = [price for other, price in prices.items() if (other.layers, other.knob) == (move.layers, move.knob)]
            prices[move] = min(alike, default=-inf)
