"""Where the numbers of a graph are: byte ranges of the checkpoint's own files, and what has to be written beside them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor

from ...checkpoint.header import DTYPES, LENGTH_BYTES, TensorInfo
from ...checkpoint.reader import Checkpoint
from ...checkpoint.writer import Entry, Shard, header_bytes, write_shard

ONNX_DTYPES = {
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
    "U8": ir.DataType.UINT8,
    "I8": ir.DataType.INT8,
}


@dataclass(frozen=True)
class Weight:
    """Part of a tensor of the checkpoint: rows `first` to `last` (None: all), or of these the rows or columns at some places."""

    name: str
    first: int = 0
    last: int | None = None
    rows: tuple[int, ...] | None = None
    columns: tuple[int, ...] | None = None

    def part(self, first: int, last: int) -> "Weight":
        """Rows of this weight, counted from its own first."""
        return replace(self, first=self.first + first, last=self.first + last)

    @property
    def gathered(self) -> bool:
        """Whether it is no range of bytes of its tensor."""
        return self.rows is not None or self.columns is not None


@dataclass(frozen=True)
class ByteRange:
    """A range of bytes: `start` counts from the beginning of the entry `source`, of a file of the checkpoint or of an added one."""

    source: str
    label: str
    dtype: ir.DataType
    shape: tuple[int, ...]
    start: int = 0

    def rows(self, first: int, last: int) -> "ByteRange":
        """Its rows `first` to `last`."""
        row = prod(self.shape[1:]) * self.dtype.itemsize
        label = f"{self.label}[{first}:{last}]"
        return replace(self, shape=(last - first, *self.shape[1:]), start=int(self.start + first * row), label=label)


@dataclass
class Store:
    """The weights of the graphs in one folder.

    With `beside` the graphs lie in the checkpoint's folder and refer to its own files; otherwise each tensor that is used is copied.
    `file` is where everything lies that is not in the checkpoint's files as it is needed.
    """

    checkpoint: Checkpoint
    folder: Path
    file: str
    beside: bool
    _entries: dict[str, Entry] = field(default_factory=dict)
    _makers: dict[str, Callable[[], Tensor]] = field(default_factory=dict)
    _starts: dict[str, int] = field(default_factory=dict)
    _copied: set[str] = field(default_factory=set)
    sha256: str | None = None

    def place(self, weight: Weight) -> ByteRange:
        """Where a weight is, or will be when the store is finished."""
        info = self.checkpoint.info(weight.name)
        if weight.gathered:
            return self.add(self.label(weight), info.dtype, _gathered_shape(weight, info), lambda: self.read(weight))
        if not self._in_place(info) and weight.name not in self._entries:
            self._copied.add(weight.name)
            self.add(weight.name, info.dtype, info.shape, lambda: self.checkpoint.read(weight.name))
        whole = ByteRange(weight.name, weight.name, ONNX_DTYPES[info.dtype], info.shape)
        return whole if self.whole(weight) else whole.rows(weight.first, weight.last or info.shape[0])

    def whole(self, weight: Weight) -> bool:
        """Whether it is all of its tensor."""
        return not weight.gathered and weight.first == 0 and weight.last in (None, self.checkpoint.info(weight.name).shape[0])

    def label(self, weight: Weight) -> str:
        """A name that says which part of which tensor it is."""
        if weight.columns is not None:
            return f"{weight.name}.visual_columns"
        if weight.rows is not None:
            return f"{weight.name}.visual_rows"
        return weight.name if self.whole(weight) else f"{weight.name}[{weight.first}:{weight.last}]"

    def shape(self, weight: Weight) -> tuple[int, ...]:
        """`[out, in]`."""
        info = self.checkpoint.info(weight.name)
        if weight.gathered:
            return _gathered_shape(weight, info)
        return ((info.shape[0] if weight.last is None else weight.last) - weight.first, *info.shape[1:])

    def read(self, weight: Weight) -> Tensor:
        """The numbers of a weight."""
        tensor = self.checkpoint.read(weight.name)[weight.first : weight.last]
        if weight.rows is not None:
            tensor = tensor.index_select(0, torch.tensor(weight.rows, dtype=torch.long))
        if weight.columns is not None:
            tensor = tensor[:, : len(weight.columns)] if _leading(weight.columns) else tensor[:, list(weight.columns)]
        return tensor.contiguous()

    def add(self, name: str, dtype: str, shape: Sequence[int], make: Callable[[], Tensor]) -> ByteRange:
        """A tensor of the added file, made when the store is finished; `dtype` is safetensors' name of it."""
        if name not in self._entries:
            self._entries[name] = Entry(name, dtype, tuple(shape))
            self._makers[name] = make
        return ByteRange(name, name, ONNX_DTYPES[dtype], tuple(shape))

    def finish(self) -> None:
        """Write the added file, if there is anything to write. Places are known from now on."""
        if not self._entries:
            return
        # Each begins at a multiple of its size: odd lengths come last, wider types first. Otherwise in order: some are made together.
        entries = tuple(sorted(self._entries.values(), key=_odd))
        shard = Shard(self.file, entries)
        start = len(header_bytes(shard))
        for entry in entries:
            self._starts[entry.name] = start
            start += entry.bytes
        (self.folder / self.file).unlink(missing_ok=True)
        self.sha256 = write_shard(self.folder, shard, lambda name: self._makers[name]())

    @property
    def written(self) -> tuple[str, ...]:
        """The added file, () where there is none."""
        return (self.file,) if self._entries else ()

    @property
    def added_bytes(self) -> int:
        """Bytes of numbers that were written although the checkpoint's files have them in another order or form."""
        return sum(entry.bytes for name, entry in self._entries.items() if name not in self._copied)

    @property
    def bytes_to_write(self) -> int:
        return sum(entry.bytes for entry in self._entries.values())

    @property
    def copied_bytes(self) -> int:
        """Bytes of tensors copied as they are, because the graphs lie in another folder."""
        return sum(self._entries[name].bytes for name in self._copied)

    def external(self, piece: ByteRange, name: str, folder: Path) -> ir.ExternalTensor:
        """The piece as ONNX refers to it: a file name, an offset and a length."""
        if piece.source in self._entries:
            file, start = self.file, self._starts[piece.source]
        else:
            info = self.checkpoint.info(piece.source)
            assert info.offset is not None
            file, start = info.file.name, info.offset
        length = prod(piece.shape) * piece.dtype.itemsize
        return ir.ExternalTensor(
            file, int(start + piece.start), int(length), piece.dtype, shape=ir.Shape(piece.shape), name=name, base_dir=folder
        )

    def _in_place(self, info: TensorInfo) -> bool:
        return self.beside and info.change is None and info.offset is not None and info.file.parent == self.checkpoint.path


def _odd(entry: Entry) -> int:
    return 0 if entry.bytes % LENGTH_BYTES == 0 else LENGTH_BYTES - DTYPES[entry.dtype].itemsize


def _gathered_shape(weight: Weight, info: TensorInfo) -> tuple[int, ...]:
    rows = len(weight.rows) if weight.rows is not None else (info.shape[0] if weight.last is None else weight.last) - weight.first
    return (rows, *((len(weight.columns),) if weight.columns is not None else info.shape[1:]))


def _leading(places: Sequence[int]) -> bool:
    return tuple(places) == tuple(range(len(places)))
