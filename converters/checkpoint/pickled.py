"""Checkpoints of pickled tensors, `.bin`: where each tensor is, without running code and without reading a weight."""

import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ..errors import YopoError
from .header import DTYPE_NAMES, Extent, TensorInfo, regular_size

AGAIN = "Fetch it again; a .bin older than PyTorch 1.6 must be saved anew as safetensors."
ANOTHER = "Use safetensors, or a .bin that has weights only."


def pickled_header(file: Path) -> dict[str, TensorInfo]:
    """What `read_header` gives, for a `.bin` file. Raises YopoError for a damaged file, one with code in it, and other dtypes."""
    size = regular_size(file)
    tensors = _announced(file)
    return {name: _tensor_info(file, size, name, tensor) for name, tensor in tensors.items()}


def _announced(file: Path) -> dict[str, Tensor]:
    """The tensors without data: torch tells for each where its storage is in the file."""
    try:
        with zipfile.ZipFile(file) as archive:
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
        with FakeTensorMode():
            tensors = torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise YopoError(f"{file} holds more than tensors and is not loaded.", ANOTHER) from None
    except Exception as error:  # a damaged pickle can raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise YopoError(f"{file} cannot be read: {reason}", AGAIN) from None
    if not stored:
        raise YopoError(f"{file} is compressed, which torch does not write.", AGAIN)
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) and tensor.layout == torch.strided for name, tensor in tensors.items()
    ):
        raise YopoError(f"{file} is not a flat dictionary of tensors by name.", ANOTHER)
    return tensors


def _tensor_info(file: Path, size: int, name: str, tensor: Tensor) -> TensorInfo:
    if tensor.dtype not in DTYPE_NAMES:
        raise YopoError(f"The tensor {name!r} in {file} has dtype {tensor.dtype}, which cannot be read.", "Use an unquantised checkpoint.")
    storage: Any = tensor.untyped_storage()
    begin: int | None = getattr(storage, "_checkpoint_offset", None)
    if begin is None:
        raise YopoError(f"The tensor {name!r} in {file} has no data.", ANOTHER)
    first = int(tensor.storage_offset()) * tensor.itemsize
    extent = Extent(begin + first, tuple(tensor.shape), None if tensor.is_contiguous() else tuple(tensor.stride()))
    needed = extent.elements * tensor.itemsize
    if first + needed > storage.nbytes() or extent.offset + needed > size:
        raise YopoError(f"{file} is truncated: the tensor {name!r} goes beyond its end.", AGAIN)
    return TensorInfo(name, file, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), extent)
