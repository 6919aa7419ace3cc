"""MMMU, validation: 900 college questions, most of them multiple choices, with up to seven pictures in the text.

An answer that names no option is wrong; the published code draws one at random instead.
"""

import ast
import re
from collections.abc import Mapping
from typing import Any

from ..measures import ACCURACY
from ..metrics.letters import lettered, mmmu_letter
from ..metrics.text import open_equal
from ..task import HubSet, Question, Task
from .wording import LETTER, SHORT, lengths, lmms_lab

PLACE = re.compile(r"<image (\d)>")
SUBJECT = re.compile(r"validation_(.+)_\d+")


def question(row: Mapping[str, Any], protocol: str) -> Question:
    """Pictures come first, in the order of their places in the text, which keeps the places' names."""
    options = tuple(map(str, ast.literal_eval(row["options"])))
    choice = row["question_type"] == "multiple-choice"
    prompt = f"{row['question']}\n{lettered(options)}\n{LETTER}" if choice else f"{row['question']}\n{SHORT}"
    shown = dict.fromkeys(PLACE.findall(prompt)) or {"1": None}
    images = tuple(row[f"image_{number}"] for number in shown if row.get(f"image_{number}") is not None)
    subject = SUBJECT.fullmatch(row["id"])
    kind = subject[1] if subject else None
    return Question(row["id"], prompt, images, (row["answer"],), row["id"], row["id"], kind, options if choice else ())


def score(answer: str, asked: Question) -> float:
    if asked.options:
        return float(mmmu_letter(answer, asked.options) == asked.accepted[0])
    return float(open_equal(answer, asked.accepted[0]))


TASKS = {"mmmu": Task("mmmu", HubSet(lmms_lab("MMMU"), "data/validation-*.parquet"), question, score, ACCURACY, lengths(128, 128))}
