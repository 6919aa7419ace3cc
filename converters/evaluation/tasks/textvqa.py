"""TextVQA, validation: 5,000 questions, ten answers each; LLaVA's published figures are with the words that an OCR read (`textvqa-ocr`)."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from ..measures import ACCURACY
from ..metrics.vqa import textvqa_score
from ..task import HubSet, Question, Task
from .wording import LLAVA, SHORT, lengths, lmms_lab


def question(ocr: bool, row: Mapping[str, Any], protocol: str) -> Question:
    asked = row["question"] if protocol == LLAVA else row["question"].capitalize()
    read = f"\nReference OCR token: {', '.join(row['ocr_tokens'])}" if ocr else ""
    return Question(
        id=str(row["question_id"]),
        prompt=asked + read + SHORT,
        images=(row["image"],),
        accepted=tuple(row["answers"]),
        picture=row["image_id"],
        unit=str(row["question_id"]),
    )


def score(answer: str, asked: Question) -> float:
    return textvqa_score(answer, asked.accepted)


SOURCE = HubSet(lmms_lab("textvqa"), "data/validation-*.parquet")
TASKS = {
    name: Task(name, SOURCE, partial(question, ocr), score, ACCURACY, lengths(128, 128))
    for name, ocr in (("textvqa", False), ("textvqa-ocr", True))
}
