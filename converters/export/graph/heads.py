"""Heads as ONNX nodes: rotary embedding and scaled dot-product attention."""

import numpy as np
import onnx_ir as ir

from .builder import Graph
from .text import TextModel

Pair = tuple[ir.Value, ir.Value]


def rotary(graph: Graph, model: TextModel, positions: ir.Value) -> Pair:
    """Cosine and sine `[batch, length, frequencies]` of positions `[batch, length]`, multimodal ones `[3, batch, length]`."""
    if model.rotary.sections:
        positions = graph.op("Transpose", graph.op("Gather", positions, model.rotary.axes, axis=0), perm=[1, 2, 0])
    else:
        positions = graph.unsqueeze(positions, 2)
    frequencies, scaling = np.array(model.rotary.frequencies, np.float32), np.array(model.rotary.scaling, np.float32)
    angles = graph.op("Mul", graph.cast(positions, ir.DataType.FLOAT), frequencies)
    cosine, sine = (graph.op("Mul", graph.op(function, angles), scaling) for function in ("Cos", "Sin"))
    return graph.cast(cosine, graph.compute), graph.cast(sine, graph.compute)


def rotate(graph: Graph, heads: ir.Value, turn: Pair, model: TextModel) -> ir.Value:
    """Rotary embedding of `[batch, rows, heads, head_dim]` by `[batch, rows, 1, frequencies]`; what is beyond two of each stays."""
    half, size = len(model.rotary.frequencies), model.sizes.head_dim
    lengths = [half, half, *([size - 2 * half] if size > 2 * half else [])]
    first, second, *rest = graph.ops("Split", len(lengths), heads, lengths, axis=-1)
    cosine, sine = turn
    turned = graph.op("Sub", graph.op("Mul", first, cosine), graph.op("Mul", second, sine))
    other = graph.op("Add", graph.op("Mul", second, cosine), graph.op("Mul", first, sine))
    return graph.op("Concat", turned, other, *rest, axis=-1)


def by_head(graph: Graph, rows: ir.Value) -> ir.Value:
    """`[batch, rows, heads, head_dim]` as `[batch, heads, rows, head_dim]`, and back."""
    return graph.op("Transpose", rows, perm=[0, 2, 1, 3])


def attend(
    graph: Graph, query: ir.Value, key: ir.Value, value: ir.Value, mask: ir.Value | None, size: int, group: int = 1
) -> ir.Value:  # fmt: skip
    """Scaled dot-product attention of `[batch, heads, rows, head_dim]`; each KV head serves `group` query heads.

    A mask `[batch, 1 or heads, rows, keys]` is added to the scores.
    """
    if graph.opset >= 23:
        return graph.op("Attention", query, key, value, mask, scale=size**-0.5)
    if group > 1:
        key, value = (_repeated(graph, part, group, size) for part in (key, value))
    scores = graph.op("MatMul", graph.op("Mul", query, size**-0.5), graph.op("Transpose", key, perm=[0, 1, 3, 2]))
    weights = graph.op("Softmax", scores if mask is None else graph.op("Add", scores, mask), axis=-1)
    return graph.op("MatMul", weights, value)


def _repeated(graph: Graph, heads: ir.Value, group: int, size: int) -> ir.Value:
    """Every KV head `group` times."""
    batch, keys = graph.axis(heads, 0), graph.axis(heads, 2)
    each = graph.op("Expand", graph.unsqueeze(heads, 2), graph.dims(1, 1, group, 1, 1))
    return graph.reshape(each, batch, -1, keys, size)
