"""Linear compensations of plans that are tried: fitted on the first batches when a layer's visual rows are new, and kept for a while."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ...processes import Processes
from ..compensation import LeastSquares, LinearCompensation
from .activation_cache import ActivationCache, LayerInput
from .batches import BatchFacts, QuestionBatch
from .dense_adapter import DenseAdapter

FIT_ROWS = 8  # visual rows that a compensation is fitted on, times the hidden size
FIT_SHARE = 0.25  # of the questions, at least
KEPT_FITS = 8  # of each layer


class Fits:
    """Compensations by layer and key (see `visual_keys`), each fitted on the same first `batches` beside the dense model's rows.

    `questions` are this process's shares of the batches by number, `facts` are of the whole ones; every process takes part in every fit.
    """

    def __init__(
        self, adapter: DenseAdapter, questions: Mapping[int, QuestionBatch], facts: Sequence[BatchFacts], memory_bytes: int,
        folder: Path | None, processes: Processes,
    ) -> None:  # fmt: skip
        self.adapter, self.questions, self.processes = adapter, questions, processes
        self.batches = range(enough_to_fit(facts, adapter.plan.sizes.hidden_size))
        self.own = [number for number in self.batches if number in questions]
        self._dense_rows = ActivationCache(memory_bytes, folder)
        self._known: dict[tuple[int, str], LinearCompensation] = {}

    def keep_dense(self, index: int, visual: Sequence[Tensor]) -> None:
        """Keep the visual rows that the dense model brings to a layer, one tensor for each of this process's batches."""
        for number, rows in zip(self.own, visual, strict=True):
            self._dense_rows.put(index, number, LayerInput(self._normalised(index, number, rows), rows[:0]))
        self._dense_rows.accept(self.own)

    def knows(self, index: int, key: str) -> bool:
        """Whether a layer's compensation needs no fitting."""
        return (index, key) in self._known

    def compensation(self, index: int, key: str, numbers: Sequence[int], visual: Sequence[Tensor], rank: int | None) -> LinearCompensation:
        """A layer's compensation: the one known, else fitted to the visual rows that these batches bring to it."""
        compensation = self._known.pop((index, key), None) or self._fitted(index, numbers, visual, rank)
        self._known[index, key] = compensation  # the last one used is the last in order
        of_layer = [other for layer, other in self._known if layer == index]
        if len(of_layer) > KEPT_FITS:
            del self._known[index, of_layer[0]]
        return compensation

    def _fitted(self, index: int, numbers: Sequence[int], visual: Sequence[Tensor], rank: int | None) -> LinearCompensation:
        return self.sums(index, numbers, visual).solve(rank, self.adapter.kv_weights(index))

    def sums(self, index: int, numbers: Sequence[int], visual: Sequence[Tensor]) -> LeastSquares:
        """What a layer's compensations of any rank are solved from, of the visual rows that these batches bring to it."""
        fitting = LeastSquares()
        for number, rows in zip(numbers, visual, strict=True):
            if number in self.batches:
                fitting.add(self._normalised(index, number, rows), self._dense_rows.get(index, number).text)
        return fitting.summed(self.processes, self.adapter.model.get_decoder().layers[index].input_layernorm.weight)

    def _normalised(self, index: int, number: int, rows: Tensor) -> Tensor:
        """What a layer makes K and V from, of a batch's visual rows without padding."""
        norm = self.adapter.model.get_decoder().layers[index].input_layernorm
        normalised: Tensor = norm(rows[self.questions[number].visual_rows])
        return normalised


def enough_to_fit(facts: Sequence[BatchFacts], hidden_size: int) -> int:
    """How many of the first batches are enough to fit on."""
    rows = samples = 0
    total = sum(len(batch.lengths) for batch in facts)
    for number, batch in enumerate(facts, 1):
        rows += batch.visual_rows
        samples += len(batch.lengths)
        if rows >= FIT_ROWS * hidden_size and samples >= FIT_SHARE * total:
            return number
    return len(facts)
