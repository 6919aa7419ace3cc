"""MMBench, dev, English and Chinese: a question counts if it is right in every rotation of its options."""

from collections.abc import Mapping
from functools import partial
from string import ascii_uppercase
from typing import Any

from ..measures import CIRCULAR
from ..metrics.letters import lettered, mmbench_letter
from ..task import HubSet, Question, Task
from .wording import LETTER, LLAVA, lengths, lmms_lab, present

ROTATION = 1_000_000
"""Rows of one question have the same index but for multiples of this."""
ENDINGS = {
    ("en", "llava"): LETTER,
    ("cn", "llava"): "\n请直接回答选项字母。",
    ("en", "checkpoint"): "\n" + LETTER,
    ("cn", "checkpoint"): "\n\n请直接使用所提供的选项字母作为答案回答。",
}


def question(language: str, row: Mapping[str, Any], protocol: str) -> Question:
    options = present(row.get(letter) for letter in "ABCD")
    hint = present([row["hint"]])
    ending = ENDINGS[language, protocol]
    if protocol == LLAVA:
        prompt = "\n".join([*hint, row["question"], lettered(options)]) + ending
    else:
        prompt = " ".join([*hint, row["question"], f"There are several options:\n{lettered(options)}"]) + ending
    number = int(row["index"])
    return Question(
        id=str(number),
        prompt=prompt,
        images=(row["image"],),
        accepted=(row["answer"],),
        picture=str(number % ROTATION),
        unit=str(number % ROTATION),
        kind=row.get("L2-category") or row.get("l2-category"),
        options=tuple(options),
    )


def score(answer: str, asked: Question) -> float:
    letter = answer if len(answer) == 1 and answer in ascii_uppercase else mmbench_letter(answer, asked.options)
    return float(letter == asked.accepted[0])


def _task(name: str, language: str, most: int) -> Task:
    source = HubSet(lmms_lab("MMBench"), f"{language}/dev-*.parquet")
    return Task(name, source, partial(question, language), score, CIRCULAR, lengths(most, 1024))


TASKS = {"mmbench": _task("mmbench", "en", 1024), "mmbench-cn": _task("mmbench-cn", "cn", 256)}
