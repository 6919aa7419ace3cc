"""Pictures with questions: lines of a JSONL file, or the shapes that ship with the package."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from converters.errors import YopoError

BUNDLED = "demo"
SET_QUESTIONS = 500  # of a bundled set, where no number is asked for


@dataclass(frozen=True)
class Example:
    """One picture, opened when it is asked for, and a question about it. `place` says where it is from, for messages."""

    picture: Callable[[], Any]
    question: str
    answer: str | None
    kind: str | None
    place: str


@dataclass(frozen=True)
class Examples:
    """`count` examples, streamed anew at every call. `origin` is their file, or the name of a bundled set."""

    name: str
    origin: str
    count: int
    stream: Callable[[], Iterator[Example]]


def bundled_examples(count: int, seed: int, split: str, name: str = BUNDLED) -> Examples:
    """One of the sets of `converters.data.demo.sets`: the demo's shapes, or by `name` another."""

    def stream() -> Iterator[Example]:
        from .demo.sets import samples

        for index, sample in enumerate(samples(name, count, seed, split)):
            yield Example(_returning(sample.image), sample.question, sample.answer, sample.kind, f"{name} picture {index}")

    return Examples(name, name, count, stream)


def read_examples(file: Path, *, answers: bool, count: int | None = None, seed: int = 0) -> Examples:
    """Examples of a JSONL file, all lines checked; `count` of them drawn with `seed`, in the file's order, or all.

    A bundled set's name stands for its questions: those to evaluate on with `answers`, else those to calibrate on.
    Raises YopoError with the line's number; with `answers`, also for a line that has none.
    """
    from converters.data.samples import Sample, load_image, read_samples

    from .demo.sets import SETS

    if str(file) in SETS and not file.exists():
        return bundled_examples(count or SET_QUESTIONS, seed, "eval" if answers else "calibration", str(file))

    def opened(sample: Sample) -> Example:
        return Example(lambda: load_image(sample), sample.question, sample.answer, sample.kind, sample.place)

    samples = read_samples(file)
    unanswered = next((sample for sample in samples if answers and not sample.answer), None)
    if unanswered is not None:
        raise YopoError(f"{unanswered.place} has no answer to compare with.", 'Each line of a task needs "image", "question", "answer".')
    if count is not None and count < len(samples):
        samples = [samples[index] for index in sorted(Random(seed).sample(range(len(samples)), count))]
    return Examples(file.stem, str(file), len(samples), lambda: map(opened, samples))


def open_image(path: Path) -> Any:
    """A picture in RGB. Raises YopoError if it is not there or cannot be read."""
    from converters.data.samples import Sample, load_image

    if not path.is_file():
        raise YopoError(f"There is no image {path}.", "Check the path.")
    return load_image(Sample(path, ""))


def _returning(image: Any) -> Callable[[], Any]:
    return lambda: image


def batches(examples: Iterable[Example], size: int) -> Iterator[list[Example]]:
    """Lists of up to `size` examples."""
    batch: list[Example] = []
    for example in examples:
        batch.append(example)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
