"""What a plan costs, in FLOPs (one multiply-add = 2) and KV-cache bytes, counted from its numbers alone.

Dense visual FLOPs of a prefill (arXiv 2410.06169, section 3): `2 L (2 n d H D + 2 n d G D + 2 n^2 H D + 3 n d m)`, 7.634 T for
LLaVA-1.5-7B at n = 576. Pruned visual FLOPs count what is executed. Text reading visual keys and visual queries seeing text
count as text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from ..runtime.layout import head_offsets, layer_layout, layouts
from ..runtime.plan import Grid, LayerPlan, Plan, Sizes, normalise
from ..runtime.stride import offset_sizes

REFERENCE_TEXT_TOKENS = 64


@dataclass(frozen=True)
class LayerCost:
    """Visual FLOPs of one layer."""

    projections: int
    scores: int
    ffn: int

    @property
    def total(self) -> int:
        return self.projections + self.scores + self.ffn


@dataclass(frozen=True)
class Cost:
    """Visual and total prefill FLOPs of a plan and of the dense model; `total` adds `text_tokens` of text, without lm_head."""

    visual: int
    visual_dense: int
    total: int
    total_dense: int
    text_tokens: int

    @property
    def share(self) -> float:
        """Pruned visual FLOPs as a share of the dense model's: what `--budget` bounds."""
        return self.visual / self.visual_dense

    @property
    def total_share(self) -> float:
        return self.total / self.total_dense


def dense_flops(sizes: Sizes, tokens: int) -> int:
    """FLOPs of a dense prefill of `tokens` rows, attention scores counted over all pairs, without lm_head."""
    heads = sizes.num_attention_heads * sizes.head_dim
    kv_heads = sizes.num_key_value_heads * sizes.head_dim
    linear = tokens * sizes.hidden_size * (2 * heads + 2 * kv_heads + 3 * sizes.intermediate_size)
    return 2 * sizes.num_hidden_layers * (linear + 2 * tokens * tokens * heads)


def layer_cost(layer: LayerPlan, index: int, plan: Plan) -> LayerCost:
    """Visual FLOPs executed in layer `index` of a normalised plan."""
    sizes = plan.sizes
    tokens, width = plan.visual_tokens, 2 * sizes.hidden_size * sizes.head_dim
    held = tokens * len(layer.kv_heads(sizes)[0])
    held += sum(sum(read_tokens(plan.grids, layer.read_stride, offset)) for offset in head_offsets(layer, index, sizes).values())
    computed = tokens * len(layer.self_heads)
    if layer.kv_rank is None:
        made = width * (2 * held + computed)
    elif layer.ranked_queries:  # all tokens go there, once
        made = 2 * layer.kv_rank * (sizes.hidden_size * tokens + sizes.head_dim * (2 * held + computed))
    else:
        made = factored_flops(layer.kv_rank, held, index, layer, plan)
    projections = made + width * computed
    pairs = len(layer.self_heads) * visible_pairs(plan.grids, layer.window, plan.locality)
    return LayerCost(projections, 2 * 2 * sizes.head_dim * pairs, 2 * 3 * tokens * sizes.hidden_size * len(layer.neurons))


def factored_flops(rank: int, held: int, index: int, layer: LayerPlan, plan: Plan) -> int:
    """FLOPs of K and V of `held` rows (of a head) through `rank` dimensions: each offset's tokens go there once, and on to each of
    its heads."""
    there = sum(sum(read_tokens(plan.grids, part.stride, part.offset)) for part in layer_layout(layer, index, plan.sizes).visual_ranges)
    return 2 * rank * (plan.sizes.hidden_size * there + 2 * plan.sizes.head_dim * held)


def cost(plan: Plan, text_tokens: int = REFERENCE_TEXT_TOKENS) -> Cost:
    """The plan's cost on its reference grids."""
    plan = normalise(plan)
    visual = sum(layer_cost(layer, index, plan).total for index, layer in enumerate(plan.layers))
    visual_dense = dense_visual_flops(plan.sizes, plan.grids)
    total_dense = dense_flops(plan.sizes, plan.visual_tokens + text_tokens)
    return Cost(visual, visual_dense, total_dense - visual_dense + visual, total_dense, text_tokens)


def dense_visual_flops(sizes: Sizes, grids: Sequence[Grid]) -> int:
    """The denominator of `--budget`; several images: the sum, attention pairs counted within each."""
    return sum(dense_flops(sizes, grid.tokens) for grid in grids)


def read_tokens(grids: Sequence[Grid], stride: int, offset: int) -> tuple[int, ...]:
    """Visual tokens of each grid that a KV head at this offset holds."""
    return tuple(offset_sizes(grid.rows, grid.columns, grid.frames, stride)[offset] for grid in grids)


def most_read_tokens(grids: Sequence[Grid], stride: int) -> int:
    """Visual tokens of a prompt at the offset that has the most."""
    return max(sum(read_tokens(grids, stride, offset)) for offset in range(stride))


def visible_pairs(grids: Sequence[Grid], window: int | None, locality: str) -> int:
    """(query, key) pairs of visual tokens that may see each other: n^2 per image without a window, as the dense count has it."""
    if window is None:
        return sum(grid.tokens**2 for grid in grids)
    return sum(window_pairs(grid, window, locality) for grid in grids)


@cache
def window_pairs(grid: Grid, window: int, locality: str) -> int:
    """Visible pairs within one image or video. Earlier frames are seen through the whole square, the own one causally or not."""
    along_rows, along_columns = _near(grid.rows, window), _near(grid.columns, window)
    square = along_rows * along_columns
    # Half of the square without its centre comes before a query in row-major order, and the query sees itself.
    own = square if locality == "symmetric" else (square + grid.rows * grid.columns) // 2
    return grid.frames * own + grid.frames * (grid.frames - 1) // 2 * square


def _near(length: int, window: int) -> int:
    """Pairs (i, j) within 0..length-1 with |i - j| <= window // 2."""
    return sum(min(length, index + window // 2 + 1) - max(0, index - window // 2) for index in range(length))


def kv_cache_bytes(plan: Plan, grids: Sequence[Grid], text_tokens: int, element_bytes: int) -> int:
    """Bytes of K and V after a prefill of one prompt with these images and `text_tokens` of text.

    Heads are padded to the offset with the most tokens, so that a layer's cache is at most three rectangles.
    """
    plan = normalise(plan)
    entries = plan.sizes.num_hidden_layers * plan.sizes.num_key_value_heads * text_tokens
    for layout in layouts(plan):
        entries += layout.cached_own * sum(grid.tokens for grid in grids)
        entries += layout.read_only * most_read_tokens(grids, layout.read_stride)
    return 2 * entries * plan.sizes.head_dim * element_bytes
