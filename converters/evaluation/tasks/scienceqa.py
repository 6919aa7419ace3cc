"""ScienceQA, the 2,017 test questions that have a picture."""

from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any

from ..measures import ACCURACY
from ..metrics.letters import lettered, scienceqa_letter
from ..task import HubSet, Question, Task
from .wording import LETTER, lengths, lmms_lab


def question(row: Mapping[str, Any], protocol: str) -> Question:
    context = f"Context: {row['hint']}\n" if row["hint"] else ""
    prompt = f"{context}{row['question']}\n{lettered(row['choices'])}{LETTER}"
    name = str(row.get("id") or row["number"])
    return Question(
        id=name,
        prompt=prompt,
        images=(row["image"],),
        accepted=(ascii_uppercase[row["answer"]],),
        picture=name,
        unit=name,
        kind=row["subject"],
        options=tuple(row["choices"]),
    )


def score(answer: str, asked: Question) -> float:
    return float(scienceqa_letter(answer, asked.options) == asked.accepted[0])


SOURCE = HubSet(lmms_lab("ScienceQA"), "ScienceQA-IMG/test-*.parquet")
TASKS = {"scienceqa": Task("scienceqa", SOURCE, question, score, ACCURACY, lengths(16, 1024))}
