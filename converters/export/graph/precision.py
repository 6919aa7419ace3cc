"""How the products of a graph are computed: in its float type, or with weights of 4 or 8 bits as onnxruntime's quantizers make them."""

from math import ceil
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from .builder import Graph, Precision
from .weights import ByteRange, Store, Weight

BLOCK = 128
"""Weights that share a scale in 4 bits; larger than the usual 32, and nearly twice as fast for it on a CPU."""
ACCURACY_INT8 = 4
"""Activations are rounded to 8 bits inside the product: MatMulNBits' `accuracy_level`."""
LARGEST_INT8 = 64
"""A bit less than there is: where a processor adds pairs of products in 16 bits (x86 without VNNI), larger weights would saturate."""
MICROSOFT = "com.microsoft"


def precision_of(bits: int | None) -> Precision:
    """Of weights of 4 or 8 bits, or of None: as they are."""
    kinds: dict[int | None, Precision] = {None: Float(), 4: FourBits(), 8: EightBits()}
    return kinds[bits]


class Float:
    """The weight as it lies in its file."""

    def linear(self, graph: Graph, rows: ir.Value, weight: Weight, bias: Weight | None) -> ir.Value:
        return graph.op("Gemm", rows, graph.weight(weight), None if bias is None else graph.weight(bias), transB=1)


class FourBits:
    """MatMulNBits: blocks of a row share a scale. Rows stay in their order, so that a part of the rows is a range of bytes here too."""

    def linear(self, graph: Graph, rows: ir.Value, weight: Weight, bias: Weight | None) -> ir.Value:
        size, width = graph.store.shape(weight)
        packed, scales = _four_bits(graph.store, weight)
        attributes = {"K": width, "N": size, "bits": 4, "block_size": BLOCK, "accuracy_level": ACCURACY_INT8}
        scale = _in_type(graph, graph.piece(scales))
        product = graph.op("MatMulNBits", rows, graph.piece(packed), scale, domain=MICROSOFT, **attributes)
        return product if bias is None else graph.op("Add", product, graph.weight(bias))


class EightBits:
    """Dynamic quantisation: rows are rounded when they come, each output has a scale of its own (`quantize_dynamic` by channel and
    with reduced range)."""

    def linear(self, graph: Graph, rows: ir.Value, weight: Weight, bias: Weight | None) -> ir.Value:
        whole = _eight_bits(graph.store, weight)
        integers, scales = (graph.piece(piece) for piece in whole)
        float32 = graph.cast(rows, ir.DataType.FLOAT) if graph.compute != ir.DataType.FLOAT else rows
        quantised, scale, zero = graph.ops("DynamicQuantizeLinear", 3, float32)
        product = graph.cast(graph.op("MatMulInteger", quantised, integers, zero), ir.DataType.FLOAT)
        product = graph.op("Mul", product, graph.op("Mul", scale, scales))
        product = graph.cast(product, graph.compute) if graph.compute != ir.DataType.FLOAT else product
        return product if bias is None else graph.op("Add", product, graph.weight(bias))


def _in_type(graph: Graph, value: ir.Value) -> ir.Value:
    return value if graph.compute == ir.DataType.FLOAT else graph.cast(value, graph.compute)


def _four_bits(store: Store, weight: Weight) -> tuple[ByteRange, ByteRange]:
    """Packed weights `[out, blocks, bytes]` and scales `[out * blocks]`; of a range of rows the bytes of the whole tensor."""
    whole = weight if weight.gathered else Weight(weight.name)
    rows, width = store.shape(whole)
    blocks, name = ceil(width / BLOCK), store.label(whole)
    made = _Once(lambda: four_bit_blocks(_matrix(store, whole)))
    packed = store.add(f"{name}.int4", "U8", (rows, blocks, BLOCK // 2), lambda: torch.from_numpy(made.get()[0]))
    scales = store.add(f"{name}.int4_scales", "F32", (rows * blocks,), lambda: torch.from_numpy(made.get()[1].reshape(-1)))
    if weight.gathered or store.whole(weight):
        return packed, scales
    first, last = weight.first, weight.first + store.shape(weight)[0]
    return packed.rows(first, last), scales.rows(first * blocks, last * blocks)


def _eight_bits(store: Store, weight: Weight) -> tuple[ByteRange, ByteRange]:
    """Integers `[in, out]` and scales `[out]`. Part of the rows is part of each row of the transposed matrix, so it is written anew."""
    rows, width = store.shape(weight)
    name = store.label(weight)
    made = _Once(lambda: eight_bit_columns(_matrix(store, weight)))
    integers = store.add(f"{name}.int8", "I8", (width, rows), lambda: torch.from_numpy(made.get()[0]))
    return integers, store.add(f"{name}.int8_scales", "F32", (rows,), lambda: torch.from_numpy(made.get()[1]))


def four_bit_blocks(matrix: Any) -> tuple[Any, Any]:
    """Packed weights and scales of `[out, in]`, symmetric, by onnxruntime's kernel."""
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, DefaultWeightOnlyQuantizer

    config = DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=True, accuracy_level=ACCURACY_INT8, bits=4)
    packed, scales, _ = DefaultWeightOnlyQuantizer(config).qbits_block_quant(np.ascontiguousarray(matrix.T))
    return packed, scales


def eight_bit_columns(matrix: Any) -> tuple[Any, Any]:
    """Integers `[in, out]` and scales of `[out, in]`: onnxruntime's `quantize_data` (symmetric, reduced range), all rows at once."""
    largest = np.abs(matrix).max(1)
    scales = np.where(largest > 0, largest / LARGEST_INT8, 1).astype(np.float32)
    integers = np.clip((matrix / scales[:, None]).round(), -LARGEST_INT8, LARGEST_INT8).astype(np.int8)
    return np.ascontiguousarray(integers.T), scales


def _matrix(store: Store, weight: Weight) -> Any:
    return store.read(weight).float().numpy()


class _Once:
    """Two tensors that are made together: kept from the first that is asked for to the second."""

    def __init__(self, make: Any) -> None:
        self.make, self.pair = make, None

    def get(self) -> Any:
        if self.pair is None:
            self.pair = self.make()
            return self.pair
        pair, self.pair = self.pair, None
        return pair
