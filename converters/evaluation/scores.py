"""Scoring short answers: VQAv2's normalisation of an answer, exact match, and what pruning changed.

The normalisation is that of the VQA evaluation server (visualqa.org/evaluation.html): punctuation, lower case, number words,
articles, contractions. Here it is applied to both sides.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .metrics.vqa import ARTICLES, NUMBER_WORDS, PUNCTUATION, SPELLINGS

PERIOD = re.compile(r"\.(?!\d)")
DIGITS_WITH_COMMA = re.compile(r"\d,\d")


def normalise(answer: str) -> str:
    """The answer as VQAv2 compares it. One that consists of an article alone (a letter of a multiple choice) stays."""
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    words = [NUMBER_WORDS.get(word, word) for word in _without_punctuation(text).lower().split()]
    kept = [SPELLINGS.get(word, word) for word in words if word not in ARTICLES]
    return " ".join(kept or words)


def _without_punctuation(text: str) -> str:
    """A mark next to a space goes, one inside a word becomes a space; all go where a comma groups digits; so do final periods."""
    grouped = DIGITS_WITH_COMMA.search(text) is not None
    result = text
    for mark in PUNCTUATION:
        alone = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if alone or grouped else " ")
    return PERIOD.sub("", result)


@dataclass(frozen=True)
class ComparedAnswer:
    """One question answered by the dense model and by the pruned model, None where there is no such model."""

    expected: str
    dense: str | None
    pruned: str | None = None
    kind: str | None = None

    @property
    def dense_right(self) -> bool:
        return self.dense is not None and normalise(self.dense) == normalise(self.expected)

    @property
    def pruned_right(self) -> bool:
        return self.pruned is not None and normalise(self.pruned) == normalise(self.expected)

    @property
    def flipped(self) -> bool:
        """Whether pruning changed the answer, right or wrong."""
        return self.pruned is not None and self.dense is not None and normalise(self.pruned) != normalise(self.dense)


@dataclass(frozen=True)
class Score:
    """Accuracies within 0..1 over the same questions. `retention` is pruned over dense, None where dense has nothing right.

    What needs a model that is not there is None.
    """

    samples: int
    dense: float | None
    pruned: float | None
    retention: float | None
    answer_flips: float | None


def score(answered: Sequence[ComparedAnswer]) -> Score:
    """The score of one task, or of one kind of question. `answered` must not be empty."""
    count, first = len(answered), answered[0]
    dense = None if first.dense is None else sum(one.dense_right for one in answered) / count
    pruned = None if first.pruned is None else sum(one.pruned_right for one in answered) / count
    if dense is None or pruned is None:
        return Score(count, dense, pruned, None, None)
    return Score(count, dense, pruned, pruned / dense if dense else None, sum(one.flipped for one in answered) / count)


def by_kind(answered: Sequence[ComparedAnswer]) -> dict[str, Score]:
    """The score of every kind of question, in the order of their first appearance."""
    kinds = dict.fromkeys(one.kind for one in answered if one.kind is not None)
    return {kind: score([one for one in answered if one.kind == kind]) for kind in kinds}


def score_json(result: Score) -> dict[str, Any]:
    return {
        "samples": result.samples,
        "dense": None if result.dense is None else {"accuracy": result.dense},
        "pruned": None if result.pruned is None else {"accuracy": result.pruned},
        "retention": result.retention,
        "answer_flips": result.answer_flips,
    }
