"""GQA, testdev balanced: 12,578 questions about 398 pictures; one accepted answer."""

from collections.abc import Mapping
from typing import Any

from ..measures import ACCURACY
from ..metrics.text import gqa_equal
from ..task import HubSet, Question, Task
from .wording import SHORT, lengths, lmms_lab


def question(row: Mapping[str, Any], protocol: str) -> Question:
    return Question(
        id=str(row["id"]),
        prompt=row["question"] + SHORT,
        images=(row["image"],),
        accepted=(row["answer"],),
        picture=str(row["imageId"]),
        unit=str(row["id"]),
        kind=(row.get("types") or {}).get("structural"),
    )


def score(answer: str, asked: Question) -> float:
    return float(gqa_equal(answer, asked.accepted[0]))


SOURCE = HubSet(
    lmms_lab("GQA"),
    "testdev_balanced_instructions/testdev-*.parquet",
    pictures=("testdev_balanced_images/testdev-*.parquet", "imageId", "id"),
)
TASKS = {"gqa": Task("gqa", SOURCE, question, score, ACCURACY, lengths(16, 128))}
