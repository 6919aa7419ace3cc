"""All question sets of the evidence models by name: the package's, English questions, and easy-VQA, which others published.

`noise:SET` asks a set's questions about pictures of noise, `photographs` and `drawings` are the halves of the package's everyday set; of
all three, every second picture is for calibration. They have no answers but a model's own.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from itertools import groupby, islice
from pathlib import Path
from random import Random

import numpy
from PIL import Image

from benchmarks.evidence.english import ENGLISH
from converters.data import everyday
from converters.data.demo import sets
from converters.data.demo.shapes import ShapeQuestion
from converters.data.sample import Sample
from converters.data.samples import bundled_samples
from converters.errors import YopoError

ENGLISH_SET, EASY_VQA, NOISE, HALVES = "english", "easy-vqa", "noise:", ("photographs", "drawings")
WHOLE = 1000  # more than the everyday set has
ONE_WORD = "Answer the question using a single word or phrase."  # as LLaVA asks published sets


def installed(package: str) -> Path:
    """The folder of an installed package, which is not imported. Raises YopoError."""
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise YopoError(f"{package} is not installed.", f"pip install --no-deps {package.replace('_', '-')}")
    return Path(found.submodule_search_locations[0])


@dataclass(frozen=True)
class AskedPicture:
    """A picture of easy-VQA and all that is asked about it."""

    file: Path
    questions: tuple[ShapeQuestion, ...]

    def picture(self) -> Image.Image:
        with Image.open(self.file) as image:
            return image.convert("RGB")


@cache
def easy_vqa(split: str) -> tuple[AskedPicture, ...]:
    """The pictures of a split, train or test, of the package easy-vqa, in order."""
    folder = installed("easy_vqa") / "data" / split
    rows = sorted(json.loads((folder / "questions.json").read_text()), key=lambda row: int(row[2]))
    return tuple(
        AskedPicture(folder / "images" / f"{number}.png", tuple(_question(question, answer) for question, answer, _ in asked))
        for number, asked in groupby(rows, lambda row: int(row[2]))
    )


def _question(question: str, answer: str) -> ShapeQuestion:
    return ShapeQuestion(f"{question}\n{ONE_WORD}", answer, "yes or no" if answer in ("yes", "no") else question.split()[1])


def samples(name: str, count: int, seed: int, split: str = "train") -> Iterator[Sample]:
    """The samples of the set of this name; of easy-VQA, those to evaluate on are of its own test split."""
    if name == ENGLISH_SET:
        yield from ENGLISH.samples(count, seed, split)
    elif name == EASY_VQA:
        pictures = easy_vqa("test" if split == "eval" else "train")
        source = Random(f"{split}/{seed}")
        for one in source.sample(pictures, count):
            asked = source.choice(one.questions)
            yield Sample(one.picture(), asked.question, asked.answer, asked.kind, one.file.name)
    elif name.startswith(NOISE):
        noise = numpy.random.default_rng(seed)
        for one in samples(name.removeprefix(NOISE), count, seed, split):
            width, height = one.picture().size
            yield replace(one, image=Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=numpy.uint8)))
    elif name in (everyday.NAME, *HALVES):
        found = [
            one
            for one in bundled_samples(WHOLE, seed, "calibration", everyday.NAME).stream()
            if name not in HALVES or (one.kind == "photograph") == (name == HALVES[0])
        ]
        chosen = sorted({str(one.image) for one in found})[split == "eval" :: 2]
        yield from islice((one for one in found if str(one.image) in chosen), count)
    else:
        yield from sets.samples(name, count, seed, split)
