"""The kept-first permutation of a model's tensors: exact, since rows and columns of neighbouring products move together."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..families import Family
from ..runtime.layout import LayerLayout, layouts
from ..runtime.plan import Plan


@dataclass(frozen=True)
class Permutation:
    """Place i along `dimension` gets what was at `order[i]`; `block` neighbours (a head's rows) move as one."""

    dimension: int
    order: tuple[int, ...]
    block: int = 1

    def apply(self, tensor: Tensor) -> Tensor:
        """The tensor itself where nothing moves, else a copy. Raises ValueError if the order does not cover the dimension."""
        size = tensor.shape[self.dimension]
        if size != len(self.order) * self.block:
            raise ValueError(f"{len(self.order)} blocks of {self.block} do not make {size}")
        if self.order == tuple(range(len(self.order))):
            return tensor
        if tensor.itemsize == 1 and tensor.is_floating_point():  # nothing indexes these
            return self.apply(tensor.view(torch.uint8)).view(tensor.dtype)
        index = torch.tensor(self.order)
        if self.block == 1 and self.dimension == 1:
            # Several times faster than index_select where single columns move.
            return tensor.gather(1, index.expand(tensor.shape[0], -1))
        shape = tensor.shape
        blocks = tensor.reshape(*shape[: self.dimension], -1, self.block, *shape[self.dimension + 1 :])
        return blocks.index_select(self.dimension, index).reshape(shape)

    def inverse(self) -> "Permutation":
        """What puts everything back."""
        return replace(self, order=tuple(sorted(range(len(self.order)), key=self.order.__getitem__)))

    def followed_by(self, other: "Permutation") -> "Permutation":
        """Of a fused tensor: the other one's part comes after this one's."""
        return replace(self, order=self.order + tuple(len(self.order) + place for place in other.order))


def permutations(family: Family, plan: Plan) -> Mapping[str, Permutation]:
    """The permutation of every tensor that moves, by v5 name; biases are named whether the model has them or not.

    The plan must be normalised: the runtime derives the same order from it.
    """
    moved = {}
    for index, layout in enumerate(layouts(plan)):
        for projection, rows in _rows(family, layout, plan.sizes.head_dim).items():
            moved[f"{family.text_prefix}layers.{index}.{projection}.weight"] = rows
            moved[f"{family.text_prefix}layers.{index}.{projection}.bias"] = rows
        for projection, columns in _columns(family, layout, plan.sizes.head_dim).items():
            moved[f"{family.text_prefix}layers.{index}.{projection}.weight"] = columns
    return moved


def _rows(family: Family, layout: LayerLayout, head_dim: int) -> dict[str, Permutation]:
    """Projections whose outputs move, with their biases; those of one name are one matrix, part by part."""
    names = family.layer
    queries, kv = Permutation(0, layout.query_order, head_dim), Permutation(0, layout.kv_order, head_dim)
    neurons = Permutation(0, layout.neuron_order)
    parts = ((names.query, queries), (names.key, kv), (names.value, kv), (names.gate, neurons), (names.up, neurons))
    rows: dict[str, Permutation] = {}
    for name, part in parts:
        rows[name] = rows[name].followed_by(part) if name in rows else part
    return rows


def _columns(family: Family, layout: LayerLayout, head_dim: int) -> dict[str, Permutation]:
    """Projections whose inputs move; their biases stay."""
    return {family.layer.output: Permutation(1, layout.query_order, head_dim), family.layer.down: Permutation(1, layout.neuron_order)}
