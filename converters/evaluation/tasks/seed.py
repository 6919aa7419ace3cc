"""SEED-Bench: multiple choices about pictures and, as several frames, videos."""

from collections.abc import Mapping
from typing import Any

from ..measures import ACCURACY
from ..metrics.letters import lettered
from ..task import HubSet, Question, Task
from .wording import LETTER, lengths, lmms_lab


def question(row: Mapping[str, Any], protocol: str) -> Question:
    options = tuple(row[f"choice_{letter}"] for letter in "abcd")
    images = row["image"] if isinstance(row["image"], tuple) else (row["image"],)
    name = str(row["question_id"])
    prompt = f"{row['question']}\n{lettered(options)}{LETTER}"
    return Question(name, prompt, images, (row["answer"],), str(row["data_id"]), name, row["data_type"], options)


def score(answer: str, asked: Question) -> float:
    return float(answer.strip()[:1].upper() == asked.accepted[0])


TASKS = {"seed": Task("seed", HubSet(lmms_lab("SEED-Bench"), "data/test-*.parquet"), question, score, ACCURACY, lengths(16, 16))}
