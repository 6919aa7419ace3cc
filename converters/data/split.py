"""Samples to plan on, and others that a search does not see, as a model's inputs."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from ..errors import YopoError
from ..processes import ALONE, Processes
from .prompts import encode_samples
from .sample import Sample
from .samples import Samples, SamplesLike, batches, bundled_samples, is_bundled, samples_of

BATCH_SIZE = 16
BUNDLED_UNSEEN = 200  # at least: one changed answer is half a percent


@dataclass(frozen=True)
class SampleSplit:
    """Of these samples, `seen` (by place) are planned on; the others tell how many answers a plan changes."""

    samples: Samples
    seen: frozenset[int]

    @classmethod
    def of(cls, given: "SamplesLike | SampleSplit", count: int, seed: int) -> "SampleSplit":
        """`count` samples, drawn with `seed`; of a bundled set the first ones, and as many again stay unseen, or 200."""
        if isinstance(given, SampleSplit):
            return given
        if is_bundled(given):
            samples = bundled_samples(count + max(count, BUNDLED_UNSEEN), seed, "calibration", str(given))
            return cls(samples, frozenset(range(min(count, samples.count))))
        samples = samples_of(given, answers=False)
        return cls(samples, frozenset(Random(seed).sample(range(samples.count), min(count, samples.count))))

    @property
    def unseen(self) -> int:
        """Samples that are not planned on."""
        return self.samples.count - len(self.seen)

    def check_unseen(self) -> None:
        """Raise YopoError where all samples are planned on."""
        if not self.unseen:
            raise YopoError(f"All {self.samples.count} questions are planned on: none is left to look at.", "Plan on fewer: --samples.")

    def chosen(self, *, unseen: bool = False) -> Samples:
        """The samples planned on, or the others."""

        def stream() -> Iterator[Sample]:
            return (sample for place, sample in enumerate(self.samples.stream()) if (place in self.seen) != unseen)

        return Samples(self.samples.name, self.samples.origin, self.unseen if unseen else len(self.seen), stream)

    def batches(self, processor: Any, *, unseen: bool = False, processes: Processes = ALONE) -> Iterator[Any]:
        """Processor outputs of the questions planned on, without their answers, or of the others.

        Of several processes each gets its share of every batch, None where that is nothing.
        """
        for batch in batches(self.chosen(unseen=unseen).stream(), BATCH_SIZE):
            share = list(processes.share(batch))
            yield encode_samples(processor, share) if share else None
