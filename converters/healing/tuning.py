"""What healing changes: the projector, which only visual tokens go through, or also the language model, which text goes through."""

from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ..checkpoint.header import DTYPES
from ..checkpoint.reader import Checkpoint

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
        for name, module in list(self.model.named_modules()):
            if isinstance(module, LoraLayer):
                module.merge()
                self.model.set_submodule(name, module.get_base_layer())
        for name, parameter in self.model.named_parameters():
            if name in self.names:
                parameter.copy_(parameter.to(self._dtype(name)))

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
    """The projector, and what peft's LoRA adds to every linear layer of the language model."""
    projector = tuned_projector(model, checkpoint)
    language_model = model.get_decoder()
    linear = sorted(name for name, module in language_model.named_modules() if isinstance(module, nn.Linear))
    torch.manual_seed(seed)
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=linear), language_model, ADAPTER)
    added = [module for module in language_model.modules() if isinstance(module, LoraLayer)]
    learning = nn.ModuleList(part for layer in added for part in (layer.lora_A, layer.lora_B))
    names = projector.names | {f"{checkpoint.family.text_prefix}{name}.weight" for name in linear}
    return Tuned(model, checkpoint, nn.ModuleList([projector.part, learning.float().requires_grad_(True)]), names)


def _names(checkpoint: Checkpoint, prefix: str) -> frozenset[str]:
    return frozenset(name for name in checkpoint.tensors if name.startswith(prefix))
