"""Answers as they come, on disk: a run that was killed goes on where it was, and every changed answer can be looked up.

While it runs, each process appends to a file of its own, `FILE.part-RANK`, a line for each question and side group; in the end the
first writes FILE whole, a line for each question, and the parts go.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint.private import whole_file
from ..errors import YopoError
from ..json_files import object_of

VERSION = 1
LEFT_OUT = "left_out"
"""Among the facts of a side that cannot be had, such as a recipe at a budget below its smallest plan: why."""
Key = tuple[str, str]  # task, question


@dataclass
class Record:
    """Answers by question and side, and facts by side. `path` None: in memory alone."""

    path: Path | None
    settings: Mapping[str, Any]
    rank: int = 0
    answers: dict[Key, dict[str, str]] = field(default_factory=dict)
    facts: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path | None, settings: Mapping[str, Any], rank: int = 0) -> "Record":
        """The record of a run with these settings, with what was answered before. Raises YopoError for a file of another run."""
        record = cls(path, json.loads(json.dumps(settings)), rank)
        if path is not None:
            if not path.parent.is_dir():
                raise YopoError(f"The folder {path.parent} does not exist.", "Answers are saved there: make it first.")
            for file in (path, *sorted(path.parent.glob(f"{path.name}.part-*"))):
                record._read(file)
            if record._part(path).exists():
                _cut_torn_line(record._part(path))
        return record

    def _read(self, file: Path) -> None:
        lines = list(_lines(file))
        if not lines:
            return
        settings = lines[0].get("settings")
        if lines[0].get("yopo_answers") != VERSION or settings is None:
            raise YopoError(f"{file} is not a file of answers.", "Choose another name for --save.")
        if different := [name for name in {**settings, **self.settings} if settings.get(name) != self.settings.get(name)]:
            raise YopoError(
                f"{file} has the answers of another run: {', '.join(sorted(different))} differ.",
                "Choose another name for --save, or remove it.",
            )
        for line in lines[1:]:
            if "side" in line:
                self.facts[line["side"]] = line["facts"]
            elif "task" in line:
                self.answers.setdefault((line["task"], line["id"]), {}).update(line["answers"])

    @property
    def sides(self) -> list[str]:
        """Those that answered, in the order in which they were asked for."""
        named: list[str] = self.settings["sides"]
        return [side for side in named if LEFT_OUT not in self.facts[side]]

    def lacks(self, keys: Iterable[Key], sides: Iterable[str]) -> bool:
        """Whether any of these questions was not answered by any of these sides."""
        sides = set(sides)
        return any(sides - self.answers.get(key, {}).keys() for key in keys)

    def note(self, side: str, facts: Mapping[str, Any]) -> None:
        self.facts[side] = facts
        self._append([{"side": side, "facts": facts}])

    def add(self, answered: Mapping[Key, Mapping[str, str]]) -> None:
        """The answers of a batch."""
        for key, answers in answered.items():
            self.answers.setdefault(key, {}).update(answers)
        self._append([{"task": task, "id": name, "answers": answers} for (task, name), answers in answered.items()])

    def _part(self, path: Path) -> Path:
        return path.with_name(f"{path.name}.part-{self.rank}")

    def _append(self, lines: list[dict[str, Any]]) -> None:
        if self.path is None:
            return
        part = self._part(self.path)
        head = [] if part.exists() and part.stat().st_size else [{"yopo_answers": VERSION, "settings": self.settings}]
        with part.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in (*head, *lines)))

    def finish(self, lines: Iterable[Mapping[str, Any]], results: Mapping[str, Any] | None = None) -> None:
        """Write the whole file: settings, facts, `results`, and these lines; the parts of all processes go."""
        if self.path is None:
            return
        head = [
            {"yopo_answers": VERSION, "settings": self.settings},
            *({"side": side, "facts": facts} for side, facts in self.facts.items()),
            *([] if results is None else [{"results": results}]),
        ]
        with whole_file(self.path) as whole, whole.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in (*head, *lines))
        for part in self.path.parent.glob(f"{self.path.name}.part-*"):
            part.unlink()


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file; a last one that was cut off is left out."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    except OSError as error:
        raise YopoError(f"{file} cannot be read: {error.strerror}.", "Choose another name for --save.") from None
    for line in text.split("\n")[:-1]:
        try:
            data = object_of(line.encode(), str(file), "")
        except YopoError:
            raise YopoError(f"{file} is not a file of answers.", "Choose another name for --save.") from None
        yield data


def _cut_torn_line(part: Path) -> None:
    """What a killed process was writing."""
    data = part.read_bytes()
    part.write_bytes(data[: data.rfind(b"\n") + 1])
