"""The header of a safetensors file: eight bytes of length, then JSON; format: huggingface.co/docs/safetensors."""

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import YopoError
from ..families.family import Change
from ..json_files import parse_json

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
class Extent:
    """A tensor's place in its file: where it begins, in bytes, its shape there, and its strides where it is not contiguous."""

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None

    @property
    def elements(self) -> int:
        """Elements from the first to the last."""
        if self.strides is None or 0 in self.shape:
            return prod(self.shape)
        return 1 + sum((count - 1) * stride for count, stride in zip(self.shape, self.strides, strict=True))


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor is and what it looks like; `dtype` is safetensors' name of it.

    With a `change`, `shape` is that of what it makes of the tensor on disk.
    """

    name_on_disk: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    extent: Extent
    change: Change | None = None

    @property
    def bytes(self) -> int:
        return prod(self.shape) * DTYPES[self.dtype].itemsize

    @property
    def read_dtype(self) -> str:
        """The dtype of what reading it gives: a quantised weight is read as the numbers that it stands for."""
        return str(getattr(self.change, "dtype", self.dtype))

    @property
    def offset(self) -> int | None:
        """Where its bytes begin in a safetensors file, None in another."""
        return self.extent.offset if self.file.suffix == ".safetensors" else None


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file. Raises YopoError if it is truncated, is none, or contradicts itself."""
    header, length = _header_json(file)
    read_metadata(file)
    header.pop("__metadata__", None)
    tensors = {name: _tensor_info(file, name, entry, LENGTH_BYTES + length) for name, entry in header.items()}
    announced = _end_of(file, tensors, LENGTH_BYTES + length)
    size = file.stat().st_size
    if size != announced:
        what = "truncated" if size < announced else "longer than it should be"
        raise YopoError(f"{file} is {what}: it has {size:,} bytes, its header announces {announced:,}.", DOWNLOAD_AGAIN)
    return tensors


def read_metadata(file: Path) -> dict[str, str]:
    """What a safetensors file says of itself, {} for nothing. Raises YopoError."""
    metadata = _header_json(file)[0].get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise YopoError(f"The header of {file} has metadata that are not texts.", DOWNLOAD_AGAIN)
    return metadata


def read_tensor(info: TensorInfo) -> Tensor:
    """The tensor on disk, without its change, in memory of its own. Raises YopoError where the file has become shorter.

    Files are read and not mapped: where a mapped file is cut short meanwhile, the system ends the process.
    """
    extent = info.extent
    flat = torch.empty(extent.elements, dtype=DTYPES[info.dtype])
    _read_bytes(info.file, extent.offset, _memory(flat))
    return flat.view(extent.shape) if extent.strides is None else flat.as_strided(extent.shape, extent.strides)


def ends_of(info: TensorInfo, count: int) -> tuple[bytes, bytes]:
    """The first and last bytes of a contiguous tensor on disk, `count` each, or all of a smaller one."""
    total = info.extent.elements * DTYPES[info.dtype].itemsize
    first, last = bytearray(min(count, total)), bytearray(min(count, total))
    _read_bytes(info.file, info.extent.offset, memoryview(first))
    _read_bytes(info.file, info.extent.offset + total - len(last), memoryview(last))
    return bytes(first), bytes(last)


def _memory(flat: Tensor) -> memoryview:
    array: Any = flat.view(torch.uint8).numpy()
    return memoryview(array)


def _read_bytes(file: Path, offset: int, target: memoryview) -> None:
    try:
        with file.open("rb", buffering=0) as stream:
            stream.seek(offset)
            while target:
                if not (count := stream.readinto(target)):
                    raise YopoError(f"{file} was cut short while it was read.", DOWNLOAD_AGAIN)
                target = target[count:]
    except OSError as error:
        raise YopoError(f"{file} cannot be read: {error.strerror}.", DOWNLOAD_AGAIN) from None


def regular_size(file: Path) -> int:
    """The bytes of a file of weights. Raises YopoError where it cannot be read, and for a pipe or a device, which would never end."""
    try:
        status = file.stat()
    except OSError as error:
        raise YopoError(f"{file} cannot be read: {error.strerror}.", DOWNLOAD_AGAIN) from None
    if not stat.S_ISREG(status.st_mode):
        raise YopoError(f"{file} is not a regular file.", DOWNLOAD_AGAIN)
    return status.st_size


def _header_json(file: Path) -> tuple[dict[str, Any], int]:
    size = regular_size(file)
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
            text = stream.read(length) if size >= LENGTH_BYTES and length <= MAX_HEADER_BYTES else b""
    except OSError as error:
        raise YopoError(f"{file} cannot be read: {error.strerror}.", DOWNLOAD_AGAIN) from None
    if size < LENGTH_BYTES or length > MAX_HEADER_BYTES:
        raise YopoError(
            f"{file} is not a safetensors file (it has {size:,} bytes).",
            "If it is a Git LFS pointer, run `git lfs pull`; otherwise fetch it again.",
        )
    if len(text) < length:
        raise YopoError(f"{file} is truncated: it ends inside its header, after {size:,} bytes.", DOWNLOAD_AGAIN)
    header = parse_json(text, f"The header of {file}", DOWNLOAD_AGAIN)
    if not isinstance(header, dict):
        raise YopoError(f"The header of {file} is not a JSON object.", DOWNLOAD_AGAIN)
    return header, length


def _tensor_info(file: Path, name: str, entry: Any, data: int) -> TensorInfo:
    if not _well_formed(entry):
        raise YopoError(f"The header of {file} contradicts itself about the tensor {name!r}: {entry!r:.200}.", DOWNLOAD_AGAIN)
    if entry["dtype"] not in DTYPES:
        raise YopoError(
            f"The tensor {name!r} in {file} has dtype {entry['dtype']}, which cannot be read.", "Use an unquantised checkpoint."
        )
    start, end = entry["data_offsets"]
    info = TensorInfo(name, file, entry["dtype"], tuple(entry["shape"]), Extent(data + start, tuple(entry["shape"])))
    if end - start != prod(info.shape) * DTYPES[info.dtype].itemsize:
        raise YopoError(f"The header of {file} contradicts itself about the tensor {name!r}: {entry!r:.200}.", DOWNLOAD_AGAIN)
    return info


def _well_formed(entry: Any) -> bool:
    """Whether a tensor's entry has its three keys, with values of the right types."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"} or not isinstance(entry["dtype"], str):
        return False
    shape, offsets = entry["shape"], entry["data_offsets"]
    counts = isinstance(shape, list) and isinstance(offsets, list) and all(type(count) is int and count >= 0 for count in shape + offsets)
    return counts and len(offsets) == 2 and offsets[0] <= offsets[1]


def _end_of(file: Path, tensors: Mapping[str, TensorInfo], data: int) -> int:
    """Where the last tensor ends. Raises YopoError unless they follow one another without gaps, as the format has it."""
    end = data
    for info in sorted(tensors.values(), key=lambda info: (info.extent.offset, info.bytes)):
        if info.extent.offset != end:
            raise YopoError(f"The header of {file} has tensors that overlap or leave a gap, at {info.name_on_disk!r}.", DOWNLOAD_AGAIN)
        end += info.bytes
    return end
