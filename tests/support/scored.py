"""Scored answers, made up."""

from PIL import Image

from converters.data.pictures import Picture
from converters.evaluation.task import Question, Scored

BLANK = Picture("blank", lambda: Image.new("RGB", (1, 1)))


def scored(name: str, score: float, *, truth: str = "", kind: str | None = None, unit: str | None = None, picture: str = "p") -> Scored:
    return Scored(Question(name, "?", (BLANK,), (truth,), picture, unit or name, kind), score)
