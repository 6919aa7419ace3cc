"""Presets: what others prune, as plans of the same space, for any budget that their kind of plan can reach.

ShortV (arXiv 2504.00502) freezes visual tokens in the layers where that changes least; Op-Skip drops self attention or FFN of a layer;
ViCA lets visual tokens skip all of both and has them read in few layers only. Which layers: ranked by what their heads and neurons
add, from the same statistics.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..calibration.statistics import Statistics
from ..errors import YopoError
from ..runtime.plan import Grid, LayerPlan, Plan, Sizes, dense_plan, normalise, validate
from .fill_budget import limit_of, spent
from .importance import Ranks, ranks
from .search.moves import visual_flops


@dataclass(frozen=True)
class Scores:
    """What visual updates and reading add, by layer: sums over heads or neurons."""

    read: tuple[float, ...]
    self_: tuple[float, ...]
    neurons: tuple[float, ...]

    @classmethod
    def of(cls, statistics: Statistics) -> "Scores":
        sums = (statistics.read.sum(1), statistics.self_.sum(1), statistics.neurons.square().sum(1).sqrt())
        return cls(*(tuple(values.tolist()) for values in sums))


def preset(name: str, statistics: Statistics, sizes: Sizes, grids: tuple[Grid, ...], budget: float) -> Plan:
    """The preset's plan for a budget, exact from below. Raises YopoError for an unknown name or a budget it cannot reach."""
    if name not in PRESETS:
        raise YopoError(f"There is no preset {name!r}.", f"Presets: {', '.join(PRESETS)}.")
    dense = dense_plan(sizes, grids)
    limit = limit_of(budget, dense)
    smaller = [plan for plan in map(normalise, PRESETS[name](dense, Scores.of(statistics))) if visual_flops(plan) <= limit]
    if not smaller:
        raise YopoError(f"The budget {budget:g} is below the smallest that the preset {name} can reach.", "Use the recipe auto.")
    return validate(_filled(smaller[0], limit, ranks(statistics, sizes)))


def _filled(plan: Plan, limit: int, order: Ranks) -> Plan:
    """The remainder goes to neurons; without any layer that updates, to reading."""
    return spent(plan, limit, order, [(layer, "read") for layer in range(len(plan.layers)) if plan.layers[layer].read_heads])


def shortv(dense: Plan, scores: Scores) -> list[Plan]:
    """More and more layers frozen, those first in which visual tokens change least."""
    order = sorted(range(len(dense.layers)), key=lambda layer: scores.self_[layer] + scores.neurons[layer])
    return [_with(dense, set(order[:count]), _frozen) for count in range(len(order) + 1)]


def opskip(dense: Plan, scores: Scores) -> list[Plan]:
    """Self attention or FFN dropped, one operation after the other, those first that add least."""
    operations = [(scores.self_[layer], layer, "self_heads") for layer in range(len(dense.layers))]
    operations += [(scores.neurons[layer], layer, "neurons") for layer in range(len(dense.layers))]
    plans = [dense]
    for _, layer, what in sorted(operations):
        layers = list(plans[-1].layers)
        layers[layer] = replace(layers[layer], self_heads=()) if what == "self_heads" else replace(layers[layer], neurons=())
        plans.append(replace(plans[-1], layers=tuple(layers)))
    return plans


def vica(dense: Plan, scores: Scores) -> list[Plan]:
    """Every layer frozen, fewer and fewer layers read: those that read most stay."""
    frozen = _with(dense, set(range(len(dense.layers))), _frozen)
    order = sorted(range(len(dense.layers)), key=lambda layer: scores.read[layer])
    return [_with(frozen, set(order[:count]), lambda _: LayerPlan((), (), ())) for count in range(len(order))]


PRESETS: dict[str, Callable[[Plan, Scores], list[Plan]]] = {"shortv": shortv, "opskip": opskip, "vica": vica}


def _frozen(layer: LayerPlan) -> LayerPlan:
    return replace(layer, self_heads=(), neurons=())


def _with(plan: Plan, layers: set[int], change: Callable[[LayerPlan], LayerPlan]) -> Plan:
    return replace(plan, layers=tuple(change(layer) if index in layers else layer for index, layer in enumerate(plan.layers)))
