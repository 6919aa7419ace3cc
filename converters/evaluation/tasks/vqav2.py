"""VQAv2, validation: 214,354 questions, ten people's answers each. LLaVA's published figures are of test-dev, whose truth is not public."""

from collections.abc import Mapping
from typing import Any

from ..measures import ACCURACY
from ..metrics.vqa import vqa_score
from ..task import HubSet, Question, Task
from .wording import SHORT, lengths, lmms_lab


def question(row: Mapping[str, Any], protocol: str) -> Question:
    return Question(
        id=str(row["question_id"]),
        prompt=row["question"] + SHORT,
        images=(row["image"],),
        accepted=tuple(one["answer"] for one in row["answers"] or ()),
        picture=str(row["image_id"]),
        unit=str(row["question_id"]),
        kind=row["answer_type"],
    )


def score(answer: str, asked: Question) -> float:
    return vqa_score(answer, asked.accepted)


SOURCE = HubSet(lmms_lab("VQAv2"), "data/validation-*.parquet")
TASKS = {"vqav2": Task("vqav2", SOURCE, question, score, ACCURACY, lengths(16, 128))}
