"""A question of a benchmark, and how the scores of its questions become the figures that are published."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..data.footage import Video
from ..data.pictures import Picture

Sums = Mapping[str, Any]
"""Sums over units, by name: numbers, or arrays of them (one for each resample)."""


@dataclass(frozen=True)
class Question:
    """What is asked about `images` and `videos`, and what counts as right.

    `picture` names what an interval draws: questions about one picture are not independent. Questions with the same `unit` are
    scored together (the rotations of a choice, the two questions of a pair). `accepted` is empty where the truth is not published.
    """

    id: str
    prompt: str
    images: tuple[Picture, ...]
    accepted: tuple[str, ...]
    picture: str
    unit: str
    kind: str | None = None
    options: tuple[str, ...] = ()
    videos: tuple[Video, ...] = ()


@dataclass(frozen=True)
class Scored:
    """A question and the score of an answer to it, within 0..1."""

    question: Question
    score: float


@dataclass(frozen=True)
class Measure:
    """From scores to figures: `counts` of each unit are summed, `figures` are made of the sums; the first is the headline.

    `outcomes` of a unit are what McNemar's test compares where all are 0 or 1.
    """

    unit: str
    counts: Callable[[Sequence[Scored]], Mapping[str, float]]
    figures: Callable[[Sums], dict[str, Any]]
    outcomes: Callable[[Sequence[Scored]], list[float]]


@dataclass(frozen=True)
class HubSet:
    """A split of a data set on the Hub, as parquet: `files` is a pattern within any of `repositories`, which are the same data.

    `pictures`: where pictures are a table of their own, its files and the columns that are equal (here, there).
    """

    repositories: tuple[str, ...]
    files: str
    pictures: tuple[str, str, str] | None = None


@dataclass(frozen=True)
class Task:
    """A benchmark: where its rows are, what is asked, and what an answer is worth.

    `question` takes a row (a dict in the Hub's columns, pictures as `Picture`) and the protocol's name. `max_new_tokens` by protocol.
    """

    name: str
    source: HubSet
    question: Callable[[Mapping[str, Any], str], Question]
    score: Callable[[str, Question], float]
    measure: Measure
    max_new_tokens: Mapping[str, int]
