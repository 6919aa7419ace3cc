"""Rows of parquet files as `datasets` writes them: pictures are a struct of `bytes` and `path`, read when they are opened."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from ..errors import YopoError
from .pictures import Picture, picture_of

GROUPS_KEPT = 2  # row groups of pictures in memory
READ_BYTES = 1 << 18  # at a time, of a file that is elsewhere


def parquet_rows(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """All rows in order, picture columns as `Picture` (None where there is none, a tuple for a list). Raises YopoError."""
    for file in files:
        table = _opened(file)
        pictures = {field.name for field in table.schema_arrow if _holds_pictures(field.type)}
        others = [field.name for field in table.schema_arrow if field.name not in pictures]
        start = 0
        for group in range(table.num_row_groups):
            present = {name: _present(file, group, name) for name in pictures}
            rows = table.read_row_group(group, columns=others).to_pylist() if others else [{}] * len(next(iter(present.values())))
            for index, row in enumerate(rows):
                place = f"{file.name}, row {start + index}"
                yield row | {name: _pictures(Cell(file, group, name, index, place), present[name][index]) for name in pictures}
            start += len(rows)


@dataclass(frozen=True)
class Cell:
    """Where one picture, or a list of them, is."""

    file: Path
    group: int
    column: str
    index: int
    place: str

    def picture(self, number: int | None = None) -> Picture:
        def read() -> bytes:
            value = _column(self.file, self.group, self.column)[self.index].as_py()
            value = value if number is None else value[number]
            data: bytes | None = value["bytes"]
            return (self.file.parent / value["path"]).read_bytes() if data is None else data

        return picture_of(f"The picture in column {self.column} of {self.place}", read)


def _pictures(cell: Cell, count: int | None) -> Any:
    """`count`: pictures of a list, -1 for a single one, None for a null."""
    if count is None:
        return None
    return cell.picture() if count < 0 else tuple(cell.picture(number) for number in range(count))


def _present(file: Path, group: int, name: str) -> list[int | None]:
    """Of each row, what there is, as `_pictures` counts it."""
    column = _column(file, group, name)
    if _is_list(column.type):
        return [None if value is None else len(value) for value in column.to_pylist()]
    return [-1 if there else None for there in column.is_valid().to_pylist()]


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_list(kind) or types.is_large_list(kind))


def _holds_pictures(kind: Any) -> bool:
    from pyarrow import types

    inner = kind.value_type if _is_list(kind) else kind
    return bool(types.is_struct(inner)) and {inner.field(place).name for place in range(inner.num_fields)} == {"bytes", "path"}


@lru_cache(maxsize=GROUPS_KEPT)
def _column(file: Path, group: int, name: str) -> Any:
    """The column of one row group, kept while its neighbours are asked for."""
    return _opened(file).read_row_group(group, columns=[name]).column(name)


@cache
def _opened(file: Path) -> Any:
    return parquet_file(file, str(file))


def parquet_file(source: Any, place: str) -> Any:
    """The opened table of a file, by path or as Python reads it. What it is asked for is read then, and no more. Raises YopoError."""
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise YopoError("Parquet files are read by pyarrow, which is not installed.", "pip install 'yopo[tasks]'") from None
    try:
        return ParquetFile(source, pre_buffer=False, buffer_size=0 if isinstance(source, Path) else READ_BYTES)
    except (OSError, ArrowInvalid) as error:
        raise YopoError(
            f"{place} cannot be read as parquet: {error}.", "Is it whole? Files of the Hub's cache can be fetched again."
        ) from None


def joined(rows: Iterable[Mapping[str, Any]], pictures: Iterable[Mapping[str, Any]], here: str, there: str) -> Iterator[dict[str, Any]]:
    """Rows with the `image` of another table whose column `there` equals theirs `here` (GQA). Raises YopoError where there is none."""
    by_name = {str(row[there]): row["image"] for row in pictures}
    for row in rows:
        if str(row[here]) not in by_name:
            raise YopoError(f"There is no picture {row[here]} among the {len(by_name)} of the data set.", "Fetch both of its tables.")
        yield {**row, "image": by_name[str(row[here])]}
