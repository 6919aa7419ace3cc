"""The least time that a machine could take for a plan: every product at the matrix rate or at the memory's, whichever is slower.

FLOPs and bytes are counted from the plan's shapes: weights read once, rows read and written once. A plan's products are those the
runtime computes; the dense model's are those of transformers, the last layer's visual rows included.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..planning.cost import kv_cache_bytes, shown_count
from ..planning.execution import attention_flops
from ..runtime.call import FFN_ROWS
from ..runtime.layout import TEXT_ONLY, LayerLayout, layouts
from ..runtime.plan import Plan, Sizes, normalise
from .ceiling import Ceiling


@dataclass(frozen=True)
class Product:
    """`rows` times a weight `[outer, inner]`."""

    rows: int
    inner: int
    outer: int

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.inner * self.outer

    def bytes(self, element: int) -> int:
        return element * (self.rows * (self.inner + self.outer) + self.inner * self.outer)


@dataclass(frozen=True)
class Work:
    """What one prefill takes: products, attention as a whole, in elements of `element` bytes."""

    products: tuple[Product, ...]
    attention_flops: int
    attention_bytes: int
    element: int

    @property
    def flops(self) -> int:
        return sum(product.flops for product in self.products) + self.attention_flops

    def seconds(self, ceiling: Ceiling) -> float:
        linear = sum(ceiling.seconds(product.flops, product.bytes(self.element)) for product in self.products)
        return linear + ceiling.seconds(self.attention_flops, self.attention_bytes)


def dense_work(plan: Plan, text: int, batch: int, vocabulary: int, element: int) -> Work:
    """A prefill of `batch` prompts by the dense model, causal attention counted over half of the square."""
    sizes, tokens = plan.sizes, plan.visual_tokens + text
    heads, kv_heads = sizes.num_attention_heads * sizes.head_dim, sizes.num_key_value_heads * sizes.head_dim
    width, neurons = sizes.hidden_size, sizes.intermediate_size
    shapes = [(width, heads + 2 * kv_heads), (heads, width), (width, 2 * neurons), (neurons, width)]
    layer = [Product(batch * tokens, inner, outer) for inner, outer in shapes]
    attention = sizes.num_hidden_layers * batch * 2 * heads * tokens * (tokens + 1)
    bytes_moved = 2 * sizes.num_hidden_layers * batch * tokens * (heads + kv_heads) * element
    return Work((*layer * sizes.num_hidden_layers, Product(batch, width, vocabulary)), attention, bytes_moved, element)


def pruned_work(plan: Plan, text: int, batch: int, vocabulary: int, element: int, refitted: Sequence[int] = ()) -> Work:
    """A prefill of `batch` prompts under the plan: text and visual rows share the kept part of every weight, but for K and V of
    `refitted` layers."""
    plan = normalise(plan)
    by_layer = [_layer(layout, plan, batch, text, index in refitted) for index, layout in enumerate(layouts(plan))]
    products = [product for layer in by_layer for product in layer if product.rows and product.outer]
    attention = batch * attention_flops(plan, text, leading=text // 2, skipping=True)
    bytes_moved = batch * (kv_cache_bytes(plan, plan.grids, text, element) + 2 * element * text * _width(plan.sizes) * len(plan.layers))
    return Work((*products, Product(batch, plan.sizes.hidden_size, vocabulary)), attention, bytes_moved, element)


def working_bytes(plan: Plan, text: int, batch: int, element: int, pruned: bool) -> int:
    """Bytes that a prefill holds at once where it is widest, beside K and V: the picture's features, the rows, what a layer makes of them.

    The dense model keeps the embedded sequence too, and is widest in a feed-forward (normalised rows, three of neurons). A pruned one
    holds the unit and the normalised rows all along; it is widest in one of its layers' reading, attention or feed-forward. What a
    library lays out for its products is not counted.
    """
    sizes, rows, visual = plan.sizes, batch * text, batch * plan.visual_tokens
    both, hidden = rows + visual, sizes.hidden_size
    if not pruned:
        return element * (visual * hidden + both * (3 * hidden + 3 * sizes.intermediate_size))
    widest = max(_widest(layout, sizes, rows, visual) for layout in layouts(normalise(plan)))
    return element * (2 * (visual + both) * hidden + widest)


def _widest(layout: LayerLayout, sizes: Sizes, rows: int, visual: int) -> int:
    """Numbers that one layer makes at most at once of all rows: keys, values and outputs of visual
    attention, queries, neurons."""
    both, kept = rows + visual, sum(layout.computes)
    attention = 2 * both * layout.self_kv_heads + (4 * visual + both) * kept
    neurons = max(3 * min(both, FFN_ROWS) * layout.neurons, 3 * rows * (sizes.intermediate_size - layout.neurons))
    return max(attention * sizes.head_dim, neurons)


def decode_bytes(plan: Plan, text: int, batch: int, vocabulary: int, element: int) -> int:
    """Bytes that one decoding step has to read: the language model's weights and its head once, K and V of each sample."""
    sizes = plan.sizes
    heads = 2 * (sizes.num_attention_heads + sizes.num_key_value_heads) * sizes.head_dim
    weights = sizes.num_hidden_layers * sizes.hidden_size * (heads + 3 * sizes.intermediate_size) + sizes.hidden_size * vocabulary
    return weights * element + batch * kv_cache_bytes(plan, plan.grids, text, element)


def refitted_bytes(plan: Plan, refitted: Sequence[int], element: int) -> int:
    """Bytes of the projections that visual tokens of these layers have for themselves."""
    numbers, hidden = 0, plan.sizes.hidden_size
    for layout in (layout for index, layout in enumerate(layouts(normalise(plan))) if index in refitted):
        heads = 2 * layout.visual_kv_heads + (len(layout.computing) if layout.ranked_queries else 0)
        numbers += (layout.kv_rank or 0) * (hidden + 1) + heads * plan.sizes.head_dim * ((layout.kv_rank or hidden) + 1)
    return element * numbers


def _width(sizes: Sizes) -> int:
    return sizes.num_attention_heads * sizes.head_dim


def _layer(layout: LayerLayout, plan: Plan, batch: int, text: int, refitted: bool) -> Iterator[Product]:
    sizes = plan.sizes
    size, width, rows, visual = sizes.head_dim, sizes.hidden_size, batch * text, batch * plan.visual_tokens
    kept, both = len(layout.computing), rows + visual
    if layout.ranked_queries and layout.kv_rank:
        yield from (Product(visual, width, layout.kv_rank), Product(visual, layout.kv_rank, kept * size))
        yield Product(rows, width, sizes.num_attention_heads * size)
    else:
        yield from (Product(both, width, kept * size), Product(rows, width, (sizes.num_attention_heads - kept) * size))
    if refitted:
        yield Product(rows, width, 2 * len(layout.kv_order) * size)
    for part in layout.ranges:
        rows_read = shown_count(plan.grids, part.stride) if part.stride != TEXT_ONLY else 0
        rank = layout.kv_rank if rows_read else None
        yield Product(batch * ((0 if refitted else text) + rows_read), rank or width, 2 * (part.last - part.first) * size)
        if rank and not layout.ranked_queries:
            yield Product(batch * rows_read, width, rank)
    yield from (Product(both if kept else 0, kept * size, width), Product(rows, (sizes.num_attention_heads - kept) * size, width))
    rest = sizes.intermediate_size - layout.neurons
    if layout.neurons:
        yield from (Product(both, width, 2 * layout.neurons), Product(both, layout.neurons, width))
    if rest:
        yield from (Product(rows, width, 2 * rest), Product(rows, rest, width))
