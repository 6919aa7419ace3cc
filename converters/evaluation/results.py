"""What came out of an evaluation, JSON-ready: figures of every side with intervals, what is kept of the dense one's, and what changed."""

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from io import BytesIO
from math import isfinite
from typing import Any

from .published import published
from .record import Record
from .sources import Asked
from .statistics import Interval, PictureCounts, compare, intervals
from .task import Question, Scored, Task

DENSE = "dense"
MOST_PICTURES, THUMBNAIL_SIDE = 60, 128  # of answers that changed, for each task


def results(asked: Asked, record: Record, base: str | None) -> dict[str, Any]:
    """One task's figures by side, overall and by kind. `base` is the dense model's name, for published figures beside the dense row."""
    scored = {side: _scored(asked, record, side) for side in record.sides}
    every = dict.fromkeys(question.kind for question in asked.questions)
    kinds = [kind for kind in every if kind is not None and len(every) > 1]
    sides = _sides(asked.task, scored, record)
    if DENSE in sides:
        sides[DENSE]["published"] = published(asked.task.name, base)
    return {
        "unit": asked.task.measure.unit,
        "pictures": len({question.picture for question in asked.questions}),
        "origin": dict(asked.origin),
        "sides": sides,
        "kinds": {kind: _sides(asked.task, _of_kind(scored, kind), record) for kind in kinds},
    }


def _scored(asked: Asked, record: Record, side: str) -> list[Scored]:
    answers = record.answers
    return [Scored(one, asked.task.score(answers[asked.task.name, one.id][side], one)) for one in asked.questions]


def _of_kind(scored: Mapping[str, Sequence[Scored]], kind: str) -> dict[str, list[Scored]]:
    return {side: [one for one in answers if one.question.kind == kind] for side, answers in scored.items()}


def _sides(task: Task, scored: Mapping[str, Sequence[Scored]], record: Record) -> dict[str, Any]:
    samples = {side: PictureCounts.of(answers, task.measure) for side, answers in scored.items()}
    sides: dict[str, Any] = {}
    for side, sample in samples.items():
        figures = {name: _shown(interval) for name, interval in intervals(sample).items()}
        sides[side] = {"questions": len(scored[side]), "figures": figures}
        if DENSE in samples and side != DENSE:
            sides[side] |= _kept(samples[DENSE], sample) | {"changed": _changed(scored[side], record, task.name, side)}
    return sides


def _kept(dense: PictureCounts, other: PictureCounts) -> dict[str, Any]:
    kept = asdict(compare(dense, other))
    return {name: value if name == "p_value" else _rounded(value) for name, value in kept.items()}


def _changed(scored: Sequence[Scored], record: Record, task: str, side: str) -> float:
    """The share of answers that are not, word for word, the dense model's."""
    pairs = (record.answers[task, one.question.id] for one in scored)
    return round(sum(pair[side] != pair[DENSE] for pair in pairs) / len(scored), 10)


def _shown(interval: Interval) -> dict[str, Any]:
    return {name: _rounded(value) for name, value in asdict(interval).items()}


def _rounded(value: Any) -> Any:
    """Ten digits after the point: sums in another order must not show. None for a figure that is none, such as precision without a yes."""
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, float):
        return round(value, 10) if isfinite(value) else None
    return value


def lines(asked: Asked, record: Record) -> Iterator[dict[str, Any]]:
    """A line for each question: what was asked, what is right, what every side said, and which of them changed; of the first that did,
    the picture, small."""
    shown = 0
    for question in asked.questions:
        said = record.answers[asked.task.name, question.id]
        scores = {side: asked.task.score(text, question) for side, text in said.items()}
        changed = {side: _change(side, said, scores) for side in said if side != DENSE and DENSE in said}
        show = any(changed.values()) and shown < MOST_PICTURES and bool(question.images or question.videos)
        shown += show
        yield {
            "task": asked.task.name,
            "id": question.id,
            "kind": question.kind,
            "picture": question.picture,
            "question": question.prompt,
            "accepted": list(question.accepted),
            "answers": said,
            "scores": scores,
            "changed": changed,
            **({"thumbnail": _thumbnail(question)} if show else {}),
        }


def _thumbnail(question: Question) -> str:
    """The first picture, or the first video's first frame, as a small JPEG, in base64."""
    image = question.images[0].open() if question.images else question.videos[0].open().frames[0].copy()
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    stream = BytesIO()
    image.save(stream, "JPEG", quality=80)
    return b64encode(stream.getvalue()).decode()


def _change(side: str, said: Mapping[str, str], scores: Mapping[str, float]) -> str | None:
    """`lost`, `won`, or `other` words for the same score; None where the dense model's words are kept."""
    if scores[side] != scores[DENSE]:
        return "lost" if scores[side] < scores[DENSE] else "won"
    return None if said[side] == said[DENSE] else "other"
