"""MME: two yes-or-no questions a picture, 14 categories; perception (at most 2000) and cognition (at most 800) are sums of scores."""

from collections.abc import Mapping
from typing import Any

from ..measures import MME
from ..metrics.yes_no import mme_word
from ..task import HubSet, Question, Task
from .wording import SHORT, lengths, lmms_lab

ASKED_FOR = " Please answer yes or no."


def question(row: Mapping[str, Any], protocol: str) -> Question:
    asked = row["question"].replace(ASKED_FOR, "").strip()
    return Question(
        id=f"{row['question_id']}: {asked}",
        prompt=asked + SHORT,
        images=(row["image"],),
        accepted=(row["answer"].lower(),),
        picture=row["question_id"],
        unit=row["question_id"],
        kind=row["category"],
    )


def score(answer: str, asked: Question) -> float:
    return float(mme_word(answer) == asked.accepted[0])


TASKS = {"mme": Task("mme", HubSet(lmms_lab("MME"), "data/test-*.parquet"), question, score, MME, lengths(16, 128))}
