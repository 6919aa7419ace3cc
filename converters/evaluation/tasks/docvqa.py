"""DocVQA, validation: 5,349 questions about scanned pages; similarity to the nearest accepted answer (ANLS)."""

from collections.abc import Mapping
from typing import Any

from ..measures import ACCURACY
from ..metrics.text import anls
from ..task import HubSet, Question, Task
from .wording import SHORT, lengths, lmms_lab


def question(row: Mapping[str, Any], protocol: str) -> Question:
    return Question(
        id=str(row["questionId"]),
        prompt=row["question"] + SHORT,
        images=(row["image"],),
        accepted=tuple(row["answers"]),
        picture=f"{row['ucsf_document_id']} {row['ucsf_document_page_no']}",
        unit=str(row["questionId"]),
        kind=(row["question_types"] or [None])[0],
    )


def score(answer: str, asked: Question) -> float:
    return anls(answer, asked.accepted)


TASKS = {"docvqa": Task("docvqa", HubSet(lmms_lab("DocVQA"), "DocVQA/validation-*.parquet"), question, score, ACCURACY, lengths(32, 32))}
