"""The header of a safetensors file: eight bytes of length, then JSON; format: huggingface.co/docs/safetensors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from ..errors import YopoError
from ..families.family import Change

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
DTYPE_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}
LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
DOWNLOAD_AGAIN = "The file is damaged or its download was cut short: fetch it again."


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor is and what it looks like; `dtype` is safetensors' name of it.

    With a `change`, `shape` is that of what it makes of the tensor on disk. `offset` is where its bytes begin in a safetensors file.
    """

    name_on_disk: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    change: Change | None = None
    offset: int | None = None

    @property
    def bytes(self) -> int:
        return prod(self.shape) * DTYPES[self.dtype].itemsize


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file. Raises YopoError if the file is truncated or is none."""
    header, length = _header_json(file)
    header.pop("__metadata__", None)
    tensors = {name: _tensor_info(file, name, entry, LENGTH_BYTES + length) for name, entry in header.items()}
    announced = LENGTH_BYTES + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    size = file.stat().st_size
    if size != announced:
        what = "truncated" if size < announced else "longer than it should be"
        raise YopoError(f"{file} is {what}: it has {size:,} bytes, its header announces {announced:,}.", DOWNLOAD_AGAIN)
    return tensors


def _header_json(file: Path) -> tuple[dict[str, Any], int]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
        if size < LENGTH_BYTES or length > MAX_HEADER_BYTES:
            raise YopoError(
                f"{file} is not a safetensors file (it has {size:,} bytes).",
                "If it is a Git LFS pointer, run `git lfs pull`; otherwise fetch it again.",
            )
        if size < LENGTH_BYTES + length:
            raise YopoError(f"{file} is truncated: it ends inside its header, after {size:,} bytes.", DOWNLOAD_AGAIN)
        text = stream.read(length)
    try:
        header = json.loads(text)
    except ValueError:
        raise YopoError(f"{file} is not a safetensors file: its header is not JSON.", DOWNLOAD_AGAIN) from None
    if not isinstance(header, dict):
        raise YopoError(f"{file} is not a safetensors file: its header is not an object.", DOWNLOAD_AGAIN)
    return header, length


def _tensor_info(file: Path, name: str, entry: Any, data: int) -> TensorInfo:
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if dtype not in DTYPES:
            raise YopoError(f"The tensor {name!r} in {file} has dtype {dtype}, which cannot be read.", "Use an unquantised checkpoint.")
        info = TensorInfo(name, file, dtype, shape, offset=data + start)
        consistent = 0 <= start <= end and end - start == info.bytes
    except (KeyError, TypeError, ValueError):
        consistent = False
    if not consistent:
        raise YopoError(f"The header of {file} contradicts itself about the tensor {name!r}: {entry}.", DOWNLOAD_AGAIN)
    return info
