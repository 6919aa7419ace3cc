"""Where a benchmark's rows are: the Hub, parquet files, LLaVA's playground or MMBench's TSV; all as rows in the Hub's columns."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from ..data.hub import snapshot
from ..data.parquet import joined, parquet_rows
from ..data.playground import LAYOUTS, explained, mmbench
from ..errors import YopoError
from .task import HubSet, Question, Task
from .tasks import task

Row = Mapping[str, Any]
ASKED = re.compile(r"(?P<name>[\w-]+)(?:@(?P<revision>[\w./-]+))?(?:=(?P<place>.+))?", re.ASCII)
FOLDERS = {"textvqa-ocr": "textvqa", "mme": "MME", "mmbench-cn": "mmbench_cn"}
"""A task's folder in LLaVA's playground, where it is not the task's name."""
FORMS = "Give NAME for the Hub, NAME@REVISION to pin it, or NAME=PLACE: parquet files, a TSV of MMBench, or LLaVA's playground/data/eval."


@dataclass(frozen=True)
class Asked:
    """A task's questions, those that were drawn, and where they come from (JSON-ready)."""

    task: Task
    questions: tuple[Question, ...]
    origin: Mapping[str, Any]


def ask_for(text: str, protocol: str, count: int | None = None, seed: int = 0) -> Asked:
    """What `NAME[@REVISION][=PLACE]` means; of its questions about `count`, drawn with `seed` in whole units. Raises YopoError."""
    match = ASKED.fullmatch(text)
    if match is None:
        raise YopoError(f"{text!r} is not a task.", FORMS)
    benchmark = task(match["name"])
    if match["revision"] and match["place"]:
        raise YopoError(f"{text!r} has a revision and a place.", "A revision is the Hub's: give one or the other.")
    rows, origin = _local(benchmark, Path(match["place"])) if match["place"] else _hub(benchmark.source, match["revision"])
    questions = [_question(benchmark, row, protocol, number) for number, row in enumerate(rows)]
    _check(benchmark, questions)
    drawn = tuple(questions if count is None else draw(questions, count, seed))
    return Asked(benchmark, drawn, {**origin, "questions": len(questions), "asked": len(drawn)})


def draw(questions: list[Question], count: int, seed: int) -> list[Question]:
    """Whole units drawn until there are `count` questions or more, in their order."""
    units: dict[str, int] = {}
    for question in questions:
        units[question.unit] = units.get(question.unit, 0) + 1
    names, chosen, total = list(units), set(), 0
    for name in Random(seed).sample(names, len(names)):
        if total >= count:
            break
        chosen.add(name)
        total += units[name]
    return [question for question in questions if question.unit in chosen]


def _question(benchmark: Task, row: Row, protocol: str, number: int) -> Question:
    try:
        return benchmark.question({**row, "number": number}, protocol)
    except KeyError as error:
        raise YopoError(
            f"Row {number} of {benchmark.name} has no {error}, but {', '.join(row)}.", "Is it that benchmark's schema?"
        ) from None


def _check(benchmark: Task, questions: list[Question]) -> None:
    if not questions:
        raise YopoError(f"{benchmark.name} has no questions.", FORMS)
    if untold := next((one for one in questions if not one.accepted or not one.accepted[0]), None):
        raise YopoError(
            f"Question {untold.id} of {benchmark.name} has no answer to compare with.", "Is it a split whose truth is not published?"
        )
    if blind := next((one for one in questions if None in one.images or not one.images), None):
        raise YopoError(f"Question {blind.id} of {benchmark.name} lacks its picture.", "Fetch the data again.")


def _hub(source: HubSet, revision: str | None) -> tuple[Iterator[Row], dict[str, Any]]:
    patterns = [source.files, *([source.pictures[0]] if source.pictures else [])]
    fetched = snapshot(source.repositories, patterns, revision)
    return _tables(source, fetched.folder), {"repository": fetched.repository, "revision": fetched.revision}


def _tables(source: HubSet, folder: Path) -> Iterator[Row]:
    """Rows of the parquet files below a folder that has the Hub's layout, or the files alone."""
    rows = parquet_rows(_matching(folder, source.files))
    if source.pictures is None:
        return rows
    pattern, here, there = source.pictures
    return joined(rows, parquet_rows(_matching(folder, pattern)), here, there)


def _matching(folder: Path, pattern: str) -> list[Path]:
    if folder.is_file():
        return [folder]
    files = sorted(folder.rglob(pattern)) or sorted(folder.rglob(Path(pattern).name))
    if not files:
        raise YopoError(f"There are no files {pattern} in {folder}.", FORMS)
    return files


def _local(benchmark: Task, place: Path) -> tuple[Iterator[Row], dict[str, Any]]:
    origin = {"place": str(place)}
    if not place.exists():
        raise YopoError(f"There is no {place}.", FORMS)
    if benchmark.name.startswith("mmbench") and (table := _table(place, FOLDERS.get(benchmark.name, benchmark.name))):
        return explained(mmbench(table), table), origin
    name = FOLDERS.get(benchmark.name, benchmark.name)
    sign, read = LAYOUTS.get(name, ("", None))
    for folder in (place, place / name):
        if read is not None and (folder / sign).is_file():
            return explained(read(folder), folder), origin
    return _tables(benchmark.source, place), origin


def _table(place: Path, name: str) -> Path | None:
    """MMBench's TSV: the file itself, or the only one in its folder of the playground."""
    if place.suffix == ".tsv":
        return place
    tables = [file for folder in (place, place / name) for file in sorted(folder.glob("*.tsv"))]
    if len(tables) > 1:
        raise YopoError(
            f"There are several tables in {place}: {', '.join(file.name for file in tables)}.", "Name one: --task NAME=FILE.tsv"
        )
    return tables[0] if tables else None
