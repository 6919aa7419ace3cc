"""The decoder's layers as ONNX nodes: what `runtime.text_model` does, text rows in whole matrices, visual rows in their leading parts.

What surrounds the layers (inputs, masks, where the rows come from) is the caller's: see `Call`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import onnx_ir as ir

from ...runtime.attention import HeadKind
from ...runtime.layout import LayerLayout
from .builder import Graph
from .heads import Pair, attend, by_head, rotate
from .slots import Slot, slots
from .text import VISUAL, TextModel
from .visual import Seen, Visual
from .weights import Weight


class Masks(Protocol):
    """What is added to the scores of text queries, `[batch, 1 or query heads, queries, keys]`; None: nothing."""

    def of(self, kind: HeadKind) -> ir.Value | None: ...


@dataclass
class Call:
    """One call of the decoder, and what changes from layer to layer.

    `text` `[batch * text rows, hidden]`; `rotary` cosine and sine of its positions `[batch, text rows, frequencies]`; `past` K and V of
    earlier calls by slot, {} where there are none; `visual` the visual rows, None where a graph has none.
    """

    batch: ir.Value
    text: ir.Value
    rotary: Pair
    masks: Masks
    past: Mapping[Slot, Pair] = field(default_factory=dict)
    visual: Visual | None = None


def run(graph: Graph, model: TextModel, call: Call) -> dict[Slot, Pair]:
    """All layers: `call.text` holds the last rows then. Returns K and V by slot, those of earlier calls included."""
    present: dict[Slot, Pair] = {}
    for index in range(model.sizes.num_hidden_layers):
        layer = Layer(graph, model, index, call)
        present |= layer.attention([slot for slot in slots(model) if slot.layer == index])
        layer.ffn()
    return present


def logits(graph: Graph, model: TextModel, call: Call) -> ir.Value:
    """Logits of the last text row, `[batch, 1, vocabulary]`."""
    rows = graph.reshape(call.text, call.batch, -1, model.sizes.hidden_size)
    last = graph.op("Gather", rows, -1, axis=1)
    normed = graph.normalised(last, graph.weight(model.final_norm), model.epsilon)
    return graph.unsqueeze(graph.linear(normed, model.head), 1)


@dataclass
class Layer:
    """One layer of one call."""

    graph: Graph
    model: TextModel
    index: int
    call: Call

    @property
    def layout(self) -> LayerLayout | None:
        return self.model.layouts[self.index]

    @property
    def visual(self) -> Visual | None:
        """The visual rows, where there are any in this layer."""
        plan = self.model.plan
        return self.call.visual if plan is not None and self.index < plan.visual_depth else None

    def attention(self, held: list[Slot]) -> dict[Slot, Pair]:
        """Self attention: text rows updated, visual rows too where they have heads. Returns K and V by slot."""
        graph, model, call = self.graph, self.model, self.call
        text = graph.normalised(call.text, graph.weight(self.norm("input_layernorm")), model.epsilon)
        turn = graph.unsqueeze(call.rotary[0], 2), graph.unsqueeze(call.rotary[1], 2)
        queries, keys, values = (self._text_heads(part, text) for part in ("query", "key", "value"))
        queries, keys = rotate(graph, queries, turn, model), rotate(graph, keys, turn, model)
        seen = self.visual.project(self, self.layout) if self.visual is not None and self.layout is not None else None
        present = {slot: self._extended(slot, keys, values, seen) for slot in held}
        update = self._product("output", self._seen_by_text(present, by_head(graph, queries)))
        call.text = graph.op("Add", call.text, update)
        if self.visual is not None and self.layout is not None and seen is not None:
            self.visual.attend(self, self.layout, seen, keys, values)
        return present

    def _text_heads(self, part: str, rows: ir.Value) -> ir.Value:
        """Queries, keys or values of text rows, `[batch, text rows, heads, head_dim]`."""
        return self.heads(part, rows, self.model.projection(self.index, part))

    def inner(self, rows: ir.Value) -> ir.Value:
        """What K and V of visual rows are made from: the rows, or as few dimensions as the plan has them go through."""
        weight = self.model.projection(self.index, f"{VISUAL}kv")
        if weight.name not in self.model.tensors:
            return rows
        return self.graph.linear(rows, weight, self.model.bias(self.index, f"{VISUAL}kv"))

    def _extended(self, slot: Slot, keys: ir.Value, values: ir.Value, seen: Seen | None) -> Pair:
        """K and V of a slot `[batch, heads, keys, head_dim]`: of earlier calls, then this call's visual rows, then its text rows."""
        graph, count = self.graph, self.model.sizes.num_key_value_heads
        new = [graph.take(part, slot.kind.kv_heads, 2, count) for part in (keys, values)]
        visual = self.visual.held(slot, self.layout, seen) if self.visual and self.layout and seen else None
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
        text = graph.normalised(call.text, graph.weight(self.norm("post_attention_layernorm")), model.epsilon)
        gate, up = (self._product(part, text) for part in ("gate", "up"))
        update = self._product("down", self._gated(gate, up))
        call.text = graph.op("Add", call.text, update)
        if self.visual is not None and self.layout is not None:
            self.visual.ffn(self, self.layout)

    def neurons(self, rows: ir.Value, count: int) -> ir.Value:
        """What the first neurons add to rows `[rows, hidden]`."""
        weights = {part: self.model.projection(self.index, part) for part in ("gate", "up", "down")}
        biases = {part: self.model.bias(self.index, part) for part in weights}
        if count < self.model.sizes.intermediate_size:
            for part in ("gate", "up"):
                bias = biases[part]
                weights[part] = weights[part].part(0, count)
                biases[part] = None if bias is None else bias.part(0, count)
            weights["down"] = Weight(weights["down"].name, columns=tuple(range(count)))
        gate, up = (self.graph.linear(rows, weights[part], biases[part]) for part in ("gate", "up"))
        return self.graph.linear(self._gated(gate, up), weights["down"], biases["down"])

    def output(self, found: ir.Value, layout: LayerLayout) -> ir.Value:
        """The output projection of visual rows' heads `[..., kept heads, head_dim]`, `[rows, hidden]`."""
        weight, size = self.model.projection(self.index, "output"), self.model.sizes.head_dim
        kept = list(layout.computing)
        if kept != list(range(len(layout.computes))):
            weight = Weight(weight.name, columns=_elements(kept, size))
        return self.graph.linear(self.graph.reshape(found, -1, len(kept) * size), weight, self.model.bias(self.index, "output"))

    def norm(self, name: str) -> Weight:
        return self.model.norm(self.index, name)

    def heads(self, part: str, rows: ir.Value, weight: Weight) -> ir.Value:
        """Product of rows `[batch * rows, hidden]` with (some rows of) a projection, as `[batch, rows, heads, head_dim]`."""
        whole, bias = self.model.projection(self.index, part), self.model.bias(self.index, part)
        if bias is not None and weight != whole:
            last = None if weight.last is None else bias.first + weight.last - whole.first
            bias = Weight(bias.name, bias.first + weight.first - whole.first, last, weight.rows)
        product = self.graph.linear(rows, weight, bias)
        size = self.model.sizes.head_dim
        return self.graph.reshape(product, self.call.batch, -1, self.graph.store.shape(weight)[0] // size, size)

    def first_heads(self, part: str, first: int, last: int) -> Weight:
        """Of a projection, the rows of heads `first` to `last`."""
        whole, size = self.model.projection(self.index, part), self.model.sizes.head_dim
        heads = self.model.sizes.num_attention_heads if part == "query" else self.model.sizes.num_key_value_heads
        return whole if (first, last) == (0, heads) else whole.part(first * size, last * size)

    def kept_queries(self, layout: LayerLayout) -> Weight:
        """Of the query projection, the heads that visual rows compute: the first ones, or copied where groups keep several apart."""
        order, size = list(layout.computing), self.model.sizes.head_dim
        if order == list(range(len(order))):
            return self.first_heads("query", 0, len(order))
        whole = self.model.projection(self.index, "query")
        return Weight(whole.name, whole.first, whole.last, rows=_elements(order, size))

    def _product(self, part: str, rows: ir.Value) -> ir.Value:
        return self.graph.linear(rows, self.model.projection(self.index, part), self.model.bias(self.index, part))

    def _gated(self, gate: ir.Value, up: ir.Value) -> ir.Value:
        """SiLU of the gate times the other."""
        return self.graph.op("Mul", self.graph.op("Mul", gate, self.graph.op("Sigmoid", gate)), up)


def _elements(heads: list[int], size: int) -> tuple[int, ...]:
    return tuple(head * size + element for head in heads for element in range(size))
