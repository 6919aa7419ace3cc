"""How text reads: its queries by kind of KV head, under masks that the layers of a call share."""

import torch
from torch import Tensor

from .attention import attend
from .cache import Timeline
from .layout import TEXT_ONLY, HeadKind
from .token_split import TokenSplit


class TextMasks:
    """Masks of one call's text queries; layers of the same shape share them.

    The `leading` queries of every sample stand before all that is visual, in the call and the cache.
    """

    def __init__(self, timeline: Timeline, slots: Tensor, causal: bool, leading: int = 0) -> None:
        self.timeline, self.slots, self.causal, self.leading = timeline, slots, causal, leading
        self._visible: dict[int, Tensor | None] = {}
        self._masks: dict[HeadKind, Tensor | None] = {}

    def of(self, kind: HeadKind) -> Tensor | None:
        """Mask `[batch, 1 or query heads, queries, keys]`, None where every key is seen (or `causal` says it all)."""
        if self.causal:
            return None
        if kind not in self._masks:
            self._masks[kind] = self._mask(kind)
        return self._masks[kind]

    def _seen(self, stride: int) -> Tensor | None:
        if stride not in self._visible:
            self._visible[stride] = self.timeline.visible(stride, self.slots)
        return self._visible[stride]

    def _mask(self, kind: HeadKind) -> Tensor | None:
        mask = self._seen(kind.stride)
        if kind.stride == TEXT_ONLY or all(kind.reads):
            return mask
        reads = torch.tensor(kind.reads, device=self.slots.device)[:, None, None]
        allowed = (reads | self.timeline.text_columns(kind.stride))[None]
        return allowed if mask is None else mask & allowed


def text_attention(query: Tensor, key: Tensor, value: Tensor, kind: HeadKind, masks: TextMasks, scale: float) -> Tensor:
    """Text queries of one kind of KV head. Those before all that is visual are not shown it."""
    mask, leading, text = masks.of(kind), masks.leading, query.shape[2]
    if mask is None or kind.stride == TEXT_ONLY or not leading:
        return attend(query, key, value, mask, scale, masks.causal)
    first = slice(key.shape[2] - text, key.shape[2] - text + leading)
    before = attend(query[:, :, :leading], key[:, :, first], value[:, :, first], None, scale, causal=True)
    return torch.cat([before, attend(query[:, :, leading:], key, value, mask[:, :, leading:], scale)], 2)


def leading_text(split: TokenSplit, seen: int) -> int:
    """Text rows that in every sample come before all that is visual; none where anything is cached, or where none would be left."""
    first = split.visual_slots.where(split.visual_slots >= 0, torch.iinfo(split.visual_slots.dtype).max).amin(1, keepdim=True)
    rows = int(((split.text_slots >= 0) & (split.text_slots < first)).sum(1).min())
    return rows if not seen and rows < split.text_slots.shape[1] else 0
