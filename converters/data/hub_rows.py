"""A few hundred rows of a data set of the Hub, by range reads: a table's files have gigabytes, and its end says where which rows are."""

import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from ..checkpoint.source import explained, limit_silence
from ..errors import YopoError
from .hub import ELSEWHERE

ROWS = 400
PLACES = 4  # row groups that rows are taken from, spread over the files: neighbours are often about the same picture
BATCH = 50
CONVERTED = "refs/convert/parquet"  # the Hub's own parquet files of data sets that have others
SPLITS = ("train", "validation", "val", "dev", "test")
"""Those to calibrate on, the first that there is; answers are not used, but what is measured on is best not planned on."""
COLUMNS = ("image", "images", "question", "text", "category", "answer", "answers", "conversations", "messages", "kind", "id")
ASKS = ("question", "text", "conversations", "messages")
PARTS = re.compile(r"(?P<split>.+?)(?:-\d+-of-\d+)?\.parquet")
NAMED = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[\w.-]+))?(?::(?P<config>[^:/]+)(?::(?P<split>[^:/]+))?)?", re.ASCII)


@dataclass(frozen=True)
class HubRows:
    """Which rows: None is the main branch, the only configuration or `default`, and the first of `SPLITS`."""

    repository: str
    revision: str | None
    config: str | None
    split: str | None

    @classmethod
    def of(cls, name: str) -> "HubRows":
        """From `OWNER/NAME[@REVISION][:CONFIG[:SPLIT]]`. Raises YopoError."""
        match = NAMED.fullmatch(name)
        if match is None:
            raise YopoError(f"hub:{name} names no data set.", "Such as hub:lmms-lab/POPE, hub:OWNER/NAME@REVISION:CONFIG:SPLIT.")
        return cls(**match.groupdict())


class RemoteFile(io.RawIOBase):
    """A file of a repository's commit, read where it is asked for."""

    def __init__(self, repository: str, file: str, commit: str) -> None:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        self.url = hf_hub_url(repository, file, repo_type="dataset", revision=commit)
        self.size, self.place = int(get_hf_file_metadata(self.url).size or 0), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: self.size}[whence]
        return self.place

    def readinto(self, buffer: Any) -> int:
        from huggingface_hub import get_session
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

        end = min(self.place + len(buffer), self.size)
        if end <= self.place:
            return 0
        answer = get_session().get(
            self.url, headers={**build_hf_headers(), "Range": f"bytes={self.place}-{end - 1}"}, follow_redirects=True
        )
        hf_raise_for_status(answer)
        if answer.status_code != 206:
            raise OSError(f"The server sends {self.url} as a whole only")
        buffer[: end - self.place] = answer.content
        count, self.place = end - self.place, end
        return count


def rows_file(name: str, count: int = ROWS) -> Path:
    """About `count` rows of `OWNER/NAME[@REVISION][:CONFIG[:SPLIT]]` as a parquet file in the Hub's cache of assets.

    What was taken once is there without a network. Raises YopoError.
    """
    asked = HubRows.of(name)
    limit_silence()
    try:
        return _cached(asked, count) or _taken(asked, count)
    except YopoError:
        raise
    except Exception as error:  # of an answer that makes no sense the Hub's client raises what it likes
        raise YopoError(explained(error, asked.repository, asked.revision, "data set").message, ELSEWHERE) from error


def _folder(asked: HubRows, count: int) -> Path:
    from huggingface_hub import cached_assets_path

    words = [word or "" for word in (asked.revision, asked.config, asked.split)]
    return Path(cached_assets_path("yopo", namespace=asked.repository, subfolder=f"{'--'.join(words)}--{count}"))


def _cached(asked: HubRows, count: int) -> Path | None:
    """What was taken before, where there is no asking: of a commit, or offline."""
    from huggingface_hub.constants import is_offline_mode

    settled = is_offline_mode() or re.fullmatch(r"[0-9a-f]{40}", asked.revision or "")
    return next(_folder(asked, count).glob("*.parquet"), None) if settled else None


def _taken(asked: HubRows, count: int) -> Path:
    """The rows of the commit that the revision is now, read unless they are there."""
    from huggingface_hub import HfApi

    info = HfApi().dataset_info(asked.repository, revision=asked.revision)
    tables = _tables(info)
    if not tables and asked.revision is None:
        info = HfApi().dataset_info(asked.repository, revision=CONVERTED)
        tables = _tables(info)
    files = _chosen(asked, tables)
    target = _folder(asked, count) / f"{info.sha}.parquet"
    if not target.exists():
        for older in target.parent.glob("*.parquet"):
            older.unlink()
        _write(_batches(asked.repository, files, str(info.sha), count), target)
    return target


def _tables(info: Any) -> dict[str, dict[str, list[str]]]:
    """Parquet files by configuration and split: as the data set's card has them, else by their names, as the Hub itself does."""
    files = sorted(file.rfilename for file in info.siblings or () if file.rfilename.endswith(".parquet"))
    card = getattr(info, "card_data", None)
    found: dict[str, dict[str, list[str]]] = {}
    for config in (card.get("configs") if card else None) or ():
        parts = config.get("data_files") or ()
        for part in parts if isinstance(parts, list) and all(isinstance(part, Mapping) for part in parts) else ():
            patterns = [part["path"]] if isinstance(part["path"], str) else part["path"]
            matching = [file for file in files if any(fnmatch(file, pattern) for pattern in patterns)]
            if matching:
                found.setdefault(str(config.get("config_name", "default")), {})[str(part["split"])] = matching
    if not found:
        for file in files:
            config_name, split = _named(PurePosixPath(file))
            found.setdefault(config_name, {}).setdefault(split, []).append(file)
    return found


def _named(file: PurePosixPath) -> tuple[str, str]:
    """Configuration and split by a file's name: `data/SPLIT-00000-of-00002.parquet`, CONFIG/SPLIT-..., or CONFIG/SPLIT/0000.parquet."""
    match = PARTS.fullmatch(file.name)
    split, folders = match["split"] if match else file.stem, list(file.parts[:-1])
    if split.isdigit() and folders:
        split = folders.pop()
    config = folders[-1] if folders and folders[-1] != "data" else "default"
    return config, split


def _chosen(asked: HubRows, tables: Mapping[str, Mapping[str, list[str]]]) -> list[str]:
    """The files of the configuration and split that were asked for. Raises YopoError that names those there are."""
    if not tables:
        raise YopoError(f"The data set {asked.repository} has no parquet files.", "Save its questions as JSONL or parquet.")
    config = asked.config or ("default" if "default" in tables else next(iter(tables)) if len(tables) == 1 else None)
    if config is None or config not in tables:
        what = f"no configuration {config}" if config else "several configurations"
        raise YopoError(f"The data set {asked.repository} has {what}.", f"There are: {', '.join(tables)}. Name one: hub:NAME:CONFIG.")
    splits = tables[config]
    split = asked.split or next((name for name in SPLITS if name in splits), next(iter(splits)))
    if split not in splits:
        raise YopoError(f"{config} of the data set {asked.repository} has no split {split}.", f"There are: {', '.join(splits)}.")
    return splits[split]


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of them, evenly spaced."""
    count = min(count, len(items))
    return [items[len(items) * place // count] for place in range(count)]


def _batches(repository: str, files: Sequence[str], commit: str, count: int) -> Iterator[Any]:
    """Batches of rows from a few places."""
    from .parquet import READ_BYTES, parquet_file

    chosen = _spread(files, PLACES)
    places = []
    for file in chosen:
        table = parquet_file(io.BufferedReader(RemoteFile(repository, file, commit), READ_BYTES), f"{repository}/{file}")
        places += [(table, group) for group in _spread(range(table.num_row_groups), PLACES // len(chosen))]
    if not places:
        raise YopoError(f"The data set {repository} has no rows.", "Name another split: hub:NAME:CONFIG:SPLIT.")
    columns = [name for name in places[0][0].schema_arrow.names if name in COLUMNS]
    if not set(columns) & set(ASKS):
        names = ", ".join(places[0][0].schema_arrow.names)
        raise YopoError(f"No column of {repository} is a question: it has {names}.", f"One of them must be {' or '.join(ASKS)}.")
    for table, group in places:
        wanted = -(-count // len(places))
        for batch in table.iter_batches(min(BATCH, wanted), row_groups=[group], columns=columns):
            yield batch[:wanted]
            wanted -= len(batch)
            if wanted <= 0:
                break


def _write(batches: Iterator[Any], target: Path) -> None:
    """Write rows as a file that is whole or not there."""
    import pyarrow
    from pyarrow import parquet

    part = target.with_suffix(".part")
    parquet.write_table(pyarrow.Table.from_batches(list(batches)), part, row_group_size=BATCH)
    os.replace(part, target)
