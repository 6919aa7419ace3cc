"""What healing changes: the projector, which only visual tokens go through."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint.header import DTYPES
from ..checkpoint.reader import Checkpoint


def tuned_projector(model: Any) -> nn.Module:
    """The projector of a converted model, ready to be trained: in float32, everything else frozen."""
    model.requires_grad_(False)
    projector: nn.Module = model.get_submodule(model.projector)
    return projector.float().requires_grad_(True)


def projector_names(model: Any, checkpoint: Checkpoint) -> Iterator[tuple[str, nn.Parameter]]:
    """The projector's parameters by their names in the checkpoint."""
    for name, parameter in model.get_submodule(model.projector).named_parameters():
        yield checkpoint.family.projector + name, parameter


@torch.no_grad()
def round_as_written(model: Any, checkpoint: Checkpoint) -> None:
    """Bring the projector to the numbers that its dtype in the checkpoint can hold: what is measured is what is written."""
    for name, parameter in projector_names(model, checkpoint):
        parameter.copy_(parameter.to(DTYPES[checkpoint.tensors[name].dtype]))


def written_projector(model: Any, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The projector's tensors as the checkpoint has them."""
    return {
        name: parameter.detach().cpu().to(DTYPES[checkpoint.tensors[name].dtype]) for name, parameter in projector_names(model, checkpoint)
    }
