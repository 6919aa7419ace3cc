"""OCRBench: 1,000 questions, a point for each whose answer holds an accepted one."""

from collections.abc import Mapping
from typing import Any

from ..measures import POINTS
from ..metrics.text import contained
from ..task import HubSet, Question, Task
from .wording import lengths

FORMULAE = "HME100k"
"""Handwritten formulae: case counts, spaces do not."""


def question(row: Mapping[str, Any], protocol: str) -> Question:
    name, accepted = str(row["number"]), row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
    kind = f"{row['question_type']}: {row['dataset']}"
    return Question(name, row["question"], (row["image"],), tuple(accepted), picture=name, unit=name, kind=kind)


def score(answer: str, asked: Question) -> float:
    return float(contained(answer, asked.accepted, exact_case=(asked.kind or "").endswith(FORMULAE)))


TASKS = {"ocrbench": Task("ocrbench", HubSet(("echo840/OCRBench",), "data/test-*.parquet"), question, score, POINTS, lengths(128, 128))}
