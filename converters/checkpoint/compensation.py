"""Linear compensation as tensors: each layer's map is merged into the projections that visual tokens alone use."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..planning.compensation import LinearCompensation
from ..runtime.layout import layer_layout
from ..runtime.plan import Plan
from .reader import Checkpoint
from .visual_projections import INNER, PARTS, projected_heads, refitted_layers


@dataclass(frozen=True)
class CompensatedTensor:
    """The weight or the bias of a refitted projection, made of `rows` of the layer's projection `base` when it is asked for."""

    checkpoint: Checkpoint
    base: str
    rows: list[int]
    compensation: LinearCompensation
    bias: bool

    @property
    def dtype(self) -> str:
        """Safetensors' name of it: that of the base."""
        return self.checkpoint.tensors[f"{self.base}.weight"].read_dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows),) if self.bias else (len(self.rows), self.compensation.matrix.shape[1])

    def tensor(self) -> Tensor:
        weight, bias = self.checkpoint.read(f"{self.base}.weight")[self.rows], f"{self.base}.bias"
        if not self.bias:
            return self.compensation.weight(weight)
        return self.compensation.bias(weight, self.checkpoint.read(bias)[self.rows] if bias in self.checkpoint.tensors else None)


@dataclass(frozen=True)
class Given:
    """A tensor of a compensation as it is, in the dtype of a layer's tensor `base`."""

    checkpoint: Checkpoint
    base: str
    given: Tensor

    @property
    def dtype(self) -> str:
        """Safetensors' name of it."""
        return self.checkpoint.tensors[self.base].read_dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.given.shape)

    def tensor(self) -> Tensor:
        return self.given.to(self.checkpoint.read(self.base).dtype)


def merged(checkpoint: Checkpoint, plan: Plan, refits: Mapping[int, LinearCompensation]) -> dict[str, CompensatedTensor | Given]:
    """The tensors of refitted layers by name, in the file's order of KV heads. The plan must be normalised."""
    family, sizes = checkpoint.family, checkpoint.sizes
    tensors: dict[str, CompensatedTensor | Given] = {}
    for index in refitted_layers(plan, refits):
        layout, prefix = layer_layout(plan.layers[index], plan.sizes), f"{family.text_prefix}layers.{index}."
        if inner := refits[index].inner:
            base = f"{prefix}{family.layer.key}.weight"
            tensors |= {
                f"{prefix}{INNER}.{ending}": Given(checkpoint, base, part) for ending, part in zip(("weight", "bias"), inner, strict=True)
            }
        for part, heads in projected_heads(layout).items():
            first, size, name = family.layer.rows(part, sizes).start, sizes.head_dim, PARTS[part]
            rows = [first + head * size + element for head in heads for element in range(size)]
            base = prefix + getattr(family.layer, part)
            tensors[f"{prefix}{name}.weight"] = CompensatedTensor(checkpoint, base, rows, refits[index], bias=False)
            tensors[f"{prefix}{name}.bias"] = CompensatedTensor(checkpoint, base, rows, refits[index], bias=True)
    return tensors
