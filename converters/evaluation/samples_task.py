"""Questions of one's own, or of a bundled set, as a task: an answer is right if it equals the expected one as VQAv2 compares them."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..data.pictures import Picture
from ..data.sample import Sample, open_image
from ..data.samples import samples_of
from .measures import ACCURACY
from .scores import normalise
from .sources import Asked
from .task import HubSet, Question, Task
from .tasks.wording import lengths

NEW_TOKENS = 16


def samples_task(place: str, count: int | None, seed: int) -> Asked:
    """The questions of a file, or of a bundled set by name. Raises YopoError."""
    samples = samples_of(place, answers=True, count=count, seed=seed)
    questions = tuple(map(_question, samples.stream()))
    task = Task(samples.name, HubSet((), ""), _unused, _score, ACCURACY, lengths(NEW_TOKENS, NEW_TOKENS))
    return Asked(task, questions, {"place": samples.origin, "questions": len(questions), "asked": len(questions)})


def _question(sample: Sample) -> Question:
    """Two questions about the same file are about one picture."""
    picture = ", ".join(str(image) if isinstance(image, str | Path) else sample.place for image in sample.images)
    images = tuple(Picture(sample.place, partial(open_image, image, f"{sample.place}: the")) for image in sample.images)
    return Question(sample.place, sample.question, images, (sample.answer or "",), picture, sample.place, sample.kind)


def _unused(row: Mapping[str, Any], protocol: str) -> Question:
    raise NotImplementedError("these questions are read as they are")


def _score(answer: str, asked: Question) -> float:
    return float(normalise(answer) == normalise(asked.accepted[0]))
