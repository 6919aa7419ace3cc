"""What a plan costs, in FLOPs (one multiply-add = 2) and KV-cache bytes, counted from its numbers alone.

Dense visual FLOPs of a prefill (arXiv 2410.06169, section 3): `2 L (2 n d H D + 2 n d G D + 2 n^2 H D + 3 n d m)`, 7.634 T for
LLaVA-1.5-7B at n = 576. Pruned visual FLOPs count what is executed. Text reading visual keys and visual queries seeing text
count as text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from ..runtime.layout import layouts
from ..runtime.plan import Grid, LayerPlan, Plan, Sizes, normalise
from ..runtime.stride import shown_tokens

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


@dataclass(frozen=True)
class LayerCounts:
    """How many units of a layer visual tokens take part in: all that its cost depends on, beside grids and locality.

    KV heads are those that self heads need (`updated`) and those that text alone reads; `rank` None: whole projections.
    """

    updated: int
    read_only: int
    self_heads: int
    neurons: int
    window: int | None
    stride: int
    rank: int | None


def layer_cost(layer: LayerPlan, plan: Plan) -> LayerCost:
    """Visual FLOPs executed in a layer of a normalised plan."""
    updated, read_only = layer.kv_heads(plan.sizes)
    units = len(updated), len(read_only), len(layer.self_heads), len(layer.neurons)
    return counted_cost(LayerCounts(*units, layer.window, layer.read_stride, layer.kv_rank), plan)


def counted_cost(layer: LayerCounts, plan: Plan) -> LayerCost:
    """The same of counts, on the sizes, grids and locality of a plan."""
    sizes = plan.sizes
    tokens, shown = plan.visual_tokens, shown_count(plan.grids, layer.stride)
    computed = tokens * layer.self_heads
    made = 2 * (tokens * layer.updated + shown * layer.read_only) + computed  # K, V and queries of so many tokens, each of one head
    if layer.rank is None:
        projections = sizes.hidden_size * sizes.head_dim * (made + computed)
    else:  # tokens go through the rank once, for all heads
        through = layer.rank * (sizes.hidden_size * (tokens if layer.updated else shown) + sizes.head_dim * made)
        projections = through + sizes.hidden_size * sizes.head_dim * computed
    pairs = layer.self_heads * visible_pairs(plan.grids, layer.window, plan.locality)
    return LayerCost(2 * projections, 2 * 2 * sizes.head_dim * pairs, 2 * 3 * tokens * sizes.hidden_size * layer.neurons)


def cost(plan: Plan, text_tokens: int = REFERENCE_TEXT_TOKENS) -> Cost:
    """The plan's cost on its reference grids."""
    plan = normalise(plan)
    visual = sum(layer_cost(layer, plan).total for layer in plan.layers)
    visual_dense = dense_visual_flops(plan.sizes, plan.grids)
    total_dense = dense_flops(plan.sizes, plan.visual_tokens + text_tokens)
    return Cost(visual, visual_dense, total_dense - visual_dense + visual, total_dense, text_tokens)


def dense_visual_flops(sizes: Sizes, grids: Sequence[Grid]) -> int:
    """The denominator of `--budget`; several images: the sum, attention pairs counted within each."""
    return sum(dense_flops(sizes, grid.tokens) for grid in grids)


def shown_count(grids: Sequence[Grid], stride: int) -> int:
    """Visual tokens of a prompt that a stride shows."""
    return sum(len(shown_tokens(grid, stride)) for grid in grids)


def visible_pairs(grids: Sequence[Grid], window: int | None, locality: str) -> int:
    """(query, key) pairs of visual tokens that may see each other: n^2 per image without a window, as the dense count has it."""
    if window is None:
        return sum(grid.tokens**2 for grid in grids)
    return sum(window_pairs(grid, window, locality) for grid in grids)


@cache
def window_pairs(grid: Grid, window: int, locality: str) -> int:
    """Visible pairs within one image or video. Earlier frames are seen through the whole square, the frame itself causally or not."""
    along_rows, along_columns = _near(grid.rows, window), _near(grid.columns, window)
    square = along_rows * along_columns
    # Half of the square without its centre comes before a query in row-major order, and the query sees itself.
    same_frame = square if locality == "symmetric" else (square + grid.rows * grid.columns) // 2
    return grid.frames * same_frame + grid.frames * (grid.frames - 1) // 2 * square


def _near(length: int, window: int) -> int:
    """Pairs (i, j) within 0..length-1 with |i - j| <= window // 2."""
    return sum(min(length, index + window // 2 + 1) - max(0, index - window // 2) for index in range(length))


def kv_cache_bytes(plan: Plan, grids: Sequence[Grid], text_tokens: int, element_bytes: int) -> int:
    """Bytes of K and V after a prefill of one prompt with these images and `text_tokens` of text."""
    plan = normalise(plan)
    entries = plan.sizes.num_hidden_layers * plan.sizes.num_key_value_heads * text_tokens
    for layout in layouts(plan):
        entries += layout.cached_self_kv_heads * sum(grid.tokens for grid in grids)
        entries += layout.read_only_kv_heads * shown_count(grids, layout.read_stride)
    return 2 * entries * plan.sizes.head_dim * element_bytes
