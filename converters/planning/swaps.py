"""Swaps: at a fixed budget one knob goes up and others down, or one head makes room for another, where that changes the answers less."""

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from statistics import median

from ..runtime.plan import Plan
from .descent import Pace, Prices, Step
from .moves import PHASES, Move, counts, exchanges, moved, moves_down, moves_up, rank_of, visual_flops
from .ranks import Ranks
from .remainder import is_spent, spent
from .trial import Trials

TOLERANCE = 1e-3  # of the divergence: a smaller gain is taken for noise
PAYERS = 4  # ways to pay for each knob that goes up
GRAIN = 0.004  # of the plan: what a swap moves at least
EXCHANGES = 6  # of a layer's heads that are tried
SLACK = 0.1  # by which the first questions may be worse than before
HOPE = 0.05  # of the divergence, what an exchange of heads is first believed to save

Part = tuple[str, int, str]
Values = dict[Part, float]
"""Divergence per FLOP by direction ("up" or "down"), layer and knob: what going there is believed to save or to cost.

For an exchange ("exchange") it is a share of the divergence.
"""


@dataclass(frozen=True)
class Swap:
    """A plan, and what it takes: FLOPs by direction, layer and knob, positive for up and negative for down; for an exchange a shift."""

    plan: Plan
    parts: Mapping[Part, float]

    def promise(self, values: Values) -> float:
        """The divergence that these values let expect to be saved."""
        return sum(values[part] * amount for part, amount in self.parts.items())

    def uses(self, knobs: Container[str]) -> bool:
        """Whether one of these knobs is turned."""
        return any(knob in knobs for _, _, knob in self.parts)


def swap(
    trials: Trials, start: Step, limit: int, ranks: Ranks, prices: Prices, pace: Pace, tell: Callable[[Step], None] = lambda step: None
) -> Step:
    """The best plan found within the limit and the pace's forwards. `prices` say where to look first.

    `start.shift` is that of all questions; a swap that does worse on the first ones is not measured on the others. `tell` hears of
    every swap that was tried.
    """
    step, values, until = start, _values(start.plan, prices), trials.forwards + pace.forwards
    tried: set[Plan] = {start.plan}
    swaps = [one for one in _swaps(step, limit, ranks, values) if not one.uses(pace.without)]
    while trials.forwards < until and (left := [one for one in swaps if one.plan not in tried]):
        trials.settle(step.plan)
        chosen = max(left, key=lambda one: one.promise(values))
        tried.add(chosen.plan)
        shift = trials.race(chosen.plan, step.plan, SLACK)
        _learn(values, chosen, step.shift - shift if isfinite(shift) else -step.shift * SLACK)
        tell(step)
        if shift < step.shift * (1 - TOLERANCE):
            step = Step(chosen.plan, shift, visual_flops(chosen.plan))
            swaps = [one for one in _swaps(step, limit, ranks, values) if not one.uses(pace.without)]
    trials.settle(step.plan)
    return step


def _values(plan: Plan, prices: Prices) -> Values:
    """First beliefs: what moves cost when they were last measured. A knob that goes back up undoes the move that led to where it is."""
    usual = median(prices.values()) if prices else 0.0
    values: Values = {}
    for layer, kept in enumerate(plan.layers):
        turns = {knob: getattr(kept, field) for knob, field in PHASES.items()}
        stands = {**counts(kept, plan.sizes), **turns, "rank": rank_of(kept, plan.sizes)}
        for knob in ("read", "self", "neurons", "phases", "turns", "rank", "window", "freeze"):
            known = {move.to: price for move, price in prices.items() if layer in move.layers and move.knob == knob}
            below = [value for to, value in known.items() if (to > stands[knob] if knob in PHASES else to < stands.get(knob, 0))]
            values["down", layer, knob] = min(below, default=min(known.values(), default=usual))
            values["up", layer, knob] = known.get(stands.get(knob, -1), usual)
        values |= {("exchange", layer, knob): HOPE for knob in ("self", "read")}
    return values


def _swaps(step: Step, limit: int, ranks: Ranks, values: Values) -> Iterator[Swap]:
    """For every knob that can go up, plans within the limit that pay for it in different ways; and exchanges of heads."""
    plan, flops = step.plan, visual_flops(step.plan)
    for index in range(len(plan.layers)):
        for up in moves_up(plan, index):
            raised = moved(plan, up, ranks)
            if (more := visual_flops(raised) - flops) <= GRAIN * flops:
                continue
            payers = sorted(_payers(raised, up, visual_flops(raised) - limit, ranks), key=lambda move: _price(values, move))
            for first in range(min(PAYERS, len(payers))):
                parts: dict[Part, float] = {("up", index, up.knob): more}
                paid = _paid(raised, payers[first:], limit, ranks, parts)
                if paid is not None and is_spent(plan_spent := spent(paid, limit, ranks, ()), limit):
                    yield Swap(plan_spent, parts)
        tried: dict[str, int] = {}
        for knob, other in exchanges(plan, index, ranks):
            tried[knob] = tried.get(knob, 0) + 1
            if tried[knob] <= EXCHANGES and visual_flops(other) <= limit:
                yield Swap(other, {("exchange", index, knob): step.shift / tried[knob]})


def _price(values: Values, move: Move) -> tuple[float, Move]:
    return values["down", move.layers[0], move.knob], move


def _payers(plan: Plan, up: Move, missing: int, ranks: Ranks) -> list[Move]:
    """Moves of one layer that leave the knob that went up alone: of each knob the nearest that pays for it all, and the farthest."""
    found: list[Move] = []
    flops = visual_flops(plan)
    for index in range(len(plan.layers)):
        for moves in moves_down(plan, (index,)):
            if (index,) == up.layers and moves[0].knob in (up.knob, "freeze"):
                continue
            enough = next((move for move in moves if flops - visual_flops(moved(plan, move, ranks)) >= missing), moves[-1])
            found += dict.fromkeys((enough, moves[-1]))
    return found


def _paid(plan: Plan, payers: list[Move], limit: int, ranks: Ranks, parts: dict[Part, float]) -> Plan | None:
    """The plan after as many of the moves as it takes, one for each knob; None where all are not enough. Adds to `parts`."""
    for move in payers:
        part = ("down", move.layers[0], move.knob)
        flops = visual_flops(plan)
        if flops <= limit:
            break
        lower = moved(plan, move, ranks)
        if part not in parts and visual_flops(lower) < flops:
            parts[part] = visual_flops(lower) - flops
            plan = lower
    return plan if visual_flops(plan) <= limit else None


def _learn(values: Values, tried: Swap, gain: float) -> None:
    """Beliefs of the parts of a swap that gave more or less than they promised share the difference."""
    error = (gain - tried.promise(values)) / len(tried.parts)
    for part, amount in tried.parts.items():
        values[part] += error / amount
