"""Attention of a pruned layer: text reads by kind of KV head, visual tokens look around themselves in strips.

Everything is ordinary scaled dot-product attention on rectangles; nothing is computed to be masked away but the corners of strips
and blocks and the padding of ragged batches.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import groupby, product
from math import ceil

import torch
from torch import Tensor
from torch.nn import functional

from .attention_flex import block_mask, compiled
from .autotune import fastest
from .cache import Timeline
from .chunking import in_place
from .layout import TEXT_ONLY, LayerLayout
from .plan import Grid
from .token_split import Image, Streams

STRIP_ROWS, STRIP_COLUMNS = 8, 24
"""Grid rows and, at most, columns whose queries are computed together under a window: as many as a kernel takes for a block."""

LAID_OUT_BYTES = 1 << 21
"""Keys that are laid out at a time, on a CPU: memory that is used again is not asked for anew."""

FEW_QUERIES = 16
"""Up to these, there are fewer queries than products like as rows. A power of two: what is measured is kept by powers of two."""

KEY_BYTES, SCORE_BYTES = 1 << 18, 1 << 26
"""From how many bytes of keys on, and up to how many of scores, attention may go by products. Small models answer alike every time."""

QUERY_BLOCK = 1024
"""Visual queries that are computed together without a window."""


@dataclass(frozen=True)
class HeadKind:
    """KV heads of a layer that hold the same share of the visual tokens, by their places in the file, and their query heads.

    `stride` is the cache's key: TEXT_ONLY, 1 for all visual tokens, or more; then `offsets` has one per KV head.
    `reads` has one entry per query head: False where the K and V are held for visual queries alone.
    """

    stride: int
    kv_heads: tuple[int, ...]
    query_heads: tuple[int, ...]
    offsets: tuple[int, ...]
    reads: tuple[bool, ...]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def head_kinds(layout: LayerLayout) -> tuple[HeadKind, ...]:
    """The kinds of a layer's KV heads, at most three, each with at least one head."""
    return _head_kinds(layout)


@cache
def _head_kinds(layout: LayerLayout) -> tuple[HeadKind, ...]:
    group = len(layout.query_order) // len(layout.kv_order)
    held = [cut.stride for cut in layout.ranges for _ in range(cut.first, cut.last)]
    held[layout.cached_own : layout.own] = [TEXT_ONLY] * (layout.own - layout.cached_own)
    kinds = []
    for stride, places in groupby(sorted(range(len(held)), key=lambda place: -held[place]), key=lambda place: held[place]):
        kv_heads = tuple(sorted(places))
        query_heads = tuple(kv_head * group + member for kv_head in kv_heads for member in range(group))
        offsets = tuple(layout.offsets[place] for place in kv_heads) if stride > 1 else ()
        kinds.append(HeadKind(stride, kv_heads, query_heads, offsets, tuple(layout.reads[head] for head in query_heads)))
    return tuple(kinds)


def take(tensor: Tensor, places: Sequence[int], dim: int) -> Tensor:
    """`tensor` at `places` of `dim`: a view where they are consecutive, the tensor itself where they are all."""
    if len(places) == tensor.shape[dim] and list(places) == list(range(len(places))):
        return tensor
    if not places or list(places) == list(range(places[0], places[0] + len(places))):
        return tensor.narrow(dim, places[0] if places else 0, len(places))
    return tensor.index_select(dim, torch.tensor(places, device=tensor.device))


def rotate(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary embedding of `[rows, heads, head_dim]` by `[rows, 1, size]`.

    Where `size` is less than head_dim, the first elements turn.
    """
    size = cosine.shape[-1]
    turning, rest = heads[..., :size], heads[..., size:]
    first, second = turning.chunk(2, -1)
    turned = (turning * cosine).add_(torch.cat([-second, first], -1).mul_(sine))
    return turned if size == heads.shape[-1] else torch.cat([turned, rest], -1)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, causal: bool = False) -> Tensor:
    """Scaled dot-product attention `[batch, heads, queries, head_dim]`; fewer KV heads than query heads are shared in groups.

    `mask` is True where a key is seen. By PyTorch's kernel; in bfloat16 on a CPU by two products where this was measured to be faster.
    """
    ways = {} if causal else _products(query, key)
    if not ways:
        return by_kernel(query, key, value, mask, scale, causal)
    ways = {name: partial(way, query, key, value, mask, scale) for name, way in {"kernel": by_kernel, **ways}.items()}
    queries, keys = (1 << (tensor.shape[2] - 1).bit_length() for tensor in (query, key))
    what = f"attention of up to {queries} queries and {keys} keys ({torch.get_num_threads()} threads)"
    return ways[fastest(what, lambda: ways, query.device)]()


def _products(query: Tensor, key: Tensor) -> dict[str, Callable[..., Tensor]]:
    """Other ways than the kernel, which in float32 computes as fast as products do."""
    scores = query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2] * query.itemsize
    kept = key.nbytes >= KEY_BYTES and 0 < scores <= SCORE_BYTES
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or not kept or not in_place():
        return {}
    if query.shape[2] <= FEW_QUERIES:
        return {"products, keys first": partial(by_products, keys_first=True)}
    return {"products": by_products}


def by_kernel(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, causal: bool = False) -> Tensor:
    """Attention by PyTorch's own kernel."""
    grouped = query.shape[1] != key.shape[1]
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped)


def by_products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, keys_first: bool = False) -> Tensor:
    """Attention as two products, scores rounded to the type of the tensors. A query that sees nothing gets a mean, for nobody.

    Keys first, they are read as they lie, which pays for few queries. A few heads at a time: a copy of all keys would be new memory.
    """
    (batch, heads, count, size), kv_heads, seen = query.shape, key.shape[1], key.shape[2]
    group = heads // kv_heads
    few = max(1, LAID_OUT_BYTES // (batch * seen * max(size, group * count) * key.itemsize))
    masks = mask.split(few * group, 1) if mask is not None and mask.shape[1] > 1 else [mask] * ceil(kv_heads / few)
    parts = zip(query.split(few * group, 1), key.split(few, 1), value.split(few, 1), masks, strict=True)
    return torch.cat([_two_products(*part, scale, keys_first) for part in parts], 1)


def _two_products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, keys_first: bool) -> Tensor:
    """`by_products` of heads that go together."""
    (batch, heads, count, size), kv_heads, seen = query.shape, key.shape[1], key.shape[2]
    queries = query.reshape(batch * kv_heads, heads // kv_heads * count, size)
    keys, values = (tensor.reshape(batch * kv_heads, seen, size) for tensor in (key, value))
    first, second = (keys, queries) if keys_first else (queries, keys.contiguous())
    scores = torch.baddbmm(query.new_empty(len(first), first.shape[1], second.shape[1]), first, second.mT, beta=0, alpha=scale)
    scores = scores.mT if keys_first else scores
    if mask is not None:
        shown = mask.unflatten(1, (kv_heads, -1) if mask.shape[1] > 1 else (1, 1))
        scores.view(batch, kv_heads, -1, count, seen).masked_fill_(~shown, torch.finfo(query.dtype).min)
    return torch.bmm(scores.softmax(-1), values).view(batch, heads, count, size)


class TextMasks:
    """Masks of one call's text queries; layers of the same shape share them.

    The `leading` queries of every sample stand before all that is visual, in the call and the cache.
    """

    def __init__(self, timeline: Timeline, slots: Tensor, causal: bool, leading: int = 0) -> None:
        self.timeline, self.slots, self.causal, self.leading = timeline, slots, causal, leading
        self._visible: dict[int, Tensor | None] = {}
        self._masks: dict[HeadKind, Tensor | None] = {}

    def prepare(self, strides: Iterable[int]) -> None:
        """Look now, since data decides, which offsets can share a mask: no compiler can follow that."""
        for stride in strides:
            self._seen(stride)

    def of(self, kind: HeadKind) -> Tensor | None:
        """Mask `[batch, 1 or query heads, queries, keys]`, None where every key is seen (or `causal` says it all)."""
        if self.causal:
            return None
        if kind not in self._masks:
            self._masks[kind] = self._mask(kind)
        return self._masks[kind]

    def _seen(self, stride: int) -> Tensor | None:
        if stride not in self._visible and not self.causal:
            self._visible[stride] = _shared(self.timeline.visible(stride, self.slots))
        return self._visible.get(stride)

    def _mask(self, kind: HeadKind) -> Tensor | None:
        mask = self._seen(kind.stride)
        group = len(kind.query_heads) // len(kind.kv_heads)
        if mask is not None and mask.shape[1] > 1:
            mask = take(mask, [offset for offset in kind.offsets for _ in range(group)], 1)
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


def leading_text(streams: Streams, seen: int) -> int:
    """Text rows that in every sample come before all that is visual; none where anything is cached, or where none would be left."""
    first = streams.visual_slots.where(streams.visual_slots >= 0, torch.iinfo(streams.visual_slots.dtype).max).amin(1, keepdim=True)
    rows = int(((streams.text_slots >= 0) & (streams.text_slots < first)).sum(1).min())
    return rows if not seen and rows < streams.text_slots.shape[1] else 0


def _shared(mask: Tensor | None) -> Tensor | None:
    """One offset's mask for all of them where they are equal: no text inside a picture, and all offsets have as many tokens."""
    return mask[:, :1] if mask is not None and mask.shape[1] > 1 and bool((mask == mask[:, :1]).all()) else mask


def earlier_text(images: Sequence[Image], streams: Streams, slots: Tensor) -> Tensor:
    """`[images, keys]`: text keys (slots `[batch, keys]`) that come before each image."""
    first = streams.visual_slots[[image.sample for image in images], [image.start for image in images]]
    keys = slots[[image.sample for image in images]]
    return (keys >= 0) & (keys < first[:, None])


@dataclass(frozen=True)
class Strips:
    """A grid cut into strips of a few rows and columns: the queries of each, the keys that their windows reach, and who sees whom.

    Tokens are numbered within the image. `queries` `[strips, rows]`, `keys` `[strips, reach]`, `mask` `[strips, rows, reach]`. The
    last strips are shifted inwards to keep the size; `places` `[tokens]` tells which of the strips' rows is each token's.
    """

    queries: Tensor
    keys: Tensor
    mask: Tensor
    places: Tensor


@cache
@torch.inference_mode(False)  # what is kept serves training too
def strips(grid: Grid, window: int, locality: str) -> Strips:
    """The strips of one image or video. Keys are the rectangle in reach, clamped into the grid, of all frames."""
    half, below = window // 2, 0 if locality == "causal" and grid.frames == 1 else window // 2
    height, width = min(STRIP_ROWS, grid.rows), ceil(grid.columns / ceil(grid.columns / STRIP_COLUMNS))
    tall, wide = min(grid.rows, height + half + below), min(grid.columns, width + 2 * half)
    area = grid.rows * grid.columns
    queries, keys, masks = [], [], []
    for frame, top, left in product(range(grid.frames), range(0, grid.rows, height), range(0, grid.columns, width)):
        top, left = min(top, grid.rows - height), min(left, grid.columns - width)
        query = frame * area + _rectangle(grid, top, left, height, width)
        block = _rectangle(grid, min(max(0, top - half), grid.rows - tall), min(max(0, left - half), grid.columns - wide), tall, wide)
        key = torch.cat([other * area + block for other in range(grid.frames)])
        queries.append(query)
        keys.append(key)
        masks.append(sees(query[:, None], key[None], grid, window, locality))
    places = torch.cat(queries).argsort(stable=True)[_first_of_each(torch.cat(queries))]
    return Strips(torch.stack(queries), torch.stack(keys), torch.stack(masks), places)


def _rectangle(grid: Grid, top: int, left: int, height: int, width: int) -> Tensor:
    """Numbers of the tokens of a part of the first frame, row by row."""
    return ((top + torch.arange(height))[:, None] * grid.columns + left + torch.arange(width)).flatten()


def _first_of_each(numbers: Tensor) -> Tensor:
    """Where each number first stands in the sorted list."""
    ordered = numbers.sort().values
    return torch.cat([torch.tensor([True]), ordered[1:] != ordered[:-1]])


def sees(query: Tensor, key: Tensor, grid: Grid, window: int, locality: str) -> Tensor:
    """Whether a visual query sees a visual key of the same image: in the window, not in a later frame, causal or symmetric."""
    area = grid.rows * grid.columns
    frames = query // area - key // area
    rows = (query % area // grid.columns - key % area // grid.columns).abs()
    columns = (query % grid.columns - key % grid.columns).abs()
    near = (rows <= window // 2) & (columns <= window // 2)
    same = (frames == 0) & ((key <= query) if locality == "causal" else torch.ones_like(near))
    return near & ((frames > 0) | same)


@dataclass(frozen=True)
class WindowRule:
    """What visual queries see of their own image."""

    window: int
    locality: str

    def sees(self, query: Tensor, key: Tensor, grid: Grid) -> Tensor:
        """Whether a token of a grid sees another one, both by their numbers."""
        return sees(query, key, grid, self.window, self.locality)


def windowed_attention(
    query: Tensor, keys: Tensor, values: Tensor, text_slots: Tensor, streams: Streams, rule: WindowRule, scale: float
) -> Tensor:
    """Visual attention under a window, `[batch, heads, visual rows, head_dim]`.

    Keys and values are `[batch * visual rows; batch * text rows, heads, head_dim]`, text being all that there is so far, at
    `text_slots`. In strips; on a GPU, where all images have one grid, by FlexAttention where this was measured to be faster.
    """
    given = (query, keys, values, text_slots, streams, rule, scale)
    if not may_be_flex(query, streams):
        return in_strips(*given)
    ways = {"strips": partial(in_strips, *given), "FlexAttention": partial(in_flex, *given)}
    (grid,), (batch, heads) = streams.grids, query.shape[:2]
    what = f"visual attention, window {rule.window} of {grid} ({heads} heads, batch {batch}, {str(query.dtype).removeprefix('torch.')})"
    return ways[fastest(what, lambda: ways, query.device)]()


def may_be_flex(query: Tensor, streams: Streams) -> bool:
    """Whether there is a choice of kernels."""
    return query.is_cuda and len(streams.grids) == 1


def in_flex(query: Tensor, keys: Tensor, values: Tensor, text_slots: Tensor, streams: Streams, rule: WindowRule, scale: float) -> Tensor:
    """The window as a block mask, which all layers of one rule share."""
    if (rule, text_slots.shape[1]) not in streams.block_masks:
        mask = block_mask(text_slots, streams, rule.sees)
        streams.block_masks[rule, text_slots.shape[1]] = mask
    mask = streams.block_masks[rule, text_slots.shape[1]]
    key, value = (_text_first(rows, len(query), query.shape[2]) for rows in (keys, values))
    seen: Tensor = compiled()(query, key, value, block_mask=mask, scale=scale)
    return seen


def _text_first(rows: Tensor, batch: int, visual: int) -> Tensor:
    """Flat visual and text rows as `[batch, heads, text and visual rows, head_dim]`."""
    both = rows.tensor_split([batch * visual])
    return torch.cat([part.unflatten(0, (batch, len(part) // batch)) for part in reversed(both)], 1).transpose(1, 2)


def in_strips(query: Tensor, keys: Tensor, values: Tensor, text_slots: Tensor, streams: Streams, rule: WindowRule, scale: float) -> Tensor:
    """Strips of every image, each with the text before it.

    All images of one grid go together: queries `[images * strips, heads, rows, head_dim]` against the keys of text and reach.
    """
    (batch, heads, rows, size), text, device = query.shape, text_slots.shape[1], query.device
    queries = query.transpose(1, 2).flatten(0, 1)
    out = query.new_zeros(batch * rows, heads, size)
    for grid, images in streams.grids.items():
        cut = strips(grid, rule.window, rule.locality)
        sample = torch.tensor([image.sample for image in images], device=device)[:, None, None]
        first = sample * rows + torch.tensor([image.start for image in images], device=device)[:, None, None]
        texts = (batch * rows + sample * text + torch.arange(text, device=device)).expand(-1, len(cut.keys), -1)
        before = earlier_text(images, streams, text_slots)[:, None, None].expand(-1, *cut.queries.shape, -1)
        mask = torch.cat([before, cut.mask.to(device).expand(len(images), -1, -1, -1)], -1).flatten(0, 1)
        asking, reach = first + cut.queries.to(device), torch.cat([texts, first + cut.keys.to(device)], -1)
        few = max(1, LAID_OUT_BYTES // (mask.shape[-1] * heads * size * keys.itemsize))
        together = few if in_place() and device.type == "cpu" else len(mask)
        parts = zip(asking.flatten(0, 1).split(together), reach.flatten(0, 1).split(together), mask.split(together), strict=True)
        seen = [
            attend(_blocks(queries, asks), _blocks(keys, reaches), _blocks(values, reaches), shown[:, None], scale).transpose(1, 2)
            for asks, reaches, shown in parts
        ]
        place = torch.arange(len(images), device=device)[:, None] * cut.queries.numel() + cut.places.to(device)
        token = first[:, :, 0] + torch.arange(grid.tokens, device=device)
        out.index_copy_(0, token.flatten(), torch.cat(seen).flatten(0, 1).index_select(0, place.flatten()).to(out.dtype))
    return out.view(batch, rows, heads, size).transpose(1, 2)


def _blocks(rows: Tensor, index: Tensor) -> Tensor:
    """`[strips, heads, rows, head_dim]` of flat rows at `index` `[strips, rows]`."""
    return rows.index_select(0, index.flatten()).view(*index.shape, *rows.shape[1:]).transpose(1, 2)


def full_attention(query: Tensor, key: Tensor, value: Tensor, slots: Tensor, key_slots: Tensor, text_rows: int, scale: float) -> Tensor:
    """Visual attention without a window: every earlier key, other images included. Slots `[batch, rows]`; padding sees all.

    Keys stand as in the cache: earlier calls, this call's visual rows in the queries' order, its `text_rows`. A block of queries is
    not shown the visual rows after it.
    """
    visual, count = query.shape[2], key.shape[2]
    queries = slots.where(slots >= 0, torch.iinfo(slots.dtype).max)[:, None, :, None]
    seen = []
    for first in range(0, visual, QUERY_BLOCK):
        last = min(first + QUERY_BLOCK, visual)
        before, text = slice(0, count - text_rows - visual + last), slice(count - text_rows, count)
        shown = torch.cat([key_slots[:, before], key_slots[:, text]], 1)[:, None, None]
        keys, values = (torch.cat([tensor[:, :, before], tensor[:, :, text]], 2) for tensor in (key, value))
        seen.append(attend(query[:, :, first:last], keys, values, (shown <= queries[:, :, first:last]) & (shown >= 0), scale))
    return torch.cat(seen, 2)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, slots: Tensor, key_slots: Tensor, scale: float) -> Tensor:
    """The same for one call without padding: the whole sequence in its order, under the causal flag of a kernel that skips half.

    Rows of text are queries of zeros, which nobody reads.
    """
    sample = torch.arange(key.shape[0], device=key.device)[:, None]
    order = key_slots.argsort(1)
    queries = query.new_zeros(len(key), key.shape[2], query.shape[1], query.shape[3])
    queries[sample, slots] = query.transpose(1, 2)
    keys, values = (tensor[sample, :, order].transpose(1, 2) for tensor in (key, value))
    return attend(queries.transpose(1, 2), keys, values, None, scale, causal=True)[sample, :, slots].transpose(1, 2)
