"""The KV cache of a pruned model: at most three tensors of keys a layer, one for each set of visual tokens that KV heads have.

`DynamicCache` objects, those of `generate()` included, are kept and only their layers replaced.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from .chunking import in_place
from .layout import TEXT_ONLY

ROOM = 64
"""Tokens that a rectangle has room for beyond those it holds, once it grows: it is copied once for as many."""


class Timeline:
    """The slot of every cached key, shared by the layers of one cache.

    `slots[stride]` is `[batch, keys]`, -1 where a sample has no key; `text[stride]` `[keys]` tells text columns.
    Keys stand in the order of calls, in each call visual before text. `gapless[stride]` is True while no key is missing.
    """

    def __init__(self, strides: Iterable[int]) -> None:
        self.seen = 0
        self.slots: dict[int, Tensor | None] = dict.fromkeys(sorted(set(strides) | {TEXT_ONLY}))
        self.text: dict[int, Tensor | None] = dict.fromkeys(self.slots)
        self.gapless = dict.fromkeys(self.slots, True)
        self.kept: dict[int, Tensor] = {}

    def append(self, length: int, text: Tensor, visual: Callable[[int], Tensor] | None, gapless: bool) -> None:
        """Add a call of `length` slots: its text slots `[batch, text]` and, by stride, its visual ones `[batch, keys]`."""
        for stride in self.slots:
            parts = [text]
            if visual is not None and stride != TEXT_ONLY:
                parts.insert(0, visual(stride))
                self.gapless[stride] &= bool((parts[0] >= 0).all())
            self.gapless[stride] &= gapless
            columns = [torch.full((part.shape[-1],), part is parts[-1], device=text.device) for part in parts]
            self.slots[stride] = _joined(self.slots[stride], parts)
            self.text[stride] = _joined(self.text[stride], columns)
        self.seen += length

    def crop(self, length: int) -> None:
        """Forget the slots from `length` on; `kept` then holds the columns that remain, for the layers to follow."""
        for stride, slots in self.slots.items():
            if slots is None:
                continue
            stay = (slots >= 0) & (slots < length)
            self.kept[stride] = stay.any(0).nonzero()[:, 0]
            self.slots[stride] = slots.where(stay, -1)[..., self.kept[stride]]
            self.text[stride] = self._text(stride)[self.kept[stride]]
            self.gapless[stride] = bool((self.all_slots(stride) >= 0).all())
        self.seen = length

    def each_batch(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply a change of the batch dimension."""
        self.slots = {stride: None if slots is None else change(slots) for stride, slots in self.slots.items()}

    def all_slots(self, stride: int) -> Tensor:
        """Slots of the keys so far, `[batch, keys]`."""
        slots = self.slots[stride]
        assert slots is not None
        return slots

    def _text(self, stride: int) -> Tensor:
        text = self.text[stride]
        assert text is not None
        return text

    def visible(self, stride: int, queries: Tensor) -> Tensor | None:
        """Mask `[batch, 1, queries, keys]` of keys up to each query's slot `[batch, queries]`; None: all of them.

        A padded query (slot -1) sees every key, so that no row is empty; nobody reads its output.
        """
        slots = self.all_slots(stride)[:, None, None]
        if queries.shape[1] == 1 and self.gapless[stride]:
            return None
        queries = queries.where(queries >= 0, self.seen)[:, None, :, None]
        return (slots <= queries) & (slots >= 0)

    def text_columns(self, stride: int) -> Tensor:
        """`[keys]`, True where a column is text."""
        return self._text(stride)


class SparseLayer(CacheLayerMixin):
    """One layer's K and V, a rectangle `[batch, KV heads, keys, head_dim]` for each kind of KV head."""

    is_sliding = False
    is_croppable = True
    is_compileable = False

    def __init__(self, timeline: Timeline, first: bool) -> None:
        super().__init__()
        self.timeline = timeline
        self.first = first
        self.rectangles: dict[int, tuple[Tensor, Tensor]] = {}
        self.rooms: dict[int, tuple[Tensor, Tensor]] = {}

    def extend(self, stride: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append to the rectangle of this kind; returns it whole."""
        if stride in self.rectangles and in_place():
            keys, values = self._placed(stride, keys, values)
        elif stride in self.rectangles:
            old_keys, old_values = self.rectangles[stride]
            keys, values = torch.cat([old_keys, keys], 2), torch.cat([old_values, values], 2)
        self.rectangles[stride] = keys, values
        self.is_initialized = True
        return keys, values

    def _placed(self, stride: int, *new: Tensor) -> tuple[Tensor, Tensor]:
        """The rectangle with new keys and values behind it, in a room of its own, made when it first grows or is full."""
        before, last = self.rectangles[stride], self.rectangles[stride][0].shape[2] + new[0].shape[2]
        if stride not in self.rooms or self.rooms[stride][0].shape[2] < last:
            spare = [tensor.new_empty(*tensor.shape[:2], last + ROOM, tensor.shape[3]) for tensor in before]
            for room, tensor in zip(spare, before, strict=True):
                room[:, :, : tensor.shape[2]] = tensor
            self.rooms[stride] = spare[0], spare[1]
        for room, tensor in zip(self.rooms[stride], new, strict=True):
            room[:, :, last - tensor.shape[2] : last] = tensor
        keys, values = self.rooms[stride]
        return keys[:, :, :last], values[:, :, :last]

    @property
    def nbytes(self) -> int:
        """Bytes of K and V."""
        return sum(tensor.nbytes for pair in self.rectangles.values() for tensor in pair)

    def get_seq_length(self) -> int:
        return self.timeline.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.timeline.seen + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last `-tokens_to_remove` tokens, or keep the first `tokens_to_remove` when positive."""
        tokens_to_remove = int(tokens_to_remove)  # some callers count on the device
        if self.first:
            length = tokens_to_remove if tokens_to_remove > 0 else self.timeline.seen + tokens_to_remove
            self.timeline.crop(max(0, length))
        for stride, pair in self.rectangles.items():
            kept = self.timeline.kept[stride]
            self.rectangles[stride] = (pair[0].index_select(2, kept), pair[1].index_select(2, kept))
        self.rooms = {}

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._each_batch(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._each_batch(lambda tensor: tensor.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._each_batch(lambda tensor: tensor[indices])

    def _each_batch(self, change: Callable[[Tensor], Tensor]) -> None:
        if self.first:
            self.timeline.each_batch(change)
        self.rectangles = {stride: (change(keys), change(values)) for stride, (keys, values) in self.rectangles.items()}
        self.rooms = {}

    def reset(self) -> None:
        if self.first:
            self.timeline.__init__(self.timeline.slots)  # type: ignore[misc]
        self.rectangles, self.rooms = {}, {}
        self.is_initialized = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise NotImplementedError("a pruned model's cache is filled by the pruned model alone")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("a pruned model's cache is filled by the pruned model alone")


def _joined(old: Tensor | None, parts: list[Tensor]) -> Tensor:
    return torch.cat(parts if old is None else [old, *parts], -1)


def refuse_other_caches(cache: Any) -> None:
    """Raise ValueError for a cache whose layers cannot be of unequal lengths."""
    offloading = getattr(cache, "offloading", False)
    if cache is not None and (type(cache) is not DynamicCache or offloading):
        raise ValueError(
            f"A pruned model keeps its K and V in a plain DynamicCache, not in {'an offloading' if offloading else 'a'} "
            f"{type(cache).__name__}: a static, quantised or offloaded cache cannot hold layers of unequal lengths. "
            "Leave cache_implementation at its default."
        )


def sparse_layers(cache: Cache | None, layers: int, strides: Iterable[int]) -> tuple[Cache, list[SparseLayer]]:
    """The layers of a pruned model's cache, put into `cache` when it is still empty. Raises ValueError for other caches."""
    cache = DynamicCache() if cache is None else cache
    existing = list(cache.layers)
    if existing and all(isinstance(layer, SparseLayer) for layer in existing):
        return cache, existing
    refuse_other_caches(cache)
    if cache.get_seq_length():
        raise ValueError("This cache was filled by another model. Start with an empty one.")
    timeline = Timeline(strides)
    cache.layers = [SparseLayer(timeline, index == 0) for index in range(layers)]
    cache.layer_class_to_replicate = None
    return cache, cache.layers
