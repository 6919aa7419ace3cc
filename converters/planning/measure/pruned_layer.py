"""One really pruned layer: the runtime's own, on the weights of a dense layer, which are copied into the plan's order."""

from collections.abc import Sequence
from typing import Any

import torch

from ...runtime.cache import SparseLayer
from ...runtime.call import Call
from ...runtime.layer import run_layer
from ...runtime.layer_parts import LayerParts, Projections, head_norms
from ...runtime.layout import LayerLayout, layer_layout
from ...runtime.plan import Plan
from ...runtime.projection import Plain
from ..compensation import LinearCompensation
from .dense_adapter import DenseAdapter


class PrunedLayer:
    """Layer `index` of a dense model under a plan, its weights copied into the plan's order, K and V of visual rows compensated or not."""

    def __init__(self, adapter: DenseAdapter, index: int, plan: Plan, compensation: LinearCompensation | None = None) -> None:
        self.index = index
        self.layout, self.locality, size = layer_layout(plan.layers[index], plan.sizes), plan.locality, plan.sizes.head_dim
        layer = adapter.model.get_decoder().layers[index]
        linear = _permuted(adapter.projections(index), self.layout, size)
        norms = layer.input_layernorm, layer.post_attention_layernorm
        visual = _visual(linear, self.layout, size, compensation)
        self.parts = LayerParts(*norms, size, layer.self_attn.scaling, linear, *head_norms(layer.self_attn), *visual)

    def run(self, call: Call) -> None:
        """Update the rows of a call."""
        run_layer(self.parts, self.layout, call, SparseLayer(call.timeline, first=True), self.locality)
        call.leave(self.index)


def _visual(linear: Projections, layout: LayerLayout, size: int, compensation: LinearCompensation | None) -> tuple[Plain | None, ...]:
    """The projections of visual rows that a compensation makes: the inner one, keys, values, queries; None where there is none."""
    assert layout.kv_rank is None or (compensation is not None and compensation.inner is not None)
    if compensation is None:
        return None, None, None, None
    inner = None if compensation.inner is None else Plain(*compensation.inner)
    key, value = (compensated(one, slice(layout.visual_kv_heads * size), compensation) for one in (linear.key, linear.value))
    query = compensated(linear.query, _elements(layout.computing, size), compensation) if layout.ranked_queries else None
    return inner, key, value, query


def _permuted(parts: Projections, layout: LayerLayout, head_dim: int) -> Projections:
    """The projections of a dense layer in the layout's order; nothing is copied that does not move."""
    queries, kv = _elements(layout.query_order, head_dim), _elements(layout.kv_order, head_dim)
    return Projections(
        query=_ordered(parts.query, queries, 0),
        key=_ordered(parts.key, kv, 0),
        value=_ordered(parts.value, kv, 0),
        output=_ordered(parts.output, queries, 1),
        gate=_ordered(parts.gate, layout.neuron_order, 0),
        up=_ordered(parts.up, layout.neuron_order, 0),
        down=_ordered(parts.down, layout.neuron_order, 1),
        activation=parts.activation,
    )


def compensated(linear: Any, rows: Any, compensation: LinearCompensation) -> Plain:
    """These rows of a projection as those of one of rows before a compensation."""
    weight, bias = linear.weight[rows], None if linear.bias is None else linear.bias[rows]
    return Plain(compensation.weight(weight), compensation.bias(weight, bias))


def _ordered(linear: Any, order: Sequence[int], dim: int) -> Plain:
    """A projection with its outputs (`dim` 0) or inputs (1) in an order."""
    if list(order) == list(range(len(order))):
        return Plain(linear.weight, linear.bias)
    index = torch.tensor(order, device=linear.weight.device)
    bias = linear.bias if linear.bias is None or dim == 1 else linear.bias.index_select(0, index)
    return Plain(linear.weight.index_select(dim, index), bias)


def _elements(heads: Sequence[int], head_dim: int) -> list[int]:
    return [head * head_dim + element for head in heads for element in range(head_dim)]
