"""Recipes by whole layers: what others prune, as plans of the same space, at our exact budgets.

ShortV (arXiv 2504.00502) freezes visual tokens in the layers where that changes least; Op-Skip drops self attention or FFN of a layer;
ViCA lets visual tokens skip all of both and has them read in few layers only. Layers come in the order of what their heads and neurons
add. Each recipe is a list of plans from large to small, of which the first that fits is filled up.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from ...runtime.plan import LayerPlan, Plan, normalise
from ..fill_budget import fill_budget
from .target import Target, require


def shortv(target: Target) -> Plan:
    """More and more layers frozen, those first in which visual tokens change least."""
    scores = target.scores
    order = sorted(range(len(scores)), key=lambda layer: scores[layer].self_ + scores[layer].neurons)
    return _largest_filled([_with(target.dense, order[:count], _frozen) for count in range(len(order) + 1)], target, "shortv")


def opskip(target: Target) -> Plan:
    """Self attention or FFN dropped, one operation after the other, those first that add least."""
    scores, plans = target.scores, [target.dense]
    operations = [(score.self_, layer, "self_heads") for layer, score in enumerate(scores)]
    operations += [(score.neurons, layer, "neurons") for layer, score in enumerate(scores)]
    for _, layer, field in sorted(operations):
        emptied = {field: ()}
        plans.append(_with(plans[-1], [layer], lambda before, emptied=emptied: replace(before, **emptied)))  # type: ignore[misc]
    return _largest_filled(plans, target, "opskip")


def vica(target: Target) -> Plan:
    """Every layer frozen, fewer and fewer layers read: those that read most stay."""
    scores = target.scores
    frozen = _with(target.dense, range(len(scores)), _frozen)
    order = sorted(range(len(scores)), key=lambda layer: scores[layer].read)
    return _largest_filled([_with(frozen, order[:count], lambda _: LayerPlan((), (), ())) for count in range(len(order))], target, "vica")


def _largest_filled(plans: Sequence[Plan], target: Target, name: str) -> Plan:
    """The first plan that fits, filled up with neurons; where no layer updates visual tokens, with heads that read. Raises YopoError."""
    smaller = [plan for plan in map(normalise, plans) if target.fits(plan)]
    require(plans[-1], target, f"the recipe {name}")
    reading = [(layer, "read") for layer, kept in enumerate(smaller[0].layers) if kept.read_heads]
    return fill_budget(smaller[0], target.limit, target.order, reading)


def _frozen(layer: LayerPlan) -> LayerPlan:
    return replace(layer, self_heads=(), neurons=())


def _with(plan: Plan, layers: Sequence[int], change: Callable[[LayerPlan], LayerPlan]) -> Plan:
    return replace(plan, layers=tuple(change(layer) if index in layers else layer for index, layer in enumerate(plan.layers)))
