"""RealWorldQA: 765 questions that bring their own options and instructions."""

from collections.abc import Mapping
from typing import Any

from ..measures import ACCURACY
from ..metrics.letters import opening_letter
from ..task import HubSet, Question, Task
from .wording import lengths, lmms_lab


def question(row: Mapping[str, Any], protocol: str) -> Question:
    name = str(row["number"])
    return Question(name, row["question"], (row["image"],), (row["answer"],), picture=name, unit=name)


def score(answer: str, asked: Question) -> float:
    truth = asked.accepted[0]
    if truth in list("ABCD"):
        return float(opening_letter(answer) == truth)
    return float(answer.strip().rstrip(".").lower() == truth.strip().rstrip(".").lower())


SOURCE = HubSet((*lmms_lab("RealWorldQA"), "xai-org/RealworldQA"), "data/test-*.parquet")
TASKS = {"realworldqa": Task("realworldqa", SOURCE, question, score, ACCURACY, lengths(16, 16))}
