"""The remainder of a budget: a plan below it is given as much more as fits; what is less than a neuron, by small exchanges."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from fractions import Fraction
from math import floor

from ..runtime.plan import Plan
from .cost import dense_visual_flops
from .importance import Ranks
from .search.moves import Move, counts, moved, rank_notches, units, visual_flops

Knob = tuple[int, str]  # layer, name
OTHERS = "rank", "stride", "read", "self"  # knobs, beside neurons
RANK_STEPS = 256  # of the hidden size: ranks are rounded to what products like
CLOSE = 0.995  # of a budget: what reaches it is left alone where not a neuron more fits
MOST_EXCHANGED = 0.02  # of a budget: more would be another plan


def limit_of(budget: float, plan: Plan) -> int:
    """A budget in visual FLOPs on the plan's grids."""
    return floor(Fraction(budget) * dense_visual_flops(plan.sizes, plan.grids))


def spent(plan: Plan, limit: int, ranks: Ranks, knobs: Iterable[Knob]) -> Plan:
    """The plan with these knobs turned up in turn, each as far as the limit allows; then neurons wherever they are read later.

    Where neurons cannot use it up, since nothing is read later or all of them are there, reading and self heads grow first. Where a
    neuron is a large part of the budget, units of other prices are added or exchanged, a few at a time, to come within half a percent.
    """
    neurons = [(layer, "neurons") for layer in _by_neurons(plan)]
    others = [(layer, knob) for knob in OTHERS for layer in range(len(plan.layers))]
    for layer, knob in (*knobs, *neurons, *others, *neurons):
        if is_spent(plan, limit):
            break
        plan = _highest(plan, layer, knob, _above(plan, layer, knob), limit, ranks) or plan
    while visual_flops(plan) < limit * CLOSE and (closer := _exchanged(plan, limit, ranks)):
        plan = closer
    return plan


def is_spent(plan: Plan, limit: int) -> bool:
    """Whether the plan is within the limit and not a neuron more fits beside it."""
    return 0 <= limit - visual_flops(plan) < 2 * 3 * plan.sizes.hidden_size * plan.visual_tokens


def _by_neurons(plan: Plan) -> list[int]:
    """Layers, those that compute the most neurons first."""
    return sorted(range(len(plan.layers)), key=lambda layer: (-len(plan.layers[layer].neurons), layer))


def _highest(plan: Plan, layer: int, knob: str, settings: range, limit: int, ranks: Ranks) -> Plan | None:
    """The plan with one knob of a layer as high as fits, of settings from cheap to dear; None where none fits."""
    fits = bisect_right(settings, limit, key=lambda setting: visual_flops(moved(plan, Move((layer,), knob, setting), ranks)))
    return moved(plan, Move((layer,), knob, settings[fits - 1]), ranks) if fits else None


def _exchanged(plan: Plan, limit: int, ranks: Ranks) -> Plan | None:
    """The plan with one knob a step up and, where that does not fit, another as little down as makes it fit; None where that uses no more.

    The exchange that adds the least before it takes, for each FLOP by which it comes nearer to what is close to the limit.
    """
    flops = visual_flops(plan)
    small = [more for more in _one_up(plan, ranks) if visual_flops(more) - flops <= limit * MOST_EXCHANGED]
    found = [(visual_flops(more) - flops, other) for more in small for other in _fitting(more, limit, ranks)]
    nearer = [(added / (min(visual_flops(other), limit * CLOSE) - flops), other) for added, other in found if visual_flops(other) > flops]
    return min(nearer, key=lambda exchange: exchange[0])[1] if nearer else None


def _one_up(plan: Plan, ranks: Ranks) -> Iterator[Plan]:
    """The plans that have one knob of one layer a step up."""
    for knob in (*OTHERS, "neurons"):
        for layer in range(len(plan.layers)):
            for setting in _above(plan, layer, knob)[:1]:
                yield moved(plan, Move((layer,), knob, setting), ranks)


def _fitting(plan: Plan, limit: int, ranks: Ranks) -> Iterator[Plan]:
    """The plan if it fits, else those with fewer neurons or a lower rank in one layer that do."""
    if visual_flops(plan) <= limit:
        yield plan
        return
    for index, layer in enumerate(plan.layers):
        step, rank = _rank_step(plan), layer.kv_rank or 0
        for knob, settings in (("neurons", range(len(layer.neurons))), ("rank", range(rank % step or step, rank, step))):
            if lower := _highest(plan, index, knob, settings, limit, ranks):
                yield lower


def _rank_step(plan: Plan) -> int:
    return max(1, plan.sizes.hidden_size // RANK_STEPS)


def _above(plan: Plan, layer: int, knob: str) -> range:
    """Settings above the current one, from cheap to dear."""
    if knob == "stride":
        return range(plan.layers[layer].read_stride - 1, 0, -1)
    if knob == "rank":
        rank, highest = plan.layers[layer].kv_rank, max(rank_notches(plan.sizes), default=0)
        step = _rank_step(plan)
        return range(rank + step, highest + 1, step) if rank else range(0)
    if knob != "read" and layer >= plan.visual_depth - 1:
        return range(0)
    return range(counts(plan.layers[layer], plan.sizes)[knob] + 1, units(plan.sizes)[knob] + 1)
