"""Refinement: a plan goes down below its budget and up again, and is replaced if it then changes the answers less.

A descent is a greedy choice: what it removed early may later have become worth its FLOPs, and what it left, worth nothing. So the descent
goes on below the budget, and what this frees is added where it lowers the drift the most (sequential floating selection: Pudil,
Novovicova and Kittler, Pattern Recognition Letters 1994).
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import inf, isfinite

from ...runtime.plan import Plan
from ..fill_budget import fill_budget, is_filled
from ..importance import ImportanceOrder
from ..measure.trials import TrialSubset
from .descent import DescentOptions, Prices, SearchStep, descend, measured, price
from .moves import Move, blocks, moved, moves_up, moves_worth, visual_flops

DEPTHS = (0.8, 0.6, 0.9)  # of the budget: how far down to go; the next one where the one before has gained nothing
OPTIMISM = 3.0  # by this factor prices may have fallen, and gains risen, since they were measured at another plan
GRAIN = 0.02  # of the plan: what a step saves or adds at least
NEAR = 0.1  # a move just measured is taken where the next one looks no more than that better
SLACK = 0.1  # by which the first questions may be worse than before

StepReport = Callable[[SearchStep], None]


def refine(
    few: TrialSubset, start: SearchStep, limit: int, order: ImportanceOrder, options: DescentOptions, forwards: float, most: float,
    prices: Prices, report: StepReport = lambda step: None,
) -> SearchStep:  # fmt: skip
    """The best plan found within the limit (visual FLOPs).

    It goes down and up again as long as that is likely to end within `forwards` forward passes, and gives up after `most`. `prices` of
    moves down are those known so far, and are kept up to date; gains of moves up differ by orders of magnitude between budgets, and are
    measured anew. A plan counts as better if it is so by more than the standard error of the difference: hundreds are tried, and a
    smaller difference would be fitted to the questions. `report` is called with every step.
    """
    trials, best, depths, gains = few.trials, start, list(DEPTHS), Prices()
    until, end = trials.forwards + forwards, trials.forwards + most
    options = replace(options, grain=max(options.grain, GRAIN), slack=max(options.slack, NEAR))
    while depths and trials.forwards + _survey(few, best.plan, order, options, prices, gains) < until:
        discount_prices(prices)
        gains = {move: abs(gain) * OPTIMISM for move, gain in gains.items()}
        step = best
        for lower in descend(few, best, int(limit * depths[0]), order, options, prices):
            report(step := lower)
            if trials.forwards > end:
                return best
        for higher in ascend(few, step, limit, order, options, gains):
            report(step := higher)
            if trials.forwards > end:
                break
        plan = fill_budget(step.plan, limit, order, ())
        logit_drift = trials.race(plan, best.plan, SLACK) if is_filled(plan, limit) else inf
        if isfinite(logit_drift) and logit_drift < best.logit_drift - trials.error(plan, best.plan):
            best = SearchStep(plan, logit_drift, visual_flops(plan))
        else:
            depths.pop(0)
        trials.settle(best.plan)
        report(best)
    return best


def discount_prices(prices: Prices) -> None:
    """Lower all prices, as far as they may have fallen at another plan, so that whatever may be the cheapest is measured again."""
    for move, known in prices.items():
        prices[move] = known / OPTIMISM if known > 0 else known


def _survey(few: TrialSubset, plan: Plan, order: ImportanceOrder, options: DescentOptions, prices: Prices, gains: Prices) -> float:
    """Forward passes to measure, on the first questions, all moves of unknown price or gain, and then the plan that results."""
    together = blocks(len(plan.layers), options.block)
    down = {move for layers in together for move, _ in moves_worth(plan, layers, order, options.grain)} - prices.keys()
    up = {move for layers in together for move in moves_up(plan, layers)} - gains.keys()
    each = few.trials.samples_of(few.batches) / few.trials.samples / len(plan.layers)
    return 1 + each * sum(len(plan.layers) - move.layers[0] for move in (*down, *up))


def ascend(
    few: TrialSubset, start: SearchStep, limit: int, order: ImportanceOrder, options: DescentOptions, gains: Prices
) -> Iterator[SearchStep]:
    """The steps above `start` within `limit` visual FLOPs, each by the move that lowers the drift most per FLOP added, until none does.

    As in a descent, only the move that looks best is measured again. `gains` are those known so far, or empty; they are kept up to date.
    """
    step = start
    while True:
        few.settle(step.plan)
        plans = {
            move: plan
            for layers in blocks(len(step.plan.layers), options.block)
            for move in moves_up(step.plan, layers)
            if move.knob not in options.without
            if step.flops + options.grain * limit < visual_flops(plan := moved(step.plan, move, order)) <= limit
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
            if best in sure and gains[best] >= following * (1 - options.slack):
                break
        else:
            return
        step = measured(few.trials, plans[best], best)
        yield step
