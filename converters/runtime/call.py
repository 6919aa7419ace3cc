"""One forward call of a language model: its rows, text and visual apart, and everything that its layers share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .cache import Timeline
from .chunking import by_pieces
from .projection import has_hooks
from .text_attention import TextMasks, leading_text
from .token_split import TokenSplit, flat_index, rows_of, split_tokens

Rotary = tuple[Tensor, Tensor]
"""Cosine and sine of rotary positions."""

FFN_ROWS = 2048
"""Rows that go through the neurons together where they are changed in place."""


@dataclass
class Call:
    """The rows of a call and what its layers share.

    `text` `[batch * text rows, hidden]` and `visual` `[batch * visual rows, hidden]` (None: no visual token is in play) change from
    layer to layer: in place where they are the two parts of `rows`, visual first, else by new ones. While visual rows do not change,
    `unit` keeps them divided by their root mean square: frozen layers differ by their norm's weight alone. `places` are where `unit`
    and the normalised rows stand, layer after layer, on a CPU, which gets new memory slowly. Rotary embeddings are `[batch * rows, 1,
    size]`. `split` tells where the rows came from, `timeline` what is cached, `fresh` that nothing was before this call. `deepstack` are
    what is added to the visual rows after the first layers, one `[batch * visual rows, hidden]` for each.
    """

    batch: int
    text: Tensor
    visual: Tensor | None
    split: TokenSplit | None
    text_slots: Tensor
    text_rotary: Rotary
    visual_rotary: Rotary | None
    timeline: Timeline
    masks: TextMasks
    fresh: bool
    deepstack: tuple[Tensor, ...] = ()
    rows: Tensor | None = None
    places: tuple[Tensor, Tensor] | None = None
    unit: Tensor | None = None
    rotaries: dict[int, Rotary] = field(default_factory=dict)

    def change_in_place(self, rows: Tensor) -> None:
        """Let the call write to `rows`, visual ones first, which nobody else uses."""
        self.rows, count = rows, len(rows) - len(self.text)
        self.visual, self.text = None if self.visual is None else rows[:count], rows[count:]
        if count and rows.device.type == "cpu":
            self.places = torch.empty_like(rows[:count]), torch.empty_like(rows)

    @property
    def visual_tokens(self) -> int:
        """In all samples."""
        return 0 if self.split is None else int((self.split.visual_slots >= 0).sum())

    def add_text(self, update: Tensor) -> None:
        """Add to the text rows."""
        self.text = self.text + update if self.rows is None else self.text.add_(update.contiguous())

    def add_to_all(
        self, rows: Tensor, projection: Any, first: int, last: int | None, biased: bool,
        inner: Callable[[Tensor], Tensor] = lambda rows: rows,
    ) -> None:  # fmt: skip
        """Add to the rows of both kinds what theirs, visual first, give as inputs `first` to `last` of a projection, after `inner`."""
        assert self.visual is not None
        if self.rows is None:
            count, update = len(self.visual), projection.inputs(inner(rows), first, last, biased)
            self.visual, self.text = self.visual + update[:count], self.text + update[count:]
        else:
            for total, part in zip(self.rows.split(FFN_ROWS), rows.split(FFN_ROWS), strict=True):
                projection.add_inputs(total, inner(part), first, last, biased)
        self.unit = None

    def leave(self, index: int) -> None:
        """Add to the visual rows, where any are left, what is added to them after layer `index`."""
        if self.visual is None or index >= len(self.deepstack):
            return
        self.visual = self.visual + self.deepstack[index] if self.rows is None else self.visual.add_(self.deepstack[index])
        self.unit = None

    def normalised(self, norm: Any, text: Tensor, stride: int = 1) -> Tensor:
        """Visual rows (that a stride shows) after an RMS norm, `norm(visual)` to the bit, then the `text` rows, which have had it."""
        assert self.visual is not None
        index = torch.arange(len(self.visual), device=text.device) if stride == 1 else self.shown_rows(stride)
        if has_hooks(norm) or not hasattr(norm, "variance_epsilon"):  # wrapped: nothing is known of what it does
            return torch.cat([norm(self.visual.index_select(0, index)), text])
        if self.unit is None:
            place = None if self.places is None else self.places[0]
            self.unit = by_pieces(partial(_unit, epsilon=norm.variance_epsilon), self.visual, place=place)
        work = partial(_scaled, self.unit, norm.weight)
        if self.places is None:
            return torch.cat([work(index), text])
        rows = self.places[1][: len(index) + len(text)]
        by_pieces(work, index, place=rows[: len(index)])
        rows[len(index) :] = text
        return rows

    def shown_rows(self, stride: int) -> Tensor:
        """Which of the flat visual rows a stride shows."""
        assert self.split is not None
        return flat_index(self.split.shown(stride)[0], self.split.visual_index.shape[1])

    def rotary(self, stride: int = 1) -> Rotary:
        """Cosine and sine of the visual rows (that a stride shows), then of the text rows."""
        if stride not in self.rotaries:
            assert self.visual_rotary is not None
            visual = self.visual_rotary
            if stride > 1:
                index = self.shown_rows(stride)
                visual = visual[0].index_select(0, index), visual[1].index_select(0, index)
            cosine, sine = (torch.cat(pair) for pair in zip(visual, self.text_rotary, strict=True))
            self.rotaries[stride] = cosine, sine
        return self.rotaries[stride]

    def in_sequence(self, text: Tensor, length: int) -> Tensor:
        """Final text rows back in the sequence `[batch, length, hidden]`, zeros where a visual token or padding stands."""
        if self.split is None:
            return text.view(self.batch, length, -1)
        if self.batch == 1 and self.rows is not None and len(self.rows) == length:
            return self.rows.zero_().index_copy_(0, self.split.text_index[0], text)[None]
        flat = flat_index(self.split.text_index, length)
        index = flat.where(self.split.text_slots.flatten() >= 0, self.batch * length)
        sequence: Tensor = text.new_zeros(self.batch * length + 1, text.shape[1]).index_copy_(0, index, text)
        return sequence[:-1].view(self.batch, length, -1)


def _unit(rows: Tensor, epsilon: float) -> Tensor:
    """Rows divided by their root mean square."""
    wide = rows.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)).to(rows.dtype)


def _scaled(unit: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    """Rows at `index`, by the weight of a norm."""
    return weight * unit.index_select(0, index)


def open_call(
    embeds: Tensor, rotary: Rotary, mask: Tensor | None, visual: Tensor | None, images: Callable[[Tensor], Any], timeline: Timeline,
    in_place: bool = False, rows_of_call: Callable[[TokenSplit], Tensor] | None = None, deepstack: Sequence[Tensor] = (),
) -> Call:  # fmt: skip
    """A call at the input of the first layer, which adds its slots to the timeline.

    `embeds` `[batch, length, hidden]`, `rotary` of all its tokens, `mask` and `visual` `[batch, length]`; `images(visual)` tells which
    images the visual tokens make up. `rows_of_call` gives the rows where the embeddings are not put together. `deepstack` `[visual
    tokens, hidden]` each are in the order of `visual`. Rows are changed `in_place` where that may be.
    """
    valid = _valid(mask, embeds.shape[1])
    if visual is None or (rows_of_call is None and (embeds.shape[1] == 1 or not visual.any())):
        return _text_call(embeds, rotary, valid, timeline, in_place)
    seen = timeline.seen
    split = split_tokens(visual, valid, seen, images(visual if valid is None else visual & valid))
    if not split.text_index.shape[1]:
        raise ValueError("A pruned model answers at text tokens, and this call has none that is no padding.")
    timeline.append(
        embeds.shape[1],
        split.text_slots,
        lambda stride: split.visual_slots if stride == 1 else split.shown(stride)[1],
        gapless=bool((split.text_slots >= 0).all()),
    )
    first = split.visual_index.numel()
    rows = rows_of_call(split) if rows_of_call else _sequence_rows(embeds, split)
    masks = TextMasks(timeline, split.text_slots, causal=False, leading=leading_text(split, seen))
    rotaries = _of_rows(split.text_index, *rotary), _of_rows(split.visual_index, *rotary)
    added = tuple(_visual_rows(part.to(rows), visual, split) for part in deepstack)
    call = Call(len(embeds), rows[first:], rows[:first], split, split.text_slots, *rotaries, timeline, masks, seen == 0, added)
    if in_place:
        call.change_in_place(rows)
    return call


def _text_call(embeds: Tensor, rotary: Rotary, valid: Tensor | None, timeline: Timeline, in_place: bool) -> Call:
    """A call without visual tokens."""
    (batch, length), seen = embeds.shape[:2], timeline.seen
    slots = torch.arange(seen, seen + length, device=embeds.device).expand(batch, -1)
    slots = slots if valid is None else slots.where(valid, -1)
    timeline.append(length, slots, None, gapless=valid is None)
    masks = TextMasks(timeline, slots, causal=seen == 0 and valid is None and length > 1)
    cosine, sine = (part.expand(batch, -1, -1).flatten(0, 1)[:, None] for part in rotary)
    text = embeds.flatten(0, 1).clone() if in_place else embeds.flatten(0, 1)
    return Call(batch, text, None, None, slots, (cosine, sine), None, timeline, masks, seen == 0, (), text if in_place else None)


def _of_rows(index: Tensor, *parts: Tensor) -> Rotary:
    """A rotary embedding `[batch or 1, length, size]` at rows `[batch, rows]`, flat."""
    cosine, sine = (rows_of(index, part).flatten(0, 1)[:, None] for part in parts)
    return cosine, sine


def _valid(mask: Tensor | None, length: int) -> Tensor | None:
    """Which of a call's tokens `[batch, length]` are no padding; None when all are."""
    if mask is None:
        return None
    mask = mask[:, -length:].bool() if mask.shape[1] >= length else mask.bool()
    return None if bool(mask.all()) else mask


def _visual_rows(features: Tensor, visual: Tensor, split: TokenSplit) -> Tensor:
    """Of `features` of all that `visual` `[batch, length]` marks, one after the other, those of the call's visual rows."""
    number = (visual.flatten().cumsum(0) - 1).clamp(min=0)
    return features.index_select(0, number.index_select(0, flat_index(split.visual_index, visual.shape[1])))


def _sequence_rows(embeds: Tensor, split: TokenSplit) -> Tensor:
    """Visual rows, then text rows, of a sequence `[batch, length, hidden]`."""
    index = torch.cat([flat_index(part, embeds.shape[1]) for part in (split.visual_index, split.text_index)])
    return embeds.flatten(0, 1).index_select(0, index)
