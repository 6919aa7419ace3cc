"""AI2D, test: 3,088 multiple choices about school diagrams whose labels are masked."""

from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any

from ..measures import ACCURACY
from ..metrics.letters import lettered, opening_letter
from ..task import HubSet, Question, Task
from .wording import LETTER, lengths, lmms_lab


def question(row: Mapping[str, Any], protocol: str) -> Question:
    name = str(row["number"])
    prompt = f"{row['question']}\n{lettered(row['options'])}{LETTER}"
    truth = ascii_uppercase[int(row["answer"])]
    return Question(name, prompt, (row["image"],), (truth,), picture=name, unit=name, options=tuple(row["options"]))


def score(answer: str, asked: Question) -> float:
    return float(opening_letter(answer) == asked.accepted[0])


TASKS = {"ai2d": Task("ai2d", HubSet(lmms_lab("ai2d"), "data/test-*.parquet"), question, score, ACCURACY, lengths(16, 16))}
