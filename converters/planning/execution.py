"""What the runtime executes in a prefill, counted from its shapes: exactly what PyTorch's FLOP counter must find.

Linear products are the plan's cost to the last FLOP. Attention kernels compute whole rectangles, masked corners included; what a
strip's rectangle has beyond the visible pairs is the surplus that lies outside the budget.
"""

from collections.abc import Sequence

from ..runtime.layout import TEXT_ONLY, LayerLayout, layouts
from ..runtime.plan import Grid, Plan, normalise
from ..runtime.windows import strips
from .cost import layer_cost, shown_count


def linear_flops(plan: Plan, text_tokens: int) -> int:
    """FLOPs of all linear products of one prompt with the plan's reference grids, without lm_head."""
    plan = normalise(plan)
    sizes = plan.sizes
    weights = 2 * (sizes.num_attention_heads + sizes.num_key_value_heads) * sizes.head_dim + 3 * sizes.intermediate_size
    text = 2 * text_tokens * sizes.hidden_size * weights * sizes.num_hidden_layers
    costs = [layer_cost(layer, plan) for layer in plan.layers]
    return text + sum(cost.projections + cost.ffn for cost in costs)


def attention_flops(plan: Plan, text_tokens: int, leading: int = 0, skipping: bool = False) -> int:
    """FLOPs of all attention rectangles, text and visual, of one prompt with the plan's reference grids.

    `leading` of the text tokens come before the first visual one and are a square of their own where text reads. The FLOP counter
    takes a causal square as a whole; a kernel that is `skipping` computes half of it.
    """
    plan = normalise(plan)
    pairs = (_layer_pairs(layout, plan, text_tokens, leading, skipping) for layout in layouts(plan))
    return sum(pairs) * 2 * 2 * plan.sizes.head_dim


def _layer_pairs(layout: LayerLayout, plan: Plan, text_tokens: int, leading: int, skipping: bool) -> int:
    """(query, key) pairs of one layer's rectangles, summed over query heads."""
    kept, pairs = sum(layout.computes), 0
    for kind in layout.head_kinds:
        first = leading if kind.stride != TEXT_ONLY and leading < text_tokens else 0
        square = first * (first + 1) // 2 if skipping else first * first
        pairs += len(kind.query_heads) * (square + (text_tokens - first) * _keys(kind.stride, plan.grids, text_tokens))
    if not kept:
        return pairs
    if layout.window is None:
        length = plan.visual_tokens + text_tokens
        return pairs + kept * (length * (length + 1) // 2 if skipping else length * length)
    for grid in plan.grids:
        count, rows, reach = strips(grid, layout.window, plan.locality).mask.shape
        pairs += kept * count * rows * (text_tokens + reach)
    return pairs


def _keys(stride: int, grids: Sequence[Grid], text_tokens: int) -> int:
    if stride == TEXT_ONLY:
        return text_tokens
    return text_tokens + shown_count(grids, stride)
