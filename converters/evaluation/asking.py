"""Asking all sides the same questions, in batches that do not depend on what was answered before."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..errors import YopoError
from ..processes import Processes
from ..progress import Listener, Progress
from .protocols import Encoder
from .record import LEFT_OUT, Key, Record
from .sides import Group, Side
from .sources import Asked
from .task import Question


def ask(
    asked: Sequence[Asked],
    groups: Iterable[Group],
    encode: Encoder,
    processor: Any,
    lengths: Mapping[str, int],
    batch_size: int,
    record: Record,
    processes: Processes,
    progress: Listener,
) -> None:
    """Complete the record: every question of every task answered by every side of every group, those of a group on the same inputs.

    `lengths`: the longest answer of each task. Of several processes each asks its share of the batches, and all have all answers
    in the end.
    """
    total = sum(len(one.questions) for one in asked)
    for group in groups:
        opened, done = _Opened(group, record), 0
        for one in asked:
            for batch in processes.share(batches(one.questions, batch_size)):
                keys = [(one.task.name, question.id) for question in batch]
                if opened.lack(keys):
                    inputs = (group.encode or encode)(processor, batch)
                    said = {side.name: side.answer(inputs, lengths[one.task.name]) for side in opened.sides()}
                    record.add({key: {name: texts[place] for name, texts in said.items()} for place, key in enumerate(keys)})
                done += len(batch)
                progress(Progress(f"Asking {', '.join(group.names)}", min(total, done * processes.count), total, "questions"))
    _exchange(record, processes)


class _Opened:
    """A group's sides, made when they are first needed; what they execute is noted then, or why they are left out."""

    def __init__(self, group: Group, record: Record) -> None:
        self.group, self.record = group, record
        self._sides: Sequence[Side] = ()

    def lack(self, keys: Iterable[Key]) -> bool:
        """Whether there is something to answer, and sides that can."""
        return self.record.lacks(keys, self.group.names) and bool(self.sides())

    def sides(self) -> Sequence[Side]:
        left_out = any(LEFT_OUT in self.record.facts.get(name, {}) for name in self.group.names)
        if not self._sides and not left_out:
            try:
                self._sides = self.group.open()
            except YopoError as error:
                for name in self.group.names:
                    self.record.note(name, {LEFT_OUT: error.message})
            for side in self._sides:
                self.record.note(side.name, side.facts)
        return self._sides


def batches(questions: Sequence[Question], size: int) -> Iterator[Sequence[Question]]:
    return (questions[start : start + size] for start in range(0, len(questions), size))


def _exchange(record: Record, processes: Processes) -> None:
    """Give every process the answers and facts of all: one may have had nothing to ask."""
    for facts in processes.gathered(record.facts):
        record.facts |= facts
    for answers in processes.gathered(record.answers):
        for key, said in answers.items():
            record.answers.setdefault(key, {}).update(said)
