"""A dense checkpoint with an adapter merged into its weights, tensor by tensor as they are read."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ..checkpoint.config import read_config
from ..checkpoint.header import TensorInfo
from ..checkpoint.reader import Checkpoint
from ..errors import YopoError
from ..families.family import Change
from .adapter import DOWN, MAGNITUDE, UP, UP_BIAS, Adapter, open_adapter


@dataclass(frozen=True)
class Merged:
    """A weight `[out, in]`, after the `first` change, with what an adapter adds; computed in float32."""

    first: Change | None
    parts: Mapping[str, Tensor]
    scale: float

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape if self.first is None else self.first.shape(shape)

    def apply(self, tensor: Tensor) -> Tensor:
        weight = tensor if self.first is None else self.first.apply(tensor)
        total = weight.float() + self.scale * (self.parts[UP].float() @ self.parts[DOWN].float())
        if MAGNITUDE in self.parts:  # DoRA, arXiv 2402.09353: rows of these lengths in the direction of the sum
            total *= (self.parts[MAGNITUDE].float() / total.norm(dim=1))[:, None]
        return total.to(weight.dtype)


@dataclass(frozen=True)
class Replaced:
    """In the place of a tensor, `given`, or it and a `summand`, in the tensor's own dtype."""

    first: Change | None
    given: Tensor | None
    summand: Tensor | None = None

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape if self.first is None else self.first.shape(shape)

    def apply(self, tensor: Tensor) -> Tensor:
        before = tensor if self.first is None else self.first.apply(tensor)
        total = before if self.given is None else self.given
        return (total if self.summand is None else total.float() + self.summand.float()).to(before.dtype)


def with_adapter(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """The checkpoint as if the adapter in the folder `path` had been merged into it. Raises YopoError where it does not go with it."""
    if checkpoint.beside:
        raise YopoError(
            f"{checkpoint.path} is quantised: an adapter cannot be merged into its integers.", "Merge it into the unquantised one."
        )
    adapter = open_adapter(path, checkpoint.family, read_config(checkpoint.path))
    adapter.check({name: info.shape for name, info in checkpoint.tensors.items()})
    changed = {name: info for module in adapter.modules for name, info in _changed(checkpoint, adapter, module).items()}
    return replace(checkpoint, tensors=checkpoint.tensors | changed)


def _changed(checkpoint: Checkpoint, adapter: Adapter, module: str) -> dict[str, TensorInfo]:
    """The tensors of a module that the adapter changes."""
    parts, changed = adapter.modules[module], {}
    info = checkpoint.tensors[f"{module}.weight"]
    if DOWN in parts:
        if len(info.shape) != 2:
            raise YopoError(f"{adapter.path} adapts {module}, which is no linear layer.", "Merge it with PEFT first.")
        changed[f"{module}.weight"] = replace(info, change=Merged(info.change, parts, adapter.scale(module)))
    elif "weight" in parts:
        changed[f"{module}.weight"] = replace(info, change=Replaced(info.change, parts["weight"]))
    given = parts.get("base_layer.bias", parts.get("bias"))
    summand = parts[UP_BIAS] * adapter.scale(module) if UP_BIAS in parts else None
    if given is not None or summand is not None:
        if (bias := checkpoint.tensors.get(f"{module}.bias")) is None:
            raise YopoError(f"{adapter.path} gives {module} a bias, which the model does not have.", "Convert the adapter: yopo adapt.")
        changed[f"{module}.bias"] = replace(bias, change=Replaced(bias.change, given, summand))
    return changed
