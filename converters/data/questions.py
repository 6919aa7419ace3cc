"""Questions to plan on, and others that a search does not see, as a model's inputs."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from converters.errors import YopoError

from ..loading import Dtype, Loaded, load
from .examples import Example, Examples, batches, bundled_examples, read_examples
from .prompts import encode_examples

BATCH_SIZE = 16
BUNDLED_UNSEEN = 200  # at least: one changed answer is half a percent


@dataclass(frozen=True)
class Questions:
    """Of these examples, `seen` (by place) are planned on; the others tell how many answers a plan changes."""

    loaded: Loaded
    examples: Examples
    seen: frozenset[int]

    @classmethod
    def of(cls, path: Path, file: Path | None, count: int, seed: int, device: str | None, dtype: Dtype) -> "Questions":
        """`count` questions of a file, drawn with `seed`, or of the bundled ones, of which as many again stay unseen, or 200."""
        loaded = load(path, device, dtype)
        if file is None:
            return cls(loaded, bundled_examples(count + max(count, BUNDLED_UNSEEN), seed, "calibration"), frozenset(range(count)))
        examples = read_examples(file, answers=False)
        drawn = Random(seed).sample(range(examples.count), min(count, examples.count))
        return cls(loaded, examples, frozenset(drawn))

    def batches(self, *, unseen: bool = False) -> Iterator[Any]:
        """Processor outputs of the questions planned on, or of the others."""
        for batch in batches(self._chosen(unseen), BATCH_SIZE):
            yield encode_examples(self.loaded.processor, batch)

    @property
    def unseen(self) -> int:
        """Questions that are not planned on."""
        return self.examples.count - len(self.seen)

    def check_unseen(self) -> None:
        """Raise YopoError where all questions are planned on."""
        if not self.unseen:
            raise YopoError(f"All {self.examples.count} questions are planned on: none is left for --max-drop.", "Lower --samples.")

    def drops(self, frontier: Any) -> dict[float, float]:
        """By budget, the share of unseen questions that its plan answers differently."""
        from converters.planning.fitting import fitted
        from converters.planning.measure.answers import answered
        from converters.planning.measure.trial import Trials

        answers = (answered(self.loaded.model, batch) for batch in self.batches(unseen=True))
        trials = Trials(self.loaded.model, answers, frontier.path[0].plan)

        def changed(plan: Any) -> float:
            return trials.changed(plan, fitted(self.loaded.model, self.batches(), plan) if frontier.refit else None)

        return {point.asked: changed(point.plan) for point in frontier.asked}

    def _chosen(self, unseen: bool) -> Iterator[Example]:
        return (example for place, example in enumerate(self.examples.stream()) if (place in self.seen) != unseen)
