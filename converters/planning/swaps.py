"""Swaps: at a fixed budget one knob goes up and others down, as long as that changes the answers less."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median

from ..runtime.plan import Plan
from .descent import Prices, Step, measured
from .moves import Move, counts, moved, moves_down, moves_up, visual_flops
from .ranks import Ranks
from .remainder import is_spent, spent
from .trial import Trials

TOLERANCE = 1e-3  # of the divergence: a smaller gain is taken for noise
PAYERS = 4  # ways to pay for each knob that goes up

Values = dict[tuple[str, int, str], float]
"""Divergence per FLOP by direction ("up" or "down"), layer and knob: what going there is believed to save or to cost."""


@dataclass(frozen=True)
class Swap:
    """A plan, and what it takes: FLOPs by direction, layer and knob, positive for up and negative for down."""

    plan: Plan
    parts: Mapping[tuple[str, int, str], int]

    def promise(self, values: Values) -> float:
        """The divergence that these values let expect to be saved."""
        return sum(values[part] * flops for part, flops in self.parts.items())


def swap(trials: Trials, start: Step, limit: int, ranks: Ranks, prices: Prices, until: float) -> Step:
    """The best plan found within the limit before `trials.forwards` reaches `until`. `prices` say where to look first."""
    step, values = start, _values(start.plan, prices)
    tried: set[Plan] = {start.plan}
    swaps = list(_swaps(step.plan, limit, ranks, values))
    while trials.forwards < until and (left := [one for one in swaps if one.plan not in tried]):
        trials.settle(step.plan)
        chosen = max(left, key=lambda one: one.promise(values))
        tried.add(chosen.plan)
        result = measured(trials, chosen.plan)
        _learn(values, chosen, step.kl - result.kl)
        if result.kl < step.kl * (1 - TOLERANCE):
            step = result
            swaps = list(_swaps(step.plan, limit, ranks, values))
    trials.settle(step.plan)
    return step


def _values(plan: Plan, prices: Prices) -> Values:
    """First beliefs: what moves cost when they were last measured. A knob that goes back up undoes the move that led to where it is."""
    usual = median(prices.values()) if prices else 0.0
    values: Values = {}
    for layer, kept in enumerate(plan.layers):
        stands = {**counts(kept, plan.sizes), "phases": kept.read_phases}
        for knob in ("read", "self", "neurons", "phases", "window", "freeze"):
            known = {move.to: price for move, price in prices.items() if layer in move.layers and move.knob == knob}
            below = [value for to, value in known.items() if (to > stands[knob] if knob == "phases" else to < stands.get(knob, 0))]
            values["down", layer, knob] = min(below, default=min(known.values(), default=usual))
            values["up", layer, knob] = known.get(stands.get(knob, -1), usual)
    return values


def _swaps(plan: Plan, limit: int, ranks: Ranks, values: Values) -> Iterator[Swap]:
    """For every knob that can go up, plans within the limit that pay for it in different ways."""
    flops = visual_flops(plan)
    for index in range(len(plan.layers)):
        for up in moves_up(plan, index):
            raised = moved(plan, up, ranks)
            if (more := visual_flops(raised) - flops) <= 0:
                continue
            payers = sorted(_payers(raised, up), key=lambda move: (values["down", move.layers[0], move.knob], move))
            for first in range(min(PAYERS, len(payers))):
                parts = {("up", index, up.knob): more}
                paid = _paid(raised, payers[first:], limit, ranks, parts)
                if paid is not None and is_spent(plan_spent := spent(paid, limit, ranks, ()), limit):
                    yield Swap(plan_spent, parts)


def _payers(plan: Plan, up: Move) -> list[Move]:
    """Moves of one layer that leave the knob that went up alone."""
    return [
        move
        for index in range(len(plan.layers))
        for moves in moves_down(plan, (index,))
        for move in dict.fromkeys((moves[0], moves[-1]))
        if (move.layers, move.knob) != (up.layers, up.knob) and not (move.knob == "freeze" and index in up.layers)
    ]


def _paid(plan: Plan, payers: list[Move], limit: int, ranks: Ranks, parts: dict[tuple[str, int, str], int]) -> Plan | None:
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
    for part, flops in tried.parts.items():
        values[part] += error / flops
