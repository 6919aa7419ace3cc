"""Refitted projections: weights of their own for K and V of visual tokens, and for queries that have a rank, into which a layer's refit
is merged."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ..families import Family
from ..planning.compensation import LinearCompensation
from ..runtime.layout import LayerLayout, layer_layout
from ..runtime.plan import Plan

if TYPE_CHECKING:
    from .reader import Checkpoint

PARTS = {"key": "self_attn.visual_k_proj", "value": "self_attn.visual_v_proj", "query": "self_attn.visual_q_proj"}
INNER = "self_attn.visual_kv_proj"
"""Where a plan has a rank, visual rows go through this one first, and the others start from what it gives."""


def refitted_layers(plan: Plan, layers: Iterable[int]) -> tuple[int, ...]:
    """Those of the layers that hold visual tokens: in the others there is nothing to refit. The plan must be normalised."""
    return tuple(index for index in sorted(layers) if layer_layout(plan.layers[index], plan.sizes).held)


def refitted_shapes(family: Family, plan: Plan, layers: Iterable[int]) -> dict[str, tuple[int, ...]]:
    """Shapes of the projections of refitted layers, by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for index in layers:
        layout, inner = layer_layout(plan.layers[index], plan.sizes), plan.sizes.hidden_size
        parts = {PARTS[part]: (len(heads) * plan.sizes.head_dim, layout.kv_rank or inner) for part, heads in _heads(layout).items()}
        parts |= {INNER: (layout.kv_rank, inner)} if layout.kv_rank else {}
        for name, shape in parts.items():
            prefix = f"{family.text_prefix}layers.{index}.{name}"
            shapes |= {f"{prefix}.weight": shape, f"{prefix}.bias": shape[:1]}
    return shapes


def _heads(layout: LayerLayout) -> dict[str, list[int]]:
    """The dense model's heads that each refitted projection of a layer has, in the file's order."""
    held = list(layout.kv_order[: layout.held])
    heads = {"key": held, "value": held}
    return heads | ({"query": [layout.query_order[place] for place in layout.computing]} if layout.ranked_queries else {})


@dataclass(frozen=True)
class Merged:
    """The weight or the bias of a refitted projection, made of `rows` of the layer's `own` when it is asked for."""

    checkpoint: "Checkpoint"
    own: str
    rows: list[int]
    refit: LinearCompensation
    bias: bool

    @property
    def dtype(self) -> str:
        """Safetensors' name of it: that of the layer's own."""
        return self.checkpoint.tensors[f"{self.own}.weight"].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows),) if self.bias else (len(self.rows), self.refit.matrix.shape[1])

    def tensor(self) -> Tensor:
        weight, bias = self.checkpoint.read(f"{self.own}.weight")[self.rows], f"{self.own}.bias"
        if not self.bias:
            return self.refit.weight(weight)
        return self.refit.bias(weight, self.checkpoint.read(bias)[self.rows] if bias in self.checkpoint.tensors else None)


@dataclass(frozen=True)
class Given:
    """A tensor of a refit as it is, in the dtype of a layer's `own`."""

    checkpoint: "Checkpoint"
    own: str
    given: Tensor

    @property
    def dtype(self) -> str:
        """Safetensors' name of it."""
        return self.checkpoint.tensors[self.own].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.given.shape)

    def tensor(self) -> Tensor:
        return self.given.to(self.checkpoint.read(self.own).dtype)


def merged(checkpoint: "Checkpoint", plan: Plan, refits: Mapping[int, LinearCompensation]) -> dict[str, Merged | Given]:
    """The tensors of refitted layers by name, in the file's order of KV heads. The plan must be normalised."""
    family, sizes = checkpoint.family, checkpoint.sizes
    found: dict[str, Merged | Given] = {}
    for index in refitted_layers(plan, refits):
        layout, prefix = layer_layout(plan.layers[index], plan.sizes), f"{family.text_prefix}layers.{index}."
        if inner := refits[index].inner:
            own = f"{prefix}{family.layer.key}.weight"
            found |= {
                f"{prefix}{INNER}.{ending}": Given(checkpoint, own, part) for ending, part in zip(("weight", "bias"), inner, strict=True)
            }
        for part, heads in _heads(layout).items():
            first, size, name = family.layer.rows(part, sizes).start, sizes.head_dim, PARTS[part]
            rows = [first + head * size + element for head in heads for element in range(size)]
            own = prefix + getattr(family.layer, part)
            found[f"{prefix}{name}.weight"] = Merged(checkpoint, own, rows, refits[index], bias=False)
            found[f"{prefix}{name}.bias"] = Merged(checkpoint, own, rows, refits[index], bias=True)
    return found
