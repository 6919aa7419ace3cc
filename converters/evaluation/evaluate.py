"""What pruning did to the answers: the pruned model and the dense one on the same questions."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from ..data.prompts import encode_samples
from ..data.sample import Sample
from ..data.samples import Samples, batches
from ..loading import Loaded
from ..processes import joined
from ..progress import Listener, Progress
from .answering import generate
from .scores import ComparedAnswer, Score, by_kind, score, score_json


@dataclass(frozen=True)
class Evaluation:
    """Answers to the questions of one set, in order; `path` tells which path of the runtime gave them, and where it ran."""

    name: str
    path: str
    answered: tuple[ComparedAnswer, ...]

    @property
    def score(self) -> Score:
        """Accuracies, retention and changed answers over all questions."""
        return score(self.answered)

    @property
    def kinds(self) -> dict[str, Score]:
        """The same for every kind of question."""
        return by_kind(self.answered)

    @property
    def retention(self) -> float | None:
        """The pruned model's accuracy over the dense one's; None where the dense model has nothing right, or one of them is missing."""
        return self.score.retention

    def to_json(self) -> dict[str, Any]:
        """The scores as a JSON object."""
        return score_json(self.score) | {"kinds": {kind: score_json(one) for kind, one in self.kinds.items()}}


def evaluate_samples(
    loaded: Loaded, samples: Samples, *, dense_side: bool, batch_size: int, max_new_tokens: int, progress: Listener
) -> Evaluation:
    """Answers in the order of the questions; of several processes, each asks its share of the batches.

    Without `dense_side` a pruned model is asked alone: the dense one is not in it any more.
    """
    processes = joined()
    answered: list[list[ComparedAnswer]] = []
    for batch in processes.share(batches(samples.stream(), batch_size)):
        answered.append(list(_batch(loaded, batch, dense_side, max_new_tokens)))
        done = min(samples.count, sum(map(len, answered)) * processes.count)
        progress(Progress(f"Asking {samples.name}", done, samples.count, "samples"))
    in_turns = zip_longest(*processes.gathered(answered), fillvalue=())
    return Evaluation(samples.name, loaded.path_report(), tuple(one for turn in in_turns for batch in turn for one in batch))


def _batch(loaded: Loaded, batch: list[Sample], dense_side: bool, max_new_tokens: int) -> Iterator[ComparedAnswer]:
    """Both models' answers to the same inputs."""
    inputs = encode_samples(loaded.processor, batch)
    nothing: list[str | None] = [None] * len(batch)
    pruned: Sequence[str | None] = generate(loaded, inputs, max_new_tokens) if loaded.pruned else nothing
    dense: Sequence[str | None] = nothing
    if dense_side:
        with loaded.model.dense() if loaded.pruned else nullcontext():
            dense = generate(loaded, inputs, max_new_tokens)
    for sample, from_dense, from_pruned in zip(batch, dense, pruned, strict=True):
        yield ComparedAnswer(sample.answer or "", from_dense, from_pruned, sample.kind)
