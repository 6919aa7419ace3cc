"""What healing changes: the projector, which only visual tokens go through, or also the language model, which text goes through."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..checkpoint.header import DTYPES
from ..checkpoint.reader import Checkpoint
from ..runtime.split_linear import SplitLinear

RANK = 16
ADAPTER = "healing"


@dataclass(frozen=True)
class Tuned:
    """The part of a converted `model` that learns, in float32; all else is frozen. `names` are the checkpoint's tensors that it changes."""

    model: Any
    checkpoint: Checkpoint
    part: nn.Module
    names: frozenset[str]

    @torch.no_grad()
    def finish(self) -> None:
        """Merge what was added, and bring all to the numbers that the checkpoint's dtypes can hold: what is measured is what is written."""
        for module in list(self.model.modules()):
            for name in list(getattr(module, "parametrizations", ())):
                parametrize.remove_parametrizations(module, name)
        for name, parameter in self.model.named_parameters():
            stored = name.removesuffix(".kept").removesuffix(".rest")
            stored = name if stored == name else f"{stored}.weight"
            if stored in self.names:
                parameter.copy_(parameter.to(self._dtype(stored)))

    def tensors(self) -> dict[str, Tensor]:
        """What learned, as the checkpoint has it."""
        state = self.model.state_dict()
        return {name: state[name].cpu().to(self._dtype(name)) for name in sorted(self.names)}

    def _dtype(self, name: str) -> torch.dtype:
        return DTYPES[self.checkpoint.info(name).dtype]


def tuned_projector(model: Any, checkpoint: Checkpoint) -> Tuned:
    """The projector alone."""
    model.requires_grad_(False)
    projector: nn.Module = model.get_submodule(model.projector)
    return Tuned(model, checkpoint, projector.float().requires_grad_(True), _names(checkpoint, checkpoint.family.projector))


def tuned_language(model: Any, checkpoint: Checkpoint, seed: int) -> Tuned:
    """The projector, and what peft's LoRA adds to every linear layer of the language model.

    The runtime takes weights apart rather than call their layers: so it is added where a weight is read, and not by peft's own forward.
    """
    projector = tuned_projector(model, checkpoint)
    language_model = model.model.language_model
    assert not language_model.split, "a model that has run is in parts that peft does not know"
    linear = {name: module for name, module in language_model.named_modules() if isinstance(module, nn.Linear)}
    torch.manual_seed(seed)
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=sorted(linear)), language_model, ADAPTER)
    added = {name: language_model.get_submodule(name) for name in linear}
    for name, module in linear.items():
        language_model.set_submodule(name, module)
    language_model.split_weights()
    for name, layer in added.items():
        module = language_model.get_submodule(name)
        for part, places in _parts(module):
            parametrize.register_parametrization(module, part, Added(layer, getattr(module, "dim", 0), places))
    learning = nn.ModuleList(part for layer in added.values() for part in (layer.lora_A, layer.lora_B))
    names = projector.names | {f"model.language_model.{name}.weight" for name in added}
    return Tuned(model, checkpoint, nn.ModuleList([projector.part, learning.float().requires_grad_(True)]), names)


class Added(nn.Module):
    """A weight, or the rows (`dim` 0) or columns (1) at `places` of one, with what a LoRA layer of peft adds to it."""

    def __init__(self, layer: Any, dim: int, places: tuple[int, ...] | None) -> None:
        super().__init__()
        self.layer = [layer]  # in a list, which modules do not look into
        self.dim, self.places = dim, places

    def forward(self, weight: Tensor) -> Tensor:
        added: Tensor = self.layer[0].get_delta_weight(ADAPTER)
        if self.places is not None:
            added = added.index_select(self.dim, torch.tensor(self.places, device=added.device))
        return (weight + added).to(weight.dtype)


def _parts(module: nn.Module) -> Iterator[tuple[str, tuple[int, ...] | None]]:
    """The parameters that hold a layer's weight, and the rows or columns of it that each has (None: all)."""
    if isinstance(module, SplitLinear):
        yield "kept", module.order[: module.count]
        yield "rest", module.order[module.count :]
    else:
        yield "weight", None


def _names(checkpoint: Checkpoint, prefix: str) -> frozenset[str]:
    return frozenset(name for name in checkpoint.tensors if name.startswith(prefix))
