"""Questions of one's own, or of a bundled set, as a task: an answer is right if it equals the expected one as VQAv2 compares them."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..data.pictures import Picture
from ..data.sample import Sample, open_image
from ..data.samples import SamplesLike, samples_hash, samples_of
from .measures import ACCURACY
from .metrics.vqa import short_form
from .sources import Asked
from .task import HubSet, Question, Task
from .tasks.wording import lengths

NEW_TOKENS = 16


def samples_task(given: SamplesLike, count: int | None, seed: int) -> Asked:
    """The questions of a file or a list, or of a bundled set by name. Raises YopoError."""
    samples = samples_of(given, answers=True, count=count, seed=seed)
    questions = tuple(_question(sample, number) for number, sample in enumerate(samples.stream()))
    task = Task(samples.name, HubSet((), ""), _unused, _score, ACCURACY, lengths(NEW_TOKENS, NEW_TOKENS))
    origin = {"place": samples.origin, "sha256": samples_hash(samples), "questions": len(questions), "asked": len(questions)}
    return Asked(task, questions, origin)


def _question(sample: Sample, number: int) -> Question:
    """Two questions about the same file are about one picture."""
    files = [str(one) for one in sample.images if isinstance(one, str | Path)] + [str(one.files[0]) for one in sample.videos if one.files]
    picture = ", ".join(files) if len(files) == len(sample.visuals) else sample.place
    images = tuple(Picture(sample.place, partial(open_image, image, f"{sample.place}: the")) for image in sample.images)
    name = f"{number} {sample.place}"
    return Question(name, sample.question, images, (sample.answer or "",), picture, name, sample.kind, videos=sample.videos)


def _unused(row: Mapping[str, Any], protocol: str) -> Question:
    raise NotImplementedError("these questions are read as they are")


def _score(answer: str, asked: Question) -> float:
    return float(short_form(answer) == short_form(asked.accepted[0]))
