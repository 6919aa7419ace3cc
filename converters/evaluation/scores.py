"""Scoring short answers: VQAv2's normalisation of an answer, exact match, and what pruning changed.

The normalisation is that of the VQA evaluation server (visualqa.org/evaluation.html): punctuation, lower case, number words,
articles, contractions. Here it is applied to both sides.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
PERIOD = re.compile(r"\.(?!\d)")
DIGITS_WITH_COMMA = re.compile(r"\d,\d")
ARTICLES = ("a", "an", "the")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBER_WORDS = {"none": "0"} | {word: str(number) for number, word in enumerate(NUMBERS)}
CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd how'll
    how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't
    she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's
    something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas
    wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've
    why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _without_one_apostrophe(word: str) -> Iterable[str]:
    return (word[:place] + word[place + 1 :] for place, letter in enumerate(word) if letter == "'")


# One apostrophe forgotten; the server also maps somebody'd to somebodyd.
SPELLINGS = {spelling: word for word in CONTRACTIONS.split() for spelling in _without_one_apostrophe(word)} | {"somebody'd": "somebodyd"}


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
