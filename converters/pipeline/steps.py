"""Steps of a pipeline and the folder that they fill: what was finished with the same inputs is not done again.

A step writes into a private folder that is named by its inputs' hash, where what it writes appears whole; then its record is written, and
last its output gets its place. Killed between any two of these, the next run goes on there. Records and private folders are in `work`.
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..checkpoint.private import Lock, remove, whole_file
from ..errors import YopoError
from ..json_files import read_object
from ..progress import Listener, Message
from .hashes import content_sha256, json_sha256, versions

WORK = "work"
NOT_MADE = "not made yet"
ROOM = re.compile(r"[0-9a-f]{16}")
ANEW = "Remove the folder `work` in the output to do every step anew."


@dataclass(frozen=True)
class Step:
    """One thing to make: `inputs` (JSON-ready) are all that it depends on, `make` writes it to a path, whole or not at all.

    `output` is its place below the pipeline's folder. `size` and `flops` are what it will take, None where that is not known.
    """

    name: str
    output: str
    inputs: Mapping[str, Any]
    make: Callable[[Path], None]
    size: int | None = None
    flops: float | None = None

    @property
    def key(self) -> str:
        """A sha256 of what the output depends on."""
        return json_sha256([self.name, self.inputs, versions()])


@dataclass(frozen=True)
class Made:
    """What a step has made: a file or a folder, and its content's hash."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class Outcome:
    """How a step went. `seconds` are those that it took when it was done, `skipped` tells whether that was an earlier run."""

    name: str
    output: str
    key: str
    sha256: str
    inputs: Mapping[str, Any]
    seconds: float
    skipped: bool


class Performer(Protocol):
    """Who is given a pipeline's steps in turn: `Workshop` does them, `Forecast` tells what it would do."""

    def __call__(self, step: Step) -> Made: ...


@dataclass
class Workshop:
    """The folder of a pipeline, and the steps of this run."""

    folder: Path
    progress: Listener
    outcomes: list[Outcome] = field(default_factory=list)

    def __call__(self, step: Step) -> Made:
        """Do a step, unless it was done with the same inputs and its output is what it was."""
        record, key, target = read_record(self.folder, step), step.key, self.folder / step.output
        room = self.folder / WORK / key[:16]
        skipped = is_finished(self.folder, step, record)
        if not skipped:
            record = self._made(step, key, room, record)
            place(room / target.name, target)
        remove(room)
        assert record is not None
        self.progress(Message(f"{step.name}: {'finished before' if skipped else 'done'}."))
        self.outcomes.append(Outcome(step.name, step.output, key, record["sha256"], step.inputs, record["seconds"], skipped))
        return Made(target, record["sha256"])

    def _made(self, step: Step, key: str, room: Path, record: dict[str, Any] | None) -> dict[str, Any]:
        """Make the output in its room and write its record; what a killed run had made there is taken as it is."""
        made, started = room / Path(step.output).name, time.monotonic()
        if not made.exists():
            self.progress(Message(f"{step.name} ..."))
            room.mkdir(parents=True, exist_ok=True)
            step.make(made)
        elif record is not None and record["key"] == key:
            return record
        facts = {"name": step.name, "output": step.output, "key": key, "sha256": content_sha256(made)}
        new = {**facts, "seconds": round(time.monotonic() - started, 3)}
        file = record_file(self.folder, step.output)
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as partial:
            partial.write_text(json.dumps(new, indent=2) + "\n", encoding="utf-8")
        return new

    def remove_others(self) -> None:
        """Remove what earlier runs made and this one did not, such as the model of a budget that is not asked for any more."""
        mine = {record_file(self.folder, outcome.output) for outcome in self.outcomes}
        for file in sorted((self.folder / WORK / "steps").glob("*.json")):
            if file not in mine:
                remove(self.folder / read_object(file, ANEW)["output"])
                file.unlink()
        for room in (self.folder / WORK).iterdir():
            if ROOM.fullmatch(room.name):
                remove(room)


@dataclass
class Forecast:
    """Tells of each step whether it is finished."""

    folder: Path
    steps: list[tuple[Step, bool]] = field(default_factory=list)

    def __call__(self, step: Step) -> Made:
        record = read_record(self.folder, step)
        finished = is_finished(self.folder, step, record)
        self.steps.append((step, finished))
        return Made(self.folder / step.output, record["sha256"] if finished and record else NOT_MADE)


def is_finished(folder: Path, step: Step, record: Mapping[str, Any] | None) -> bool:
    """Whether the output is there, made from the same inputs, and unchanged."""
    return record is not None and record["key"] == step.key and content_sha256(folder / step.output) == record["sha256"]


def read_record(folder: Path, step: Step) -> dict[str, Any] | None:
    """What is known of a step that was done; None where it was not."""
    file = record_file(folder, step.output)
    if not file.exists():
        return None
    record = read_object(file, ANEW)
    if not {"key", "sha256", "seconds", "output"} <= record.keys():
        raise YopoError(f"{file} is no record of a step.", ANEW)
    return record


def record_file(folder: Path, output: str) -> Path:
    return folder / WORK / "steps" / f"{output.replace('/', '+')}.json"


def place(made: Path, target: Path) -> None:
    """Give what was made its place; what is there goes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    remove(target)
    made.replace(target)


@contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """The folder for one run alone. Raises YopoError where another run has it, and where it has files of something else."""
    if folder.is_dir() and not (folder / WORK).is_dir() and any(folder.iterdir()):
        raise YopoError(f"{folder} is not empty, and no pipeline's.", "Choose another folder with -o, or remove it yourself.")
    if folder.exists() and not folder.is_dir():
        raise YopoError(f"{folder} is not a folder.", "Choose another name with -o.")
    (folder / WORK).mkdir(parents=True, exist_ok=True)
    lock = Lock(folder / WORK)
    try:
        if lock.descriptor >= 0 and not lock.taken:
            raise YopoError(f"Another run is writing to {folder}.", "Wait for it, or choose another folder with -o.")
        yield folder
    finally:
        lock.release()
