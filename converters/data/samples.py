"""Questions about pictures: a Python list, a file (`formats`), or one of the sets that ship with the package."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

from ..errors import YopoError
from . import everyday
from .sample import FORMAT_HINT, Sample

BUNDLED = "demo"
SET_QUESTIONS = 500  # of a bundled set, where no number is asked for


@dataclass(frozen=True)
class Samples:
    """`count` samples, streamed anew at every call. `origin` is their file, or the name of a bundled set; "memory" for a list.

    `left_out`: lines without a picture, where only those with one say something.
    """

    name: str
    origin: str
    count: int
    stream: Callable[[], Iterator[Sample]]
    left_out: int = 0

    @property
    def file_name(self) -> str:
        """The origin without its folders."""
        return Path(self.origin).name


SamplesLike: TypeAlias = Samples | Sequence[Sample] | str | Path
"""What functions take samples as: `Sample` objects, a file of questions, or the name of a bundled set (demo, sizes, harder, everyday)."""


def samples_of(given: SamplesLike, *, answers: bool, count: int | None = None, seed: int = 0) -> Samples:
    """The samples that were given, all checked; `count` of them drawn with `seed`, in their order, or all.

    A bundled set's name stands for 500 of its questions, or `count`: those to evaluate on with `answers`, else those to calibrate on.
    Without `answers`, those without a picture are left out: there is nothing to learn from them about visual tokens.
    Raises YopoError, with the place, for what is no sample; with `answers`, also for one that has none.
    """
    if isinstance(given, Samples):
        return given
    if is_bundled(given):
        return bundled_samples(SET_QUESTIONS if count is None else count, seed, "eval" if answers else "calibration", str(given))
    if isinstance(given, str | Path):
        from .formats import read_samples

        name, origin, chosen = Path(given).stem, str(given), read_samples(given)
    else:
        name, origin, chosen = "samples", "memory", _checked(given)
    left_out = 0 if answers else sum(not sample.visuals for sample in chosen)
    chosen = [sample for sample in chosen if answers or sample.visuals]
    if not chosen:
        raise YopoError(f"{origin} has no question about a picture.", FORMAT_HINT)
    unanswered = next((sample for sample in chosen if answers and not sample.answer), None)
    if unanswered is not None:
        raise YopoError(
            f"{unanswered.place} has no answer to compare with.", "Each sample of a task needs an image, a question and an answer."
        )
    if count is not None and count < len(chosen):
        chosen = [chosen[index] for index in sorted(Random(seed).sample(range(len(chosen)), count))]
    return Samples(name, origin, len(chosen), lambda: iter(chosen), left_out)


def is_bundled(given: Any) -> bool:
    """Whether this is a bundled set's name, and no file of that name is there."""
    from .demo.sets import SETS

    return isinstance(given, str | Path) and str(given) in (*SETS, everyday.NAME) and not Path(given).exists()


def bundled_samples(count: int, seed: int, split: str, name: str = BUNDLED) -> Samples:
    """One of the sets of `converters.data.demo.sets`: the demo's shapes, or by `name` another; of everyday pictures what there is."""
    if name == everyday.NAME:
        return _everyday(count, seed, split)

    def stream() -> Iterator[Sample]:
        from .demo.sets import samples

        for index, sample in enumerate(samples(name, count, seed, split)):
            yield replace(sample, place=f"{name} picture {index}")

    return Samples(name, name, count, stream)


def _everyday(count: int, seed: int, split: str) -> Samples:
    """Questions about photographs, pages, charts and screens, in an order drawn with `seed`. Raises YopoError where answers are needed."""
    if split == "eval":
        raise YopoError(
            f"The questions of {everyday.NAME} have no answers to compare with: they are there to calibrate on.",
            "Ask questions of your own.",
        )
    from .formats import read_samples

    found = read_samples(everyday.FILE)
    chosen = Random(seed).sample(found, min(count, len(found)))
    return Samples(everyday.NAME, everyday.NAME, len(chosen), lambda: iter(chosen))


def _checked(given: Sequence[Sample]) -> list[Sample]:
    """Samples of a list, each with its place in it. Raises YopoError for an empty list, what is no sample, and a file that is not there."""
    if not given:
        raise YopoError("There are no samples.", "Pass at least one yopo.Sample, a JSONL file, or the name of a bundled set.")
    return [_placed(sample, f"sample {index}") for index, sample in enumerate(given)]


def _placed(sample: Any, place: str) -> Sample:
    if not isinstance(sample, Sample):
        raise YopoError(f"{place} is a {type(sample).__name__}, not a yopo.Sample.", "Write yopo.Sample(image, question, answer).")
    if not isinstance(sample.question, str):
        raise YopoError(f"{place}: the question is {sample.question!r}, not text.", "Write yopo.Sample(image, question, answer).")
    for image in sample.images:
        if isinstance(image, str | Path) and not Path(image).is_file():
            raise YopoError(f"{place}: there is no image {image}.", "Check the path.")
    return sample if sample.place else replace(sample, place=place)


def batches(samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    """Lists of up to `size` samples."""
    batch: list[Sample] = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def samples_hash(samples: Samples) -> str:
    """What tells these samples from others: a file's sha256, a bundled set's name, else a sha256 of questions, answers and pictures."""
    if Path(samples.origin).is_file():
        return hashlib.sha256(Path(samples.origin).read_bytes()).hexdigest()
    if samples.origin != "memory":
        return samples.origin
    digest = hashlib.sha256()
    for sample in samples.stream():
        digest.update(json.dumps([sample.question, sample.answer]).encode())
        for picture in (*sample.pictures(), *(frame for video in sample.videos for frame in video.open().frames)):
            digest.update(picture.tobytes())
    return digest.hexdigest()
