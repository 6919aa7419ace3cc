"""Data sets of the Hugging Face Hub: files of one commit, downloaded once; with HF_HUB_OFFLINE=1 from the cache alone."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download

from ..checkpoint.source import explained, limit_silence
from ..errors import YopoError

ELSEWHERE = "Give a folder with the data: --task NAME=FOLDER. For what is private or gated, set HF_TOKEN."
PART = re.compile(r"(.*)-(\d+)-of-(\d+)\.parquet")


@dataclass(frozen=True)
class Snapshot:
    """Files of a data set. `revision` is the Hub's commit."""

    repository: str
    revision: str
    folder: Path
    files: tuple[Path, ...]


def snapshot(repositories: Sequence[str], patterns: Sequence[str], revision: str | None = None) -> Snapshot:
    """The files of the first of these repositories (names of the same data) that has them. Raises YopoError.

    `revision` is a branch, a tag or a commit; None is the main branch.
    """
    limit_silence()
    failures = []
    for repository in repositories:
        try:
            folder = Path(snapshot_download(repository, repo_type="dataset", revision=revision, allow_patterns=list(patterns)))
        except Exception as error:  # of an answer that makes no sense the Hub's client raises what it likes
            failures.append(YopoError(explained(error, repository, revision, "data set").message, ELSEWHERE))
            continue
        files = tuple(sorted(file for pattern in patterns for file in folder.glob(pattern)))
        if files:
            _check_whole(files, repository)
            return Snapshot(repository, folder.name, folder, files)
        failures.append(YopoError(f"The data set {repository} has no file {' or '.join(patterns)}.", "It may have moved: pin a revision."))
    others = f" Nor is there {', '.join(repositories[1:])}." if repositories[1:] else ""
    raise YopoError(failures[0].message + others, failures[0].hint)


def _check_whole(files: Sequence[Path], repository: str) -> None:
    """Raise YopoError where a table's parts are not all there, as after a download that was cut off and went offline."""
    parts = [match for file in files if (match := PART.fullmatch(file.name))]
    for name, count in {(match[1], int(match[3])) for match in parts}:
        there = {int(match[2]) for match in parts if match[1] == name and int(match[3]) == count}
        if missing := count - len(there):
            raise YopoError(f"{missing} of the {count} files {name}-*.parquet of {repository} are not in the cache.", "Fetch them online.")
