"""MMStar: 1,500 multiple choices that cannot be answered without the picture; the figure is a mean of means."""

from collections.abc import Mapping
from typing import Any

from ..measures import MEAN_OF_KINDS
from ..metrics.letters import opening_letter
from ..task import HubSet, Question, Task
from .wording import lengths

ENDING = "\nAnswer with the option's letter from the given choices directly"


def question(row: Mapping[str, Any], protocol: str) -> Question:
    name = str(row["index"])
    kind = f"{row['category']}: {row['l2_category']}"
    return Question(name, row["question"] + ENDING, (row["image"],), (row["answer"],), picture=name, unit=name, kind=kind)


def score(answer: str, asked: Question) -> float:
    return float(opening_letter(answer)[:1] == asked.accepted[0])


TASKS = {"mmstar": Task("mmstar", HubSet(("Lin-Chen/MMStar",), "*.parquet"), question, score, MEAN_OF_KINDS, lengths(16, 16))}
