"""The products of one decoder layer as ONNX nodes, of text rows with whole matrices and of visual rows with parts of them."""

from dataclasses import dataclass

import onnx_ir as ir

from ...runtime.layout import LayerLayout
from .builder import Graph
from .heads import Pair, rotate
from .text import VISUAL, TextModel
from .weights import Weight


@dataclass(frozen=True)
class LayerProducts:
    """Layer `index` of a model, for a `batch` `[1]` of samples."""

    graph: Graph
    model: TextModel
    index: int
    batch: ir.Value

    def whole(self, part: str, rows: ir.Value) -> ir.Value:
        """Rows `[rows, in]` times a whole projection."""
        return self.graph.linear(rows, self.model.projection(self.index, part), self.model.bias(self.index, part))

    def gated(self, gate: ir.Value, up: ir.Value) -> ir.Value:
        """SiLU of the gate times the other."""
        return self.graph.op("Mul", self.graph.op("Mul", gate, self.graph.op("Sigmoid", gate)), up)

    def inner(self, rows: ir.Value) -> ir.Value:
        """What K and V of visual rows are made from: the rows, or as few dimensions as the plan has them go through."""
        weight = self.model.projection(self.index, f"{VISUAL}kv")
        if weight.name not in self.model.tensors:
            return rows
        return self.graph.linear(rows, weight, self.model.bias(self.index, f"{VISUAL}kv"))

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
        return self.graph.linear(self.gated(gate, up), weights["down"], biases["down"])

    def output(self, heads: ir.Value, layout: LayerLayout) -> ir.Value:
        """The output projection of visual rows' heads `[..., kept heads, head_dim]`, `[rows, hidden]`."""
        weight, size = self.model.projection(self.index, "output"), self.model.sizes.head_dim
        kept = list(layout.computing)
        if kept != list(range(len(layout.computes))):
            weight = Weight(weight.name, columns=_elements(kept, size))
        return self.graph.linear(self.graph.reshape(heads, -1, len(kept) * size), weight, self.model.bias(self.index, "output"))

    def heads(self, part: str, rows: ir.Value, weight: Weight) -> ir.Value:
        """Product of rows `[batch * rows, hidden]` with (some rows of) a projection, as `[batch, rows, heads, head_dim]`."""
        whole, bias = self.model.projection(self.index, part), self.model.bias(self.index, part)
        if bias is not None and weight != whole:
            last = None if weight.last is None else bias.first + weight.last - whole.first
            bias = Weight(bias.name, bias.first + weight.first - whole.first, last, weight.rows)
        product = self.graph.linear(rows, weight, bias)
        size = self.model.sizes.head_dim
        return self.graph.reshape(product, self.batch, -1, self.graph.store.shape(weight)[0] // size, size)

    def turned(self, part: str, heads: ir.Value, turn: Pair) -> ir.Value:
        """`query` or `key` heads `[batch, rows, heads, head_dim]` after a norm of each, where there is one, turned by their positions."""
        norm = self.model.head_norm(self.index, part)
        heads = heads if norm is None else self.graph.normalised(heads, self.graph.weight(norm), self.model.epsilon)
        return rotate(self.graph, heads, turn, self.model)

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


def _elements(heads: list[int], size: int) -> tuple[int, ...]:
    return tuple(head * size + element for head in heads for element in range(size))
