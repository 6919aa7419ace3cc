"""How the products of a graph are computed: in its float type, or with weights of 4 or 8 bits from onnxruntime's quantizers."""

from typing import TYPE_CHECKING, Protocol

import onnx_ir as ir

from .weights import Weight

if TYPE_CHECKING:
    from .graph import Graph


class Precision(Protocol):
    """Emits the product of rows `[rows, in]` with a weight `[out, in]`."""

    def linear(self, graph: "Graph", rows: ir.Value, weight: Weight, bias: Weight | None) -> ir.Value: ...


class Float:
    """The weight as it lies in its file."""

    def linear(self, graph: "Graph", rows: ir.Value, weight: Weight, bias: Weight | None) -> ir.Value:
        return graph.op("Gemm", rows, graph.weight(weight), None if bias is None else graph.weight(bias), transB=1)
