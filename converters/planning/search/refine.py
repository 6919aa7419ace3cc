"""Floating: at a budget a plan goes down below it and up again, as far as that changes the answers less.

What a descent took early may have become worth its FLOPs, and what it left be worth nothing any more: a descent alone is a greedy choice.
Going on below the budget with prices measured anew, then spending what that frees where it gains the most, undoes both (sequential
floating selection: Pudil, Novovicova and Kittler, Pattern Recognition Letters 1994).
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import inf, isfinite

from ...runtime.plan import Plan
from ..fill_budget import is_spent, spent
from ..importance import Ranks
from ..measure.trial import Some
from .descent import Pace, Prices, Step, descend, measured, price
from .moves import Move, blocks, moved, moves_up, moves_worth, visual_flops

DEPTHS = (0.8, 0.6, 0.9)  # of the budget: how far down to go; the next one where the one before has gained nothing
OPTIMISM = 3.0  # times cheaper, and times more of a gain, what was measured at another plan may be
GRAIN = 0.02  # of the plan: what a step saves or adds at least
NEAR = 0.1  # a move just measured is taken where the next one looks no more than that better
SLACK = 0.1  # by which the first questions may be worse than before

Tell = Callable[[Step], None]


def float_at(
    few: Some, start: Step, limit: int, ranks: Ranks, pace: Pace, forwards: float, most: float, prices: Prices,
    tell: Tell = lambda step: None,
) -> Step:  # fmt: skip
    """The best plan found within the limit. `start.shift` is that of all questions.

    The way is gone again while it may end within so many forwards, and given up after the `most`. `prices` of moves down are those known
    so far, and are kept up to date; what moves up gain differs by orders of magnitude between budgets, and is measured anew. A plan counts
    as better beyond the standard error of the difference: hundreds are tried, and less is fitted to the questions. `tell` hears of every
    step.
    """
    trials, best, depths, gains = few.trials, start, list(DEPTHS), Prices()
    until, end = trials.forwards + forwards, trials.forwards + most
    pace = replace(pace, grain=max(pace.grain, GRAIN), slack=max(pace.slack, NEAR))
    while depths and trials.forwards + _survey(few, best.plan, ranks, pace, prices, gains) < until:
        hope(prices)
        gains = {move: abs(gain) * OPTIMISM for move, gain in gains.items()}
        step = best
        for lower in descend(few, best, int(limit * depths[0]), ranks, pace, prices):
            tell(step := lower)
            if trials.forwards > end:
                return best
        for higher in ascend(few, step, limit, ranks, pace, gains):
            tell(step := higher)
            if trials.forwards > end:
                break
        plan = spent(step.plan, limit, ranks, ())
        shift = trials.race(plan, best.plan, SLACK) if is_spent(plan, limit) else inf
        if isfinite(shift) and shift < best.shift - trials.error(plan, best.plan):
            best = Step(plan, shift, visual_flops(plan))
        else:
            depths.pop(0)
        trials.settle(best.plan)
        tell(best)
    return best


def hope(prices: Prices) -> None:
    """At another plan prices may be others: as low as can be hoped, so that what may be worth it is measured again."""
    for move, known in prices.items():
        prices[move] = known / OPTIMISM if known > 0 else known


def _survey(few: Some, plan: Plan, ranks: Ranks, pace: Pace, prices: Prices, gains: Prices) -> float:
    """Forwards that it takes to look at the moves that nothing is known of, and to measure what they lead to."""
    together = blocks(len(plan.layers), pace.block)
    down = {move for layers in together for move, _ in moves_worth(plan, layers, ranks, pace.grain)} - prices.keys()
    up = {move for layers in together for move in moves_up(plan, layers)} - gains.keys()
    each = few.trials.samples_of(few.batches) / few.trials.samples / len(plan.layers)
    return 1 + each * sum(len(plan.layers) - move.layers[0] for move in (*down, *up))


def ascend(few: Some, start: Step, limit: int, ranks: Ranks, pace: Pace, gains: Prices) -> Iterator[Step]:
    """The steps above `start` within `limit` visual FLOPs, always by the move that gains the most for what it costs, until none gains.

    Gains are measured lazily, as the prices of a descent are: what has once gained less than another is measured again when it looks
    like the best. `gains` are those known so far, or empty; they are kept up to date.
    """
    step = start
    while True:
        few.settle(step.plan)
        plans = {
            move: plan
            for layers in blocks(len(step.plan.layers), pace.block)
            for move in moves_up(step.plan, layers)
            if move.knob not in pace.without
            if step.flops + pace.grain * limit < visual_flops(plan := moved(step.plan, move, ranks)) <= limit
        }
        fresh: set[Move] = set()
        sure: set[Move] = set()
        while plans:
            best = max(plans, key=lambda move: (gains.get(move, inf), move))
            if best not in sure:
                gains[best] = price(few if best not in fresh else few.trials, step, plans[best])
                (sure if best in fresh else fresh).add(best)
            following = max((gains.get(move, inf) for move in plans if move != best), default=0.0)
            if max(gains[best], following) <= 0:
                return
            if best in sure and gains[best] >= following * (1 - pace.slack):
                break
        else:
            return
        step = measured(few.trials, plans[best], best)
        yield step
