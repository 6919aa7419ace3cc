"""Visual rows as ONNX nodes: only the heads, neurons and neighbours of the plan, in the leading parts of the weights."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ...runtime.attention import Strips, strips
from ...runtime.layout import TEXT_ONLY, LayerLayout
from ...runtime.plan import Grid
from ...runtime.token_split import token_offsets
from .builder import Graph
from .heads import Pair, attend, by_head, rotate
from .masks import additive
from .slots import Slot
from .weights import Weight

if TYPE_CHECKING:
    from .decoder import Layer


@dataclass(frozen=True)
class Scene:
    """Where the rows of a call stand: every sample has `images` `[1]` images of one grid, which begin at `starts` `[batch, images]`.

    Slots are int64 places in the padded sequence, `text_slots` `[batch, text rows]` and `visual_slots` `[batch, visual rows]`; `*_valid`
    tell which rows are no padding: an image that a sample does not have stands in its padding.
    """

    grid: Grid
    batch: ir.Value
    images: ir.Value
    starts: ir.Value
    text_slots: ir.Value
    text_valid: ir.Value
    visual_slots: ir.Value
    visual_valid: ir.Value


@dataclass(frozen=True)
class Seen:
    """Visual rows in one layer: rotated queries in the heads that they compute (None: none), and K and V `[batch, rows, heads,
    head_dim]` in the heads that hold them, by stride: all rows, or those at each head's offset."""

    queries: ir.Value | None
    held: dict[int, Pair]


@dataclass
class Visual:
    """Visual rows `[batch * visual rows, hidden]` of one call. While they do not change, what is made of them is made once."""

    graph: Graph
    scene: Scene
    rows: ir.Value
    rotary: Pair
    epsilon: float
    hidden: int
    _unit: ir.Value | None = None
    _offsets: dict[tuple[int, int], ir.Value] = field(default_factory=dict)
    _turns: dict[tuple[int, int], Pair] = field(default_factory=dict)
    _masks: dict[int | None, ir.Value] = field(default_factory=dict)

    def update(self, change: ir.Value) -> None:
        """Add to the rows, which are new ones from now on."""
        self.rows = self.graph.op("Add", self.rows, change)
        self._unit = None
        self._offsets = {}

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

    def normalised_at(self, norm: Weight, stride: int, offset: int) -> ir.Value:
        """The normalised rows at one offset, `[batch * images * most tokens, hidden]`."""
        if (stride, offset) not in self._offsets:
            self._offsets[stride, offset] = self._at_offset(self.unit, stride, offset, self.hidden)
        return self.graph.op("Mul", self.graph.reshape(self._offsets[stride, offset], -1, self.hidden), self.graph.weight(norm))

    def turn(self, stride: int, offset: int) -> Pair:
        """Cosine and sine of the rows at one offset, `[batch, rows, 1, frequencies]`."""
        if stride == 1:
            return self.graph.unsqueeze(self.rotary[0], 2), self.graph.unsqueeze(self.rotary[1], 2)
        if (stride, offset) not in self._turns:
            graph, batch = self.graph, self.scene.batch
            width = graph.axis(self.rotary[0], -1)
            parts = (self._at_offset(part, stride, offset, width) for part in self.rotary)
            cosine, sine = (graph.reshape(part, batch, -1, 1, width) for part in parts)
            self._turns[stride, offset] = cosine, sine
        return self._turns[stride, offset]

    def _at_offset(self, rows: ir.Value, stride: int, offset: int, width: ir.Value | int) -> ir.Value:
        """`[batch * images, most tokens, width]`; rows that an offset of fewer tokens lacks are the first one's, and are never seen."""
        index = [max(token, 0) for token in offset_tokens(self.scene.grid, stride)[offset]]
        return self.graph.op("Gather", self.graph.reshape(rows, -1, self.scene.grid.tokens, width), index, axis=1)

    def project(self, layer: "Layer", layout: LayerLayout) -> Seen:
        """Products of one layer: K and V in the heads that hold visual rows, queries in the heads that these compute."""
        norm, queries, ranked, parts = layer.norm("input_layernorm"), None, None, dict[int, list[Pair]]()
        if layout.computing:
            own, rows = layer.model.visual_part(layer.index, "query"), self.normalised(norm)
            if layout.ranked_queries:
                rows = ranked = layer.inner(rows)
            weight = layer.kept_queries(layout) if ranked is None else layer.model.projection(layer.index, own)
            queries = rotate(self.graph, layer.heads(own, rows, weight), self.turn(1, 0), layer.model)
        for part in layout.ranges:
            if part.stride == TEXT_ONLY:
                continue
            if ranked is None:
                rows = layer.inner(self.normalised(norm) if part.stride == 1 else self.normalised_at(norm, part.stride, part.offset))
            elif part.stride == 1:
                rows = ranked
            else:
                width = layout.kv_rank or 0
                rows = self.graph.reshape(self._at_offset(ranked, part.stride, part.offset, width), -1, width)
            names = (layer.model.visual_part(layer.index, name) for name in ("key", "value"))
            key, value = (layer.heads(name, rows, layer.first_heads(name, part.first, part.last)) for name in names)
            turned = rotate(self.graph, key, self.turn(part.stride, part.offset), layer.model)
            parts.setdefault(part.stride, []).append((turned, value))
        return Seen(queries, {stride: self._joined(pairs) for stride, pairs in parts.items()})

    def _joined(self, pairs: list[Pair]) -> Pair:
        """The heads of all pairs."""
        return self.graph.concat([key for key, _ in pairs], 2), self.graph.concat([value for _, value in pairs], 2)

    def held(self, slot: Slot, layout: LayerLayout, seen: Seen) -> Pair | None:
        """The visual part of a slot, `[batch, rows, heads, head_dim]`."""
        stride = slot.kind.stride
        if stride not in seen.held:
            return None
        first, count = layout.first(stride), sum(part.last - part.first for part in layout.ranges if part.stride == stride)
        key, value = (self.graph.take(part, [head - first for head in slot.kind.kv_heads], 2, count) for part in seen.held[stride])
        return key, value

    def attend(self, layer: "Layer", layout: LayerLayout, seen: Seen, keys: ir.Value, values: ir.Value) -> None:
        """Update the rows by their own attention; `keys` and `values` `[batch, text rows, KV heads, head_dim]` are the text's."""
        if seen.queries is None:
            return
        sizes = layer.model.sizes
        shared = [head // sizes.group for head in layout.computing]
        held = sum(part.last - part.first for part in layout.ranges if part.stride == 1)
        own = [self.graph.take(part, shared, 2, held) for part in seen.held[1]]
        text = [self.graph.take(part, shared, 2, sizes.num_key_value_heads) for part in (keys, values)]
        if layout.window is None:
            found = self._full(seen.queries, own, text, sizes.head_dim)
        else:
            found = self._strips(seen.queries, own, text, layer, layout.window, len(shared))
        self.update(layer.output(found, layout))

    def _full(self, queries: ir.Value, own: Sequence[ir.Value], text: Sequence[ir.Value], size: int) -> ir.Value:
        """Every earlier key, other images included."""
        graph = self.graph
        key, value = (by_head(graph, graph.op("Concat", *parts, axis=1)) for parts in zip(own, text, strict=True))
        found = attend(graph, by_head(graph, queries), key, value, self._earlier(), size)
        return by_head(graph, found)

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
        self, queries: ir.Value, own: Sequence[ir.Value], text: Sequence[ir.Value], layer: "Layer", window: int, heads: int
    ) -> ir.Value:  # fmt: skip
        """What the windows of the grid reach, and the text before the image: strips of all images together."""
        graph, plan, grid = self.graph, layer.model.plan, self.scene.grid
        assert plan is not None
        cut = strips(grid, window, plan.locality)
        count, rows = cut.queries.shape
        size = layer.model.sizes.head_dim

        def blocks(part: ir.Value, index: Sequence[int]) -> ir.Value:
            tokens = graph.reshape(part, -1, grid.tokens, heads, size)
            return graph.reshape(graph.take(tokens, index, 1, grid.tokens), -1, len(index) // count, heads, size)

        key, value = (by_head(graph, self._reached(*parts, cut, heads, size)) for parts in zip(text, own, strict=True))
        mask = self._strip_mask(window, plan.locality)
        found = attend(graph, by_head(graph, blocks(queries, cut.queries.flatten().tolist())), key, value, mask, size)
        ordered = graph.reshape(by_head(graph, found), -1, count * rows, heads, size)
        return graph.take(ordered, cut.places.tolist(), 1, count * rows)

    def _reached(self, text: ir.Value, own: ir.Value, cut: Strips, heads: int, size: int) -> ir.Value:
        """K or V of each strip, `[batch * images * strips, text rows and reach, heads, head_dim]`, by one gather."""
        graph, scene = self.graph, self.scene
        count, length = len(cut.keys), graph.axis(scene.text_slots, 1)
        before = graph.expand(graph.unsqueeze(text, 1), 1, scene.images, 1, 1, 1)
        whole = graph.op("Concat", before, graph.reshape(own, scene.batch, scene.images, scene.grid.tokens, heads, size), axis=2)
        index = graph.op(
            "Concat", graph.expand(graph.unsqueeze(graph.range(length), 0), count, 1), graph.op("Add", length, cut.keys.numpy()), axis=1
        )
        found = graph.op("Gather", graph.reshape(whole, -1, graph.op("Add", length, [scene.grid.tokens]), heads, size), index, axis=1)
        return graph.reshape(found, -1, graph.op("Add", length, [cut.keys.shape[1]]), heads, size)

    def _strip_mask(self, window: int, locality: str) -> ir.Value:
        """Mask `[batch * images * strips, 1, rows, text rows and reach]`: text before the image, and the windows."""
        if window not in self._masks:
            graph, scene = self.graph, self.scene
            seen = strips(scene.grid, window, locality).mask
            count, rows, reach = seen.shape
            before = graph.op("Less", graph.unsqueeze(scene.text_slots, 1), graph.unsqueeze(scene.starts, 2))
            before = graph.unsqueeze(graph.op("And", before, graph.unsqueeze(scene.text_valid, 1)), 2, 3)
            text = graph.expand(before, 1, 1, count, rows, 1)
            near = graph.expand(graph.constant(seen.numpy()[None, None]), scene.batch, scene.images, 1, 1, 1)
            allowed = graph.op("Concat", text, near, axis=-1)
            length = graph.op("Add", graph.axis(scene.text_slots, 1), [reach])
            self._masks[window] = graph.reshape(additive(graph, allowed), -1, 1, rows, length)
        return self._masks[window]

    def ffn(self, layer: "Layer", layout: LayerLayout) -> None:
        """Update the rows by their first neurons."""
        if layout.neurons:
            self.update(layer.neurons(self.normalised(layer.norm("post_attention_layernorm")), layout.neurons))


def offset_tokens(grid: Grid, stride: int) -> list[list[int]]:
    """The tokens at each offset of an image, all lists as long as the longest: -1 for what is not there."""
    offset = token_offsets(grid, stride)
    tokens = [[token for token, one in enumerate(offset) if one == number] for number in range(stride)]
    longest = max(map(len, tokens))
    return [[*own, *[-1] * (longest - len(own))] for own in tokens]
