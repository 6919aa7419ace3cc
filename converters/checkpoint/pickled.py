"""Checkpoints of pickled tensors, `.bin`: read without running code, and mapped."""

import pickle
from pathlib import Path

import torch
from torch import Tensor

from ..errors import YopoError
from .header import DTYPE_NAMES, TensorInfo


def load_pickled(file: Path) -> dict[str, Tensor]:
    """The tensors of a `.bin` file, mapped from disk. Raises YopoError for a damaged file and for one with code in it."""
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise YopoError(f"{file} holds more than tensors and is not loaded.", "Use safetensors, or a .bin that has weights only.") from None
    except RuntimeError as error:
        hint = "Fetch it again; a .bin older than PyTorch 1.6 must be saved anew as safetensors."
        raise YopoError(f"{file} cannot be read: {str(error).splitlines()[0]}", hint) from None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise YopoError(f"{file} is not a flat dictionary of tensors.", "Use safetensors, or a .bin that has the model's weights only.")
    return tensors


def pickled_header(file: Path, tensors: dict[str, Tensor]) -> dict[str, TensorInfo]:
    """What `read_header` gives, for a `.bin` file. Raises YopoError for a dtype that safetensors has not."""
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPE_NAMES:
            raise YopoError(
                f"The tensor {name!r} in {file} has dtype {tensor.dtype}, which cannot be read.", "Use an unquantised checkpoint."
            )
    return {name: TensorInfo(name, file, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()}
