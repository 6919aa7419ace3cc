"""ChartQA, test: 2,500 questions; a number may be off by 5 %."""

from collections.abc import Mapping
from typing import Any

from ..measures import ACCURACY
from ..metrics.text import relaxed_equal
from ..task import HubSet, Question, Task
from .wording import lengths, lmms_lab


def question(row: Mapping[str, Any], protocol: str) -> Question:
    name = str(row["number"])
    prompt = row["question"] + "\nAnswer the question with a single word."
    return Question(name, prompt, (row["image"],), (row["answer"],), picture=name, unit=name, kind=row["type"])


def score(answer: str, asked: Question) -> float:
    return float(relaxed_equal(answer, asked.accepted[0]))


TASKS = {"chartqa": Task("chartqa", HubSet(lmms_lab("ChartQA"), "data/test-*.parquet"), question, score, ACCURACY, lengths(16, 16))}
