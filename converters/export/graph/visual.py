"""Visual rows as ONNX nodes: only the heads, neurons and neighbours of the plan, in the leading parts of the weights."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ...runtime.layout import LayerLayout
from ...runtime.plan import Grid
from ...runtime.stride import shown_tokens
from ...runtime.windows import Strips, strips
from .builder import Graph
from .heads import Pair, attend, by_head
from .layer_products import LayerProducts
from .masks import additive
from .slots import Slot
from .weights import Weight


@dataclass(frozen=True)
class RowPlaces:
    """Where the rows of a call stand: every sample has `images` `[1]` images, each of the same `grids` one after the other, which begin at
    `starts` `[batch, images]`.

    Slots are int64 places in the padded sequence, `text_slots` `[batch, text rows]` and `visual_slots` `[batch, visual rows]`; `*_valid`
    tell which rows are no padding: an image that a sample does not have stands in its padding.
    """

    grids: tuple[Grid, ...]
    batch: ir.Value
    images: ir.Value
    starts: ir.Value
    text_slots: ir.Value
    text_valid: ir.Value
    visual_slots: ir.Value
    visual_valid: ir.Value

    @property
    def tokens(self) -> int:
        """Of one image."""
        return sum(grid.tokens for grid in self.grids)


@dataclass(frozen=True)
class VisualHeads:
    """Visual rows in one layer: rotated queries in the heads that they compute (None: none), and K and V `[batch, rows, heads,
    head_dim]` in the heads that hold them, by stride: all rows, or those that it shows."""

    queries: ir.Value | None
    kv: dict[int, Pair]


@dataclass
class VisualRows:
    """Visual rows `[batch * visual rows, hidden]` of one call. While they do not change, what is made of them is made once."""

    graph: Graph
    scene: RowPlaces
    rows: ir.Value
    rotary: Pair
    epsilon: float
    hidden: int
    _unit: ir.Value | None = None
    _shown: dict[int, ir.Value] = field(default_factory=dict)
    _turns: dict[int, Pair] = field(default_factory=dict)
    _masks: dict[tuple[Grid, int] | None, ir.Value] = field(default_factory=dict)

    def update(self, change: ir.Value) -> None:
        """Add to the rows, which are new ones from now on."""
        self.rows = self.graph.op("Add", self.rows, change)
        self._unit = None
        self._shown = {}

    def normalised(self, norm: Weight) -> ir.Value:
        """All rows after an RMS norm."""
        return self.graph.op("Mul", self.unit, self.graph.weight(norm))

    @property
    def unit(self) -> ir.Value:
        """The rows divided by their root mean square: norms of frozen layers differ by their weights alone."""
        if self._unit is None:
            ones = self.graph.constant(np.ones(self.hidden, self.graph.numpy_dtype))
            self._unit = self.graph.normalised(self.rows, ones, self.epsilon)
        return self._unit

    def normalised_shown(self, norm: Weight, stride: int) -> ir.Value:
        """The normalised rows that a stride shows, `[batch * images * tokens, hidden]`."""
        if stride not in self._shown:
            self._shown[stride] = self.shown(self.unit, stride, self.hidden)
        return self.graph.op("Mul", self._shown[stride], self.graph.weight(norm))

    def turn(self, stride: int) -> Pair:
        """Cosine and sine of the rows that a stride shows, `[batch, rows, 1, frequencies]`."""
        if stride == 1:
            return self.graph.unsqueeze(self.rotary[0], 2), self.graph.unsqueeze(self.rotary[1], 2)
        if stride not in self._turns:
            graph, batch = self.graph, self.scene.batch
            width = graph.axis(self.rotary[0], -1)
            cosine, sine = (graph.reshape(self.shown(part, stride, width), batch, -1, 1, width) for part in self.rotary)
            self._turns[stride] = cosine, sine
        return self._turns[stride]

    def shown(self, rows: ir.Value, stride: int, width: ir.Value | int) -> ir.Value:
        """Of rows of all tokens those that a stride shows, `[batch * images * tokens, width]`."""
        tokens = self.graph.reshape(rows, -1, self.scene.tokens, width)
        return self.graph.reshape(take_shown(self.graph, tokens, self.scene.grids, stride, 1), -1, width)

    def project(self, layer: LayerProducts, layout: LayerLayout) -> VisualHeads:
        """Products of one layer: K and V in the heads that hold visual rows, queries in the heads that these compute."""
        norm, queries, ranked, kv = layer.model.norm(layer.index, "input_layernorm"), None, None, dict[int, Pair]()
        if layout.computing:
            name, rows = layer.model.visual_part(layer.index, "query"), self.normalised(norm)
            if layout.ranked_queries:
                rows = ranked = layer.inner(rows)
            weight = layer.kept_queries(layout) if ranked is None else layer.model.projection(layer.index, name)
            queries = layer.turned("query", layer.heads(name, rows, weight), self.turn(1))
        for part in layout.visual_ranges:
            if ranked is None:
                rows = layer.inner(self.normalised(norm) if part.stride == 1 else self.normalised_shown(norm, part.stride))
            else:
                rows = ranked if part.stride == 1 else self.shown(ranked, part.stride, layout.kv_rank or 0)
            names = (layer.model.visual_part(layer.index, name) for name in ("key", "value"))
            key, value = (layer.heads(name, rows, layer.first_heads(name, part.first, part.last)) for name in names)
            kv[part.stride] = layer.turned("key", key, self.turn(part.stride)), value
        return VisualHeads(queries, kv)

    def rows_of(self, slot: Slot, layout: LayerLayout, seen: VisualHeads) -> Pair | None:
        """The visual part of a slot, `[batch, rows, heads, head_dim]`."""
        stride = slot.kind.stride
        if stride not in seen.kv:
            return None
        first, last = layout.range_of(stride).first, layout.range_of(stride).last
        heads = [head - first for head in slot.kind.kv_heads]
        key, value = (self.graph.take(part, heads, 2, last - first) for part in seen.kv[stride])
        return key, value

    def attend(self, layer: LayerProducts, layout: LayerLayout, seen: VisualHeads, keys: ir.Value, values: ir.Value) -> None:
        """Update the rows by what they see of one another and of text.

        `keys` and `values` `[batch, text rows, KV heads, head_dim]` are the text's.
        """
        if seen.queries is None:
            return
        sizes = layer.model.sizes
        shared = [head // sizes.group for head in layout.computing]
        visual = [self.graph.take(part, shared, 2, layout.range_of(1).last) for part in seen.kv[1]]
        text = [self.graph.take(part, shared, 2, sizes.num_key_value_heads) for part in (keys, values)]
        if layout.window is None:
            output = self._full(seen.queries, visual, text, sizes.head_dim)
        else:
            first, parts = 0, []
            for grid in self.scene.grids:
                parts.append(self._strips(seen.queries, visual, text, layer, layout.window, len(shared), grid, first))
                first += grid.tokens
            output = self.graph.concat(parts, 1)
        self.update(layer.output(output, layout))

    def _full(self, queries: ir.Value, visual: Sequence[ir.Value], text: Sequence[ir.Value], size: int) -> ir.Value:
        """Every earlier key, other images included."""
        graph = self.graph
        key, value = (by_head(graph, graph.op("Concat", *parts, axis=1)) for parts in zip(visual, text, strict=True))
        output = attend(graph, by_head(graph, queries), key, value, self._earlier(), size)
        return by_head(graph, output)

    def _earlier(self) -> ir.Value:
        """Mask `[batch, 1, visual rows, visual and text rows]` of earlier keys; padding sees itself."""
        if None not in self._masks:
            graph, scene = self.graph, self.scene
            slots = graph.unsqueeze(graph.op("Concat", scene.visual_slots, scene.text_slots, axis=1), 1, 2)
            valid = graph.unsqueeze(graph.op("Concat", scene.visual_valid, scene.text_valid, axis=1), 1, 2)
            queries = graph.unsqueeze(scene.visual_slots, 1, 3)
            before = graph.op("And", graph.op("LessOrEqual", slots, queries), valid)
            self._masks[None] = additive(graph, graph.op("Or", before, graph.op("Equal", slots, queries)))
        return self._masks[None]

    def _strips(
        self, queries: ir.Value, visual: Sequence[ir.Value], text: Sequence[ir.Value], layer: LayerProducts, window: int, heads: int,
        grid: Grid, first: int,
    ) -> ir.Value:  # fmt: skip
        """What the windows of a grid, whose tokens are an image's from the `first` on, reach, and the text before the image: strips of
        all images together, `[images, tokens of the grid, heads, head_dim]`."""
        graph, plan = self.graph, layer.model.plan
        assert plan is not None
        cut = strips(grid, window, plan.locality)
        count, rows = cut.queries.shape
        size = layer.model.sizes.head_dim

        def blocks(part: ir.Value, index: Sequence[int]) -> ir.Value:
            tokens = graph.reshape(part, -1, self.scene.tokens, heads, size)
            places = [first + token for token in index]
            return graph.reshape(graph.take(tokens, places, 1, self.scene.tokens), -1, len(index) // count, heads, size)

        key, value = (by_head(graph, self._reached(*parts, cut, heads, size, first)) for parts in zip(text, visual, strict=True))
        mask = self._strip_mask(grid, window, plan.locality)
        output = attend(graph, by_head(graph, blocks(queries, cut.queries.flatten().tolist())), key, value, mask, size)
        ordered = graph.reshape(by_head(graph, output), -1, count * rows, heads, size)
        return graph.take(ordered, cut.places.tolist(), 1, count * rows)

    def _reached(self, text: ir.Value, visual: ir.Value, cut: Strips, heads: int, size: int, first: int) -> ir.Value:
        """K or V of each strip, `[batch * images * strips, text rows and reach, heads, head_dim]`, by one gather."""
        graph, scene = self.graph, self.scene
        count, length = len(cut.keys), graph.axis(scene.text_slots, 1)
        before = graph.expand(graph.unsqueeze(text, 1), 1, scene.images, 1, 1, 1)
        whole = graph.op("Concat", before, graph.reshape(visual, scene.batch, scene.images, scene.tokens, heads, size), axis=2)
        index = graph.op(
            "Concat",
            graph.expand(graph.unsqueeze(graph.range(length), 0), count, 1),
            graph.op("Add", length, first + cut.keys.numpy()),
            axis=1,
        )
        output = graph.op("Gather", graph.reshape(whole, -1, graph.op("Add", length, [scene.tokens]), heads, size), index, axis=1)
        return graph.reshape(output, -1, graph.op("Add", length, [cut.keys.shape[1]]), heads, size)

    def _strip_mask(self, grid: Grid, window: int, locality: str) -> ir.Value:
        """Mask `[batch * images * strips, 1, rows, text rows and reach]`: text before the image, and the windows."""
        if (grid, window) not in self._masks:
            graph, scene = self.graph, self.scene
            seen = strips(grid, window, locality).mask
            count, rows, reach = seen.shape
            before = graph.op("Less", graph.unsqueeze(scene.text_slots, 1), graph.unsqueeze(scene.starts, 2))
            before = graph.unsqueeze(graph.op("And", before, graph.unsqueeze(scene.text_valid, 1)), 2, 3)
            text = graph.expand(before, 1, 1, count, rows, 1)
            near = graph.expand(graph.constant(seen.numpy()[None, None]), scene.batch, scene.images, 1, 1, 1)
            allowed = graph.op("Concat", text, near, axis=-1)
            length = graph.op("Add", graph.axis(scene.text_slots, 1), [reach])
            self._masks[grid, window] = graph.reshape(additive(graph, allowed), -1, 1, rows, length)
        return self._masks[grid, window]

    def ffn(self, layer: LayerProducts, layout: LayerLayout) -> None:
        """Update the rows by their first neurons."""
        if layout.neurons:
            self.update(layer.neurons(self.normalised(layer.model.norm(layer.index, "post_attention_layernorm")), layout.neurons))


def take_shown(graph: Graph, tokens: ir.Value, grids: Sequence[Grid], stride: int, axis: int) -> ir.Value:
    """Of an axis of the tokens of grids, one after the other, those that a stride shows."""
    counts = [grid.tokens for grid in grids]
    firsts = [sum(counts[:place]) for place in range(len(counts))]
    shown = [first + token for grid, first in zip(grids, firsts, strict=True) for token in shown_tokens(grid, stride)]
    return graph.take(tokens, shown, axis, sum(counts))
