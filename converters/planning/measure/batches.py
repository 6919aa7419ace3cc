"""Batches of questions as the layers see them: what stays the same for every plan, and the rows that enter layer 0."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from torch import Tensor

from ...runtime.call import Call
from ...runtime.text_attention import TextMasks
from .activation_cache import LayerInput
from .answers import Answered
from .dense_adapter import DenseAdapter


@dataclass(frozen=True)
class BatchFacts:
    """What every process knows of a batch: tokens of each answer, text rows and visual rows of all its questions, without padding."""

    lengths: tuple[int, ...]
    text_rows: int
    visual_rows: int

    @classmethod
    def of_shares(cls, shares: Sequence["BatchFacts | None"]) -> "BatchFacts":
        """Those of a batch whose questions were dealt out by turns."""
        there = [share for share in shares if share is not None]
        turns = zip_longest(*(share.lengths for share in there))
        lengths = tuple(length for turn in turns for length in turn if length is not None)
        return cls(lengths, sum(share.text_rows for share in there), sum(share.visual_rows for share in there))


@dataclass(frozen=True)
class QuestionBatch:
    """One batch without its rows. `predicts` `[batch * text rows]` marks the text rows that predict an answer's tokens.

    `dense` `[answer tokens, hidden]` are the dense model's final rows there, `lengths` the tokens of each answer.
    """

    call: Call
    predicts: Tensor
    dense: Tensor
    lengths: tuple[int, ...]

    @property
    def facts(self) -> BatchFacts:
        return BatchFacts(self.lengths, int((self.call.text_slots >= 0).sum()), int(self.visual_rows.sum()))

    @property
    def visual_rows(self) -> Tensor:
        """Bool `[batch * visual rows]`: those that are not padding."""
        assert self.call.split is not None
        there: Tensor = self.call.split.visual_slots.flatten() >= 0
        return there

    @property
    def visual_width(self) -> int:
        """Visual rows of each question, padding included."""
        assert self.call.split is not None
        return self.call.split.visual_slots.shape[1]

    def at(self, state: LayerInput) -> Call:
        """The call with these rows."""
        masks = TextMasks(self.call.timeline, self.call.text_slots, causal=False)
        return replace(self.call, text=state.text, visual=state.visual, masks=masks, unit=None)


def open_batch(answered: Answered, adapter: DenseAdapter) -> tuple[QuestionBatch, LayerInput]:
    """A batch, and its rows at the input of layer 0."""
    call = adapter.call(answered)
    assert call.split is not None
    assert call.visual is not None
    predicts = answered.predicts.gather(1, call.split.text_index) & (call.text_slots >= 0)
    empty = call.text[:0]
    questions = QuestionBatch(
        replace(call, text=empty, visual=empty), predicts.flatten(), answered.dense, tuple(answered.predicts.sum(1).tolist())
    )
    return questions, LayerInput(call.text, call.visual)
