"""The recipe `yopo`: the paper's (arXiv 2410.06169)."""

from dataclasses import replace

from ...runtime.plan import LayerPlan, Plan
from ..importance import importance_order
from .target import Path, Target, by_layer, first_to_reach, follow, require

WINDOW = 5  # the paper's `attncut_w`
EXEMPT_LAYERS = 2  # the paper keeps all heads of layers 0 and 1


def yopo(target: Target, window: int | None = WINDOW, locality: str = "symmetric") -> Plan:
    """The paper's recipe (arXiv 2410.06169): heads that read and compute alike, chosen by the vote on their ratios; all of
    layers 0 and 1; a symmetric window of 5 by default; visual depth L/2; the first neurons, unranked; shares of both
    falling together.

    Where half of the layers cannot use the budget up, the depth is the smallest that can, without a window if none can. Where
    it cannot be met with all heads of layers 0 and 1, they are no longer exempt. Raises YopoError below one head.
    """
    target = replace(target, order=replace(target.order, neurons=importance_order(None, target.sizes).neurons))
    layers = target.sizes.num_hidden_layers
    half = max(layers // 2, min(2, layers))  # in a depth of one nothing is updated
    settings = [(depth, window) for depth in range(half, layers + 1)] + [(layers, None)]
    for exempt in (EXEMPT_LAYERS, 0):
        path = first_to_reach(target, [_keeping(target, depth, window, locality, exempt) for depth, window in settings])
        plan = follow(path, target)
        if target.room(plan) == 0:
            break
    require(path.at(0), target, "the recipe yopo")
    return plan


def _keeping(target: Target, depth: int, window: int | None, locality: str, exempt: int) -> Path:
    """The paper's heads down to a depth, one more at a time by ratio; all heads of the exempt layers throughout.

    Without exemption the path starts with one head, and layer 0 comes last: nothing can be updated before it.
    """
    sizes = target.sizes
    heads = range(sizes.num_attention_heads)
    always = [(layer, head) for layer in range(min(exempt, depth)) for head in heads]
    voted = [(layer, head) for layer in range(min(exempt, depth), depth) for head in heads]
    voted.sort(key=lambda unit: (unit[0] == 0, -target.order.ratios[unit[0]][unit[1]], unit[1], unit[0]))
    first = 0 if always else 1

    def at(step: int) -> Plan:
        kept = by_layer(always + voted[: first + step], sizes.num_hidden_layers)
        return Plan(sizes, tuple(LayerPlan(heads, heads, (), window) for heads in kept), target.grids, locality)

    return Path(len(voted) - first, at)
