"""POPE: is an object in the picture? Three splits of 3,000 questions about 500 pictures; the figure is the mean of the splits' F1."""

from collections.abc import Mapping
from typing import Any

from ..measures import POPE
from ..metrics.yes_no import pope_yes
from ..task import HubSet, Question, Task
from .wording import SHORT, lengths, lmms_lab


def question(row: Mapping[str, Any], protocol: str) -> Question:
    name = f"{row['category']} {row['question_id']}"
    return Question(
        id=name,
        prompt=row["question"] + SHORT,
        images=(row["image"],),
        accepted=(row["answer"],),
        picture=row["image_source"],
        unit=name,
        kind=row["category"],
    )


def score(answer: str, asked: Question) -> float:
    return float(pope_yes(answer) == (asked.accepted[0] == "yes"))


TASKS = {"pope": Task("pope", HubSet(lmms_lab("POPE"), "data/test-*.parquet"), question, score, POPE, lengths(128, 128))}
