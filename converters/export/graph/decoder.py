"""The decoder's layers as ONNX nodes: what `runtime.text_model` does, text rows in whole matrices, visual rows in their leading parts.

What surrounds the layers (inputs, masks, where the rows come from) is the caller's: see `DecoderCall`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from ...runtime.layout import LayerLayout
from .builder import Graph
from .heads import Pair, attend, by_head
from .layer_products import LayerProducts
from .masks import TextMaskNodes
from .slots import Slot, slots
from .text import TextModel
from .visual import VisualHeads, VisualRows


@dataclass
class DecoderCall:
    """One call of the decoder, and what changes from layer to layer.

    `text` `[batch * text rows, hidden]`; `rotary` cosine and sine of its positions `[batch, text rows, frequencies]`; `past` K and V of
    earlier calls by slot, {} where there are none; `visual` the visual rows, None where a graph has none. `deepstack` are what is added
    after the first layers: to visual rows; in the dense model to all, among which they are (zeros for text).
    """

    batch: ir.Value
    text: ir.Value
    rotary: Pair
    masks: TextMaskNodes
    past: Mapping[Slot, Pair] = field(default_factory=dict)
    visual: VisualRows | None = None
    deepstack: tuple[ir.Value, ...] = ()


def run(graph: Graph, model: TextModel, call: DecoderCall) -> dict[Slot, Pair]:
    """All layers: `call.text` holds the last rows then. Returns K and V by slot, those of earlier calls included."""
    present: dict[Slot, Pair] = {}
    for index in range(model.sizes.num_hidden_layers):
        layer = DecoderLayer(graph, model, index, call)
        present |= layer.attention([slot for slot in slots(model) if slot.layer == index])
        layer.ffn()
        layer.leave()
    return present


def logits(graph: Graph, model: TextModel, call: DecoderCall) -> ir.Value:
    """Logits of the last text row, `[batch, 1, vocabulary]`."""
    rows = graph.reshape(call.text, call.batch, -1, model.sizes.hidden_size)
    last = graph.op("Gather", rows, -1, axis=1)
    normed = graph.normalised(last, graph.weight(model.final_norm), model.epsilon)
    return graph.unsqueeze(graph.linear(normed, model.head), 1)


@dataclass
class DecoderLayer:
    """One layer of one call."""

    graph: Graph
    model: TextModel
    index: int
    call: DecoderCall

    @property
    def products(self) -> LayerProducts:
        """Its products of rows of both kinds."""
        return LayerProducts(self.graph, self.model, self.index, self.call.batch)

    @property
    def layout(self) -> LayerLayout | None:
        return self.model.layouts[self.index]

    @property
    def visual(self) -> VisualRows | None:
        """The visual rows, where there are any in this layer."""
        plan = self.model.plan
        return self.call.visual if plan is not None and self.index < plan.visual_depth else None

    def attention(self, layer_slots: list[Slot]) -> dict[Slot, Pair]:
        """Self attention: text rows updated, visual rows too where they have heads. Returns K and V by slot."""
        graph, model, call = self.graph, self.model, self.call
        text = graph.normalised(call.text, graph.weight(model.norm(self.index, "input_layernorm")), model.epsilon)
        turn = graph.unsqueeze(call.rotary[0], 2), graph.unsqueeze(call.rotary[1], 2)
        products = self.products
        queries, keys, values = (products.heads(part, text, model.projection(self.index, part)) for part in ("query", "key", "value"))
        queries, keys = products.turned("query", queries, turn), products.turned("key", keys, turn)
        seen = self.visual.project(products, self.layout) if self.visual is not None and self.layout is not None else None
        present = {slot: self._extended(slot, keys, values, seen) for slot in layer_slots}
        update = products.whole("output", self._seen_by_text(present, by_head(graph, queries)))
        call.text = graph.op("Add", call.text, update)
        if self.visual is not None and self.layout is not None and seen is not None:
            self.visual.attend(products, self.layout, seen, keys, values)
        return present

    def _extended(self, slot: Slot, keys: ir.Value, values: ir.Value, seen: VisualHeads | None) -> Pair:
        """K and V of a slot `[batch, heads, keys, head_dim]`: of earlier calls, then this call's visual rows, then its text rows."""
        graph, count = self.graph, self.model.sizes.num_key_value_heads
        new = [graph.take(part, slot.kind.kv_heads, 2, count) for part in (keys, values)]
        visual = self.visual.rows_of(slot, self.layout, seen) if self.visual and self.layout and seen else None
        if visual is not None:
            new = [graph.op("Concat", before, part, axis=1) for before, part in zip(visual, new, strict=True)]
        key, value = (by_head(graph, part) for part in new)
        if slot in self.call.past:
            key, value = (graph.op("Concat", old, part, axis=2) for old, part in zip(self.call.past[slot], (key, value), strict=True))
        return key, value

    def _seen_by_text(self, present: Mapping[Slot, Pair], queries: ir.Value) -> ir.Value:
        """What text queries `[batch, heads, rows, head_dim]` see, as rows `[batch * text rows, heads * head_dim]`."""
        graph, sizes = self.graph, self.model.sizes
        outputs = []
        for slot, pair in present.items():
            mine = graph.take(queries, slot.kind.query_heads, 1, sizes.num_attention_heads)
            outputs.append(attend(graph, mine, *pair, self.call.masks.of(slot.kind), sizes.head_dim, sizes.group))
        places = [head for slot in present for head in slot.kind.query_heads]
        joined = graph.concat(outputs, 1)
        if places != sorted(places):
            joined = graph.op("Gather", joined, sorted(range(len(places)), key=lambda place: places[place]), axis=1)
        return graph.reshape(by_head(graph, joined), -1, sizes.num_attention_heads * sizes.head_dim)

    def ffn(self) -> None:
        """Feed-forward: all neurons for text rows, the first ones for visual rows."""
        graph, model, call = self.graph, self.model, self.call
        text = graph.normalised(call.text, graph.weight(model.norm(self.index, "post_attention_layernorm")), model.epsilon)
        products = self.products
        gate, up = (products.whole(part, text) for part in ("gate", "up"))
        update = products.whole("down", products.gated(gate, up))
        call.text = graph.op("Add", call.text, update)
        if self.visual is not None and self.layout is not None:
            self.visual.ffn(products, self.layout)

    def leave(self) -> None:
        """Add what is added to visual rows after this layer."""
        if self.index >= len(self.call.deepstack):
            return
        added = self.call.deepstack[self.index]
        if self.model.plan is None:
            self.call.text = self.graph.op("Add", self.call.text, added)
        elif self.visual is not None:
            self.visual.update(added)
