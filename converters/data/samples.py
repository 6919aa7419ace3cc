"""Questions about pictures: a Python list, the lines of a JSONL file, or one of the sets that ship with the package."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import YopoError
from ..json_files import conforming, parse_json, read_bytes

if TYPE_CHECKING:  # the command line answers `--help` without it
    from PIL.Image import Image

BUNDLED = "demo"
SET_QUESTIONS = 500  # of a bundled set, where no number is asked for
MAX_FILE_BYTES, MAX_LINE_BYTES = 1 << 30, 1 << 20
FORMAT_HINT = (
    'Each line is one object: {"image": "picture.jpg", "question": "...", "answer": "..."}; the answer, "kind" and "id" are optional.'
)


@dataclass(frozen=True)
class Sample:
    """One question about one picture: a file, or a PIL image. `place` is where it came from, for messages."""

    image: "Path | str | Image"
    question: str
    answer: str | None = None
    kind: str | None = None
    place: str = ""

    def picture(self) -> "Image":
        """The picture in RGB, decoded. Raises YopoError where it cannot be."""
        return open_image(self.image, f"{self.place}: the" if self.place else "The")


@dataclass(frozen=True)
class Samples:
    """`count` samples, streamed anew at every call. `origin` is their file, or the name of a bundled set; "memory" for a list."""

    name: str
    origin: str
    count: int
    stream: Callable[[], Iterator[Sample]]

    @property
    def file_name(self) -> str:
        """The origin without its folders."""
        return Path(self.origin).name


SamplesLike: TypeAlias = Samples | Sequence[Sample] | str | Path
"""What functions take samples as: `Sample` objects, a JSONL file, or the name of a bundled set (demo, sizes, harder)."""


def samples_of(given: SamplesLike, *, answers: bool, count: int | None = None, seed: int = 0) -> Samples:
    """The samples that were given, all checked; `count` of them drawn with `seed`, in their order, or all.

    A bundled set's name stands for 500 of its questions, or `count`: those to evaluate on with `answers`, else those to calibrate on.
    Raises YopoError, with the place, for what is no sample; with `answers`, also for one that has none.
    """
    if isinstance(given, Samples):
        return given
    if is_bundled(given):
        return bundled_samples(SET_QUESTIONS if count is None else count, seed, "eval" if answers else "calibration", str(given))
    if isinstance(given, str | Path):
        name, origin, found = Path(given).stem, str(given), read_samples(Path(given))
    else:
        name, origin, found = "samples", "memory", _checked(given)
    unanswered = next((sample for sample in found if answers and not sample.answer), None)
    if unanswered is not None:
        raise YopoError(
            f"{unanswered.place} has no answer to compare with.", "Each sample of a task needs an image, a question and an answer."
        )
    if count is not None and count < len(found):
        found = [found[index] for index in sorted(Random(seed).sample(range(len(found)), count))]
    return Samples(name, origin, len(found), lambda: iter(found))


def is_bundled(given: Any) -> bool:
    """Whether this is a bundled set's name, and no file of that name is there."""
    from .demo.sets import SETS

    return isinstance(given, str | Path) and str(given) in SETS and not Path(given).exists()


def bundled_samples(count: int, seed: int, split: str, name: str = BUNDLED) -> Samples:
    """One of the sets of `converters.data.demo.sets`: the demo's shapes, or by `name` another."""

    def stream() -> Iterator[Sample]:
        from .demo.sets import samples

        for index, sample in enumerate(samples(name, count, seed, split)):
            yield replace(sample, place=f"{name} picture {index}")

    return Samples(name, name, count, stream)


def read_samples(path: Path) -> list[Sample]:
    """All samples of a JSONL file; image paths are relative to the file.

    Raises YopoError, with the line's number, for an empty or malformed line, a missing or unknown key, a value that is not
    text, and an image that is not there.
    """
    lines = read_bytes(path, "Pass a JSONL file in UTF-8.", MAX_FILE_BYTES).removesuffix(b"\n").split(b"\n")
    if lines == [b""]:
        raise YopoError(f"{path} is empty.", FORMAT_HINT)
    return [_sample(line, path, f"{path}, line {number}") for number, line in enumerate(lines, 1)]


def _sample(line: bytes, path: Path, place: str) -> Sample:
    from .line import Line

    if not line.strip():
        raise YopoError(f"{place} is empty.", FORMAT_HINT)
    if len(line) > MAX_LINE_BYTES:
        raise YopoError(f"{place} is longer than {MAX_LINE_BYTES:,} bytes.", FORMAT_HINT)
    data = conforming(Line, parse_json(line, place, FORMAT_HINT), place, FORMAT_HINT)
    image = path.parent / data.image
    if not image.is_file():
        raise YopoError(f"{place}: there is no image {image}.", f"Image paths are relative to {path.parent}.")
    return Sample(image, data.question, data.answer or None, data.kind or None, place)


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
    if isinstance(sample.image, str | Path) and not Path(sample.image).is_file():
        raise YopoError(f"{place}: there is no image {sample.image}.", "Check the path.")
    return sample if sample.place else replace(sample, place=place)


def open_image(image: "Path | str | Image", which: str = "The") -> "Image":
    """A picture in RGB, decoded. Raises YopoError if it is not there or cannot be read."""
    from .decoding import in_rgb, open_picture

    if isinstance(image, str | Path):
        return open_picture(Path(image), which)
    return in_rgb(image, which)


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
        digest.update(sample.picture().tobytes())
    return digest.hexdigest()
