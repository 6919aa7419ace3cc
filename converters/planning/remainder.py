"""The remainder of a budget: a plan below it is given as much more as fits, down to single neurons."""

from bisect import bisect_right
from collections.abc import Iterable
from fractions import Fraction
from math import floor

from ..runtime.plan import Plan
from .cost import dense_visual_flops
from .moves import PHASES, Move, counts, moved, rank_notches, units, visual_flops
from .ranks import Ranks

Knob = tuple[int, str]  # layer, name
RANK_STEPS = 256  # of the hidden size: ranks are rounded to what products like


def limit_of(budget: float, plan: Plan) -> int:
    """A budget in visual FLOPs on the plan's grids."""
    return floor(Fraction(budget) * dense_visual_flops(plan.sizes, plan.grids))


def spent(plan: Plan, limit: int, ranks: Ranks, knobs: Iterable[Knob]) -> Plan:
    """The plan with these knobs turned up in turn, each as far as the limit allows; then neurons wherever they are read later.

    Where neurons cannot use it up, since nothing is read later or all of them are there, reading and self heads grow first.
    """
    neurons = [(layer, "neurons") for layer in _by_neurons(plan)]
    others = [(layer, knob) for knob in ("rank", "phases", "turns", "read", "self") for layer in range(len(plan.layers))]
    for layer, knob in (*knobs, *neurons, *others, *neurons):
        if is_spent(plan, limit):
            break
        plan = _turned_up(plan, layer, knob, limit, ranks)
    return plan


def is_spent(plan: Plan, limit: int) -> bool:
    """Whether the plan is within the limit and not a neuron more fits beside it."""
    return 0 <= limit - visual_flops(plan) < 2 * 3 * plan.sizes.hidden_size * plan.visual_tokens


def _by_neurons(plan: Plan) -> list[int]:
    """Layers, those that compute the most neurons first."""
    return sorted(range(len(plan.layers)), key=lambda layer: (-len(plan.layers[layer].neurons), layer))


def _turned_up(plan: Plan, layer: int, knob: str, limit: int, ranks: Ranks) -> Plan:
    """The plan with one knob of a layer as high as fits; the plan itself where nothing fits."""
    settings = _settings(plan, layer, knob)
    fits = bisect_right(settings, limit, key=lambda setting: visual_flops(moved(plan, Move((layer,), knob, setting), ranks)))
    return moved(plan, Move((layer,), knob, settings[fits - 1]), ranks) if fits else plan


def _settings(plan: Plan, layer: int, knob: str) -> range:
    """Settings above the current one, from cheap to dear."""
    if knob in PHASES:
        return range(getattr(plan.layers[layer], PHASES[knob]) - 1, 0, -1)
    if knob == "rank":
        rank, highest = plan.layers[layer].kv_rank, max(rank_notches(plan.sizes), default=0)
        step = max(1, plan.sizes.hidden_size // RANK_STEPS)
        return range(rank + step, highest + 1, step) if rank else range(0)
    if knob != "read" and layer >= plan.visual_depth - 1:
        return range(0)
    return range(counts(plan.layers[layer], plan.sizes)[knob] + 1, units(plan.sizes)[knob] + 1)
