"""Attention of visual tokens that look around themselves: a window of their grid, computed in strips.

Nothing is computed to be masked away but the corners of strips and the padding of ragged batches.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from math import ceil

import torch
from torch import Tensor

from .attention import LAID_OUT_BYTES, attend
from .attention_flex import block_mask, compiled
from .autotune import fastest
from .chunking import in_place
from .plan import Grid
from .token_split import Image, TokenSplit

STRIP_ROWS, STRIP_COLUMNS = 8, 24
"""Grid rows and, at most, columns whose queries are computed together under a window: as many as a kernel takes for a block."""


def earlier_text(images: Sequence[Image], split: TokenSplit, slots: Tensor) -> Tensor:
    """`[images, keys]`: text keys (slots `[batch, keys]`) that come before each image."""
    first = split.visual_slots[[image.sample for image in images], [image.start for image in images]]
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


def prepare_windows(split: TokenSplit, windows: Iterable[int | None], locality: str) -> None:
    """Cut the grids of a call into strips now, since data decides how: no compiler can follow that."""
    for window in set(windows) - {None}:
        assert window is not None
        rule = WindowRule(window, locality)
        split.strips |= {(grid, rule): strips(grid, window, locality) for grid in split.grids}


def windowed_attention(
    query: Tensor, keys: Tensor, values: Tensor, text_slots: Tensor, split: TokenSplit, rule: WindowRule, scale: float
) -> Tensor:
    """Visual attention under a window, `[batch, heads, visual rows, head_dim]`.

    Keys and values are `[batch * visual rows; batch * text rows, heads, head_dim]`, text being all that there is so far, at
    `text_slots`. In strips; on a GPU, where all images have one grid, by FlexAttention where this was measured to be faster.
    """
    given = (query, keys, values, text_slots, split, rule, scale)
    if not may_be_flex(query, split):
        return in_strips(*given)
    ways = {"strips": partial(in_strips, *given), "FlexAttention": partial(in_flex, *given)}
    (grid,), (batch, heads) = split.grids, query.shape[:2]
    what = f"visual attention, window {rule.window} of {grid} ({heads} heads, batch {batch}, {str(query.dtype).removeprefix('torch.')})"
    return ways[fastest(what, lambda: ways, query.device)]()


def may_be_flex(query: Tensor, split: TokenSplit) -> bool:
    """Whether there is a choice of kernels."""
    return query.is_cuda and len(split.grids) == 1


def in_flex(query: Tensor, keys: Tensor, values: Tensor, text_slots: Tensor, split: TokenSplit, rule: WindowRule, scale: float) -> Tensor:
    """The window as a block mask, which all layers of one rule share."""
    if (rule, text_slots.shape[1]) not in split.block_masks:
        mask = block_mask(text_slots, split, rule.sees)
        split.block_masks[rule, text_slots.shape[1]] = mask
    mask = split.block_masks[rule, text_slots.shape[1]]
    key, value = (_text_first(rows, len(query), query.shape[2]) for rows in (keys, values))
    seen: Tensor = compiled()(query, key, value, block_mask=mask, scale=scale)
    return seen


def _text_first(rows: Tensor, batch: int, visual: int) -> Tensor:
    """Flat visual and text rows as `[batch, heads, text and visual rows, head_dim]`."""
    both = rows.tensor_split([batch * visual])
    return torch.cat([part.unflatten(0, (batch, len(part) // batch)) for part in reversed(both)], 1).transpose(1, 2)


def in_strips(query: Tensor, keys: Tensor, values: Tensor, text_slots: Tensor, split: TokenSplit, rule: WindowRule, scale: float) -> Tensor:
    """Strips of every image, each with the text before it.

    All images of one grid go together: queries `[images * strips, heads, rows, head_dim]` against the keys of text and reach.
    """
    (batch, heads, rows, size), text, device = query.shape, text_slots.shape[1], query.device
    queries = query.transpose(1, 2).flatten(0, 1)
    out = query.new_zeros(batch * rows, heads, size)
    for grid, images in split.grids.items():
        cut = split.strips[grid, rule] if (grid, rule) in split.strips else strips(grid, rule.window, rule.locality)
        sample = torch.tensor([image.sample for image in images], device=device)[:, None, None]
        first = sample * rows + torch.tensor([image.start for image in images], device=device)[:, None, None]
        texts = (batch * rows + sample * text + torch.arange(text, device=device)).expand(-1, len(cut.keys), -1)
        before = earlier_text(images, split, text_slots)[:, None, None].expand(-1, *cut.queries.shape, -1)
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
