"""One really pruned layer: the runtime's code on the weights of a dense layer, which are copied into the plan's order."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...runtime.cache import SparseLayer
from ...runtime.layout import LayerLayout, layer_layout
from ...runtime.plan import Plan
from ...runtime.text_model import Call, Projections, SparseTextModel
from ..compensation import LinearCompensation
from .dense_adapter import DenseAdapter


@dataclass(frozen=True)
class Linear:
    """A linear layer of tensors: what the runtime asks of one."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, rows: Tensor) -> Tensor:
        return functional.linear(rows, self.weight, self.bias)


class PrunedLayer(SparseTextModel):
    """One layer of the runtime on a dense layer's weights, copied into the order of a layout, with a compensation where there is one."""

    def __init__(self, adapter: DenseAdapter, index: int, plan: Plan, compensation: LinearCompensation | None = None) -> None:
        super().__init__()
        self.plan = plan
        self.layouts = (layout := layer_layout(plan.layers[index], plan.sizes),)
        assert layout.kv_rank is None or (compensation is not None and compensation.inner is not None)
        layer = adapter.model.model.language_model.layers[index]
        self.layers = [_permuted(layer, adapter.projections(index), layout, plan.sizes.head_dim)]
        if compensation is not None:
            attention, kv_rows = self.layers[0].self_attn, layout.held * plan.sizes.head_dim
            if compensation.inner is not None:
                attention.visual_kv_proj = Linear(*compensation.inner)
            attention.visual_k_proj, attention.visual_v_proj = (
                _compensated(part, slice(kv_rows), compensation) for part in (attention.k_proj, attention.v_proj)
            )
            if layout.ranked_queries:
                attention.visual_q_proj = _compensated(attention.q_proj, _elements(layout.computing, plan.sizes.head_dim), compensation)
        self.split_weights()

    def run(self, call: Call) -> None:
        """Update the rows of a call."""
        self._attention(self.layers[0], self.layouts[0], call, SparseLayer(call.timeline, first=True))
        self._ffn(self.layers[0], self.layouts[0], call)


def _permuted(layer: Any, parts: Projections, layout: LayerLayout, head_dim: int) -> SimpleNamespace:
    """The parts of a dense layer that the runtime uses, in the layout's order; nothing is copied that does not move."""
    queries, kv = _elements(layout.query_order, head_dim), _elements(layout.kv_order, head_dim)
    attention = SimpleNamespace(
        head_dim=head_dim,
        scaling=layer.self_attn.scaling,
        q_proj=_ordered(parts.query, queries, 0),
        k_proj=_ordered(parts.key, kv, 0),
        v_proj=_ordered(parts.value, kv, 0),
        o_proj=_ordered(parts.output, queries, 1),
    )
    ffn = SimpleNamespace(
        act_fn=parts.activation,
        gate_proj=_ordered(parts.gate, layout.neuron_order, 0),
        up_proj=_ordered(parts.up, layout.neuron_order, 0),
        down_proj=_ordered(parts.down, layout.neuron_order, 1),
    )
    norms = {name: getattr(layer, name) for name in ("input_layernorm", "post_attention_layernorm")}
    return SimpleNamespace(self_attn=attention, mlp=ffn, **norms)


def _compensated(linear: Linear, rows: Any, compensation: LinearCompensation) -> Linear:
    """These rows of a projection as those of one of rows before a compensation."""
    weight, bias = linear.weight[rows], None if linear.bias is None else linear.bias[rows]
    return Linear(compensation.weight(weight), compensation.bias(weight, bias))


def _ordered(linear: Any, order: Sequence[int], dim: int) -> Linear:
    if list(order) == list(range(len(order))):
        return Linear(linear.weight, linear.bias)
    index = torch.tensor(order, device=linear.weight.device)
    bias = linear.bias if linear.bias is None or dim == 1 else linear.bias.index_select(0, index)
    return Linear(linear.weight.index_select(dim, index), bias)


def _elements(heads: Sequence[int], head_dim: int) -> list[int]:
    return [head * head_dim + element for head in heads for element in range(head_dim)]
