"""The question sets by name: the demo's, the same on pictures of several sizes, and the harder ones."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random

from converters.data.demo import harder, shapes
from converters.data.demo.shapes import Asker, Scene, ShapeQuestion
from converters.data.sample import Sample

CANVASES = ((2, 2), (2, 3), (3, 2), (3, 3))  # rows and columns of cells


@dataclass(frozen=True)
class QuestionSet:
    """How its pictures are drawn and what is asked about them, by kind."""

    scene: Callable[[Random], Scene]
    askers: Mapping[str, Asker]

    def samples(self, count: int, seed: int, split: str = "train") -> Iterator[Sample]:
        """Pictures with one question each, the same ones for the same seed and split; all kinds are equally frequent."""
        return shapes.samples(count, seed, split, self.scene, self.askers)

    def questions(self, scene: Scene, source: Random, count: int) -> list[ShapeQuestion]:
        """Up to `count` different questions about one scene."""
        return shapes.questions(scene, source, count, self.askers)


def scene_of_some_size(source: Random) -> Scene:
    """The demo's objects on a canvas of two or three rows and columns."""
    return shapes.random_scene(source, *source.choice(CANVASES))


SETS = {
    "demo": QuestionSet(shapes.random_scene, shapes.ASKERS),
    "sizes": QuestionSet(scene_of_some_size, shapes.ASKERS),
    "harder": QuestionSet(harder.random_scene, harder.ASKERS),
}


def samples(name: str, count: int, seed: int, split: str = "train") -> Iterator[Sample]:
    """The samples of the set of this name."""
    return SETS[name].samples(count, seed, split)
