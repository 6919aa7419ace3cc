"""Building one ONNX graph node by node: operators, shared constants, and weights that stay in their files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from .weights import ByteRange, Store, Weight

# IR versions that onnx released with these opsets; a runtime refuses a newer one than it knows.
IR_VERSIONS = {18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11, 24: 11, 25: 11}
MICROSOFT = "com.microsoft"
Operand = ir.Value | np.ndarray | Sequence[Any] | int | float | None


class Precision(Protocol):
    """Emits the product of rows `[rows, in]` with a weight `[out, in]`."""

    def linear(self, graph: "Graph", rows: ir.Value, weight: Weight, bias: Weight | None) -> ir.Value: ...


class Graph:
    """A graph under construction. `compute` is the float type that it calculates in, `store` the files that its weights are in,
    `precision` how products with them are computed."""

    def __init__(self, name: str, opset: int, compute: ir.DataType, store: Store, precision: Precision) -> None:
        self.opset, self.compute, self.store, self.precision = opset, compute, store, precision
        self.numpy_dtype: Any = compute.numpy()
        self._graph = ir.Graph([], [], nodes=[], opset_imports={"": opset}, name=name)
        self._tape = ir.tape.Tape(self._graph)
        self._constants: dict[Any, ir.Value] = {}
        self._weights: dict[ByteRange, ir.Value] = {}
        self._cast: dict[ByteRange, ir.Value] = {}

    def input(self, name: str, dtype: ir.DataType, dims: Sequence[int | str]) -> ir.Value:
        """An input; a dimension with a name is dynamic."""
        value = ir.val(name, dtype=dtype, shape=ir.Shape(dims))
        self._graph.inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str, dtype: ir.DataType, dims: Sequence[int | str]) -> None:
        """Name a value as an output."""
        value = self.op("Identity", value)
        value.name, value.shape, value.dtype = name, ir.Shape(dims), dtype
        self._graph.outputs.append(value)

    def op(self, kind: str, *operands: Operand, domain: str = "", **attributes: Any) -> ir.Value:
        """A node with one output. Numbers, lists and arrays among the operands become constants."""
        return self.ops(kind, 1, *operands, domain=domain, **attributes)[0]

    def ops(self, kind: str, outputs: int, *operands: Operand, domain: str = "", **attributes: Any) -> Sequence[ir.Value]:
        """A node with several outputs."""
        inputs = [operand if operand is None or isinstance(operand, ir.Value) else self.constant(operand) for operand in operands]
        if domain:
            self._graph.opset_imports.setdefault(domain, 1)
        return self._tape.op_multi_out(kind, inputs, attributes, num_outputs=outputs, domain=domain)

    def constant(self, data: Any) -> ir.Value:
        """An array as it is; integers as int64, floats in the type of the graph. Equal ones are one initializer."""
        array = data if isinstance(data, np.ndarray) else np.array(data)
        if not isinstance(data, np.ndarray):
            array = array.astype(self.numpy_dtype if array.dtype.kind == "f" else np.bool_ if array.dtype.kind == "b" else np.int64)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._constants[key] = self._tape.initializer(ir.Tensor(np.ascontiguousarray(array).reshape(array.shape), name=name))
        return self._constants[key]

    def weight(self, weight: Weight) -> ir.Value:
        """A weight in the type of the graph; where its file has another, a runtime casts it once when it loads the graph."""
        piece = self.store.place(weight)
        value = self.piece(piece)
        if piece.dtype == self.compute:
            return value
        if piece not in self._cast:
            self._cast[piece] = self.op("Cast", value, to=self.compute)
        return self._cast[piece]

    def piece(self, piece: ByteRange) -> ir.Value:
        """Bytes of a file as an initializer in their own type."""
        if piece not in self._weights:
            value = ir.Value(name=piece.label, shape=ir.Shape(piece.shape), type=ir.TensorType(piece.dtype))
            # What it holds is known when the store is finished; until then a placeholder keeps the graph whole.
            value.const_value = _placeholder(piece)
            self._graph.register_initializer(value)
            self._weights[piece] = value
        return self._weights[piece]

    def linear(self, rows: ir.Value, weight: Weight, bias: Weight | None = None) -> ir.Value:
        """`rows` `[rows, in]` times a weight `[out, in]`, in the precision of the graph."""
        return self.precision.linear(self, rows, weight, bias)

    def axis(self, value: ir.Value, axis: int) -> ir.Value:
        """One dimension of a value, `[1]`."""
        return self.op("Shape", value, start=axis, end=axis + 1 or None)

    def dims(self, *parts: ir.Value | int) -> Operand:
        """A shape from numbers and `[1]` values."""
        if not any(isinstance(part, ir.Value) for part in parts):
            return list(parts)
        return self.op("Concat", *(part if isinstance(part, ir.Value) else self.constant([part]) for part in parts), axis=0)

    def reshape(self, value: ir.Value, *parts: ir.Value | int) -> ir.Value:
        return self.op("Reshape", value, self.dims(*parts))

    def expand(self, value: ir.Value, *parts: ir.Value | int) -> ir.Value:
        return self.op("Expand", value, self.dims(*parts))

    def unsqueeze(self, value: ir.Value, *axes: int) -> ir.Value:
        return self.op("Unsqueeze", value, list(axes))

    def range(self, length: ir.Value) -> ir.Value:
        """0, 1, ... up to a length `[1]`."""
        return self.op("Range", 0, self.op("Squeeze", length, [0]), 1)

    def slice(self, value: ir.Value, first: ir.Value | int, last: ir.Value | int, axis: int) -> ir.Value:
        ends = [end if isinstance(end, ir.Value) else [end] for end in (first, last)]
        return self.op("Slice", value, *ends, [axis])

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        return self.op("Cast", value, to=dtype)

    def concat(self, parts: Sequence[ir.Value], axis: int) -> ir.Value:
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=axis)

    def choose(self, condition: ir.Value, one: ir.Value, other: ir.Value) -> ir.Value:
        """`Where` for booleans, of which onnxruntime has none on a CPU."""
        return self.op("Or", self.op("And", condition, one), self.op("And", self.op("Not", condition), other))

    def take(self, value: ir.Value, places: Sequence[int], axis: int, size: int) -> ir.Value:
        """`value` at `places` of an axis of `size`: itself where they are all, a slice where they are consecutive."""
        if list(places) == list(range(size)):
            return value
        if list(places) == list(range(places[0], places[0] + len(places))):
            return self.slice(value, places[0], places[0] + len(places), axis)
        return self.op("Gather", value, list(places), axis=axis)

    def rows(self, value: ir.Value, index: ir.Value) -> ir.Value:
        """Rows `[batch * rows, width]` of `value` `[batch, length, width]` at `index` `[batch, rows]`."""
        width = self.axis(value, -1)
        flat = self.reshape(value, -1, width)
        start = self.op("Mul", self.range(self.axis(value, 0)), self.op("Squeeze", self.axis(value, 1), [0]))
        return self.op("Gather", flat, self.reshape(self.op("Add", index, self.unsqueeze(start, 1)), -1), axis=0)

    def normalised(self, rows: ir.Value, weight: ir.Value, epsilon: float) -> ir.Value:
        """Root mean square norm over the last axis, computed in float32."""
        if self.opset >= 23:
            return self.op("RMSNormalization", rows, weight, epsilon=epsilon, axis=-1, stash_type=1)
        wide = self.cast(rows, ir.DataType.FLOAT)
        square = self.op("ReduceMean", self.op("Mul", wide, wide), [-1], keepdims=1)
        root = self.op("Sqrt", self.op("Add", square, np.array(epsilon, np.float32)))
        return self.op("Mul", self.cast(self.op("Div", wide, root), self.compute), weight)

    def model(self, metadata: Mapping[str, str], folder: Path) -> ir.Model:
        """The finished model; the store must be finished, since its weights now get their places in the files of `folder`."""
        for piece, value in self._weights.items():
            value.const_value = self.store.external(piece, str(value.name), folder)
        model = ir.Model(self._graph, ir_version=IR_VERSIONS[self.opset], producer_name="yopo")
        model.metadata_props.update(metadata)
        return model


def _placeholder(piece: ByteRange) -> Any:
    return ir.ExternalTensor("", 0, 0, piece.dtype, shape=ir.Shape(piece.shape), name=piece.label)
