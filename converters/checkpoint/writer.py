"""Writing safetensors shards as a stream: everything is known first, then one tensor at a time is in memory."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import YopoError
from .folder import synchronise
from .header import DTYPE_NAMES, DTYPES, LENGTH_BYTES

MAX_SHARD_BYTES = 5_000_000_000
PIECE_BYTES = 1 << 26


@dataclass(frozen=True)
class Entry:
    """A tensor to be written; `dtype` is safetensors' name of it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Shard:
    file: str
    entries: tuple[Entry, ...]

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.entries)


def plan_shards(entries: Iterable[Entry], max_bytes: int = MAX_SHARD_BYTES) -> tuple[Shard, ...]:
    """Shards of at most `max_bytes` of tensors (more only for one tensor larger than that), layers in their natural order."""
    groups: list[list[Entry]] = [[]]
    filled = 0
    for entry in sorted(entries, key=lambda entry: _natural(entry.name)):
        if groups[-1] and filled + entry.bytes > max_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(entry)
        filled += entry.bytes
    if len(groups) == 1:
        return (Shard("model.safetensors", _aligned(groups[0])),)
    return tuple(Shard(f"model-{i:05d}-of-{len(groups):05d}.safetensors", _aligned(group)) for i, group in enumerate(groups, 1))


def index_text(shards: Iterable[Shard]) -> str:
    """model.safetensors.index.json"""
    places = {entry.name: shard.file for shard in shards for entry in shard.entries}
    total = sum(shard.bytes for shard in shards)
    return json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}, indent=2) + "\n"


def write_shard(folder: Path, shard: Shard, tensor_of: Callable[[str], Tensor], written: Callable[[int], None] = lambda count: None) -> str:
    """Write one shard and return its sha256. `written` is told the bytes of every tensor.

    Raises YopoError if a tensor holds NaN or infinity.
    """
    digest = hashlib.sha256()
    # Hashing runs beside writing: both release the interpreter's lock.
    with (folder / shard.file).open("xb", buffering=0) as stream, ThreadPoolExecutor(1) as pool:
        _write(stream, memoryview(header_bytes(shard)), digest, pool)
        for entry in shard.entries:
            tensor = tensor_of(entry.name).contiguous()
            if (DTYPE_NAMES[tensor.dtype], tuple(tensor.shape)) != (entry.dtype, entry.shape):
                raise RuntimeError(f"{entry} was announced, {tensor.dtype} {tuple(tensor.shape)} came")
            check_finite(entry.name, tensor)
            _write(stream, _bytes_of(tensor), digest, pool)
            written(entry.bytes)
    synchronise(folder / shard.file)
    return digest.hexdigest()


def header_bytes(shard: Shard) -> bytes:
    """Length and JSON header of a shard; padded, so that tensors begin at a multiple of eight bytes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for entry in shard.entries:
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [start, start + entry.bytes]}
        start += entry.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise YopoError if the tensor holds NaN or infinity. One pass and no copy: minimum and maximum hand both on."""
    if tensor.is_floating_point() and tensor.itemsize == 1:  # which have no minimum
        tensor = tensor.to(torch.float16)
    if tensor.numel() and not all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor)):
        count = tensor.numel() - int(torch.isfinite(tensor).sum())
        raise YopoError(
            f"The tensor {name!r} holds {count:,} values that are NaN or infinite.",
            "The checkpoint is damaged or its training diverged; yopo does not prune such a model.",
        )


def _bytes_of(tensor: Tensor) -> memoryview:
    array: Any = tensor.flatten().view(torch.uint8).numpy()
    return memoryview(array)


def _write(stream: FileIO, data: memoryview, digest: "hashlib._Hash", pool: ThreadPoolExecutor) -> None:
    hashed = pool.submit(digest.update, data)
    for start in range(0, len(data), PIECE_BYTES):
        piece = data[start : start + PIECE_BYTES]
        while piece:
            piece = piece[stream.write(piece) :]
    hashed.result()


def _aligned(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Wider dtypes first, so that every tensor begins at a multiple of its element's size."""
    return tuple(sorted(entries, key=lambda entry: -DTYPES[entry.dtype].itemsize))


def _natural(name: str) -> list[tuple[bool, int | str]]:
    """Sorts layer 2 before layer 10."""
    return [(part.isdigit(), int(part) if part.isdigit() else part) for part in re.split(r"(\d+)", name)]
