"""Text and visual tokens of one forward call, apart: where each row comes from, and where each visual token stands.

A *slot* is a token's place in the padded sequence, counted from the start of the cache; causal order is slot order. Padding has
slot -1. Positions (RoPE) are never renumbered and are not kept here.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .plan import Grid
from .stride import shown_tokens


@dataclass(frozen=True)
class Image:
    """One image, tile or video: its sample in the batch and its first row in that sample's visual rows."""

    sample: int
    start: int
    grid: Grid


@dataclass
class TokenSplit:
    """Rows of a call that has visual tokens. `*_index` `[batch, rows]` points into the call, `*_slots` is -1 where there is none."""

    text_index: Tensor
    text_slots: Tensor
    visual_index: Tensor
    visual_slots: Tensor
    images: tuple[Image, ...]
    _shown: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    block_masks: dict[Any, Any] = field(default_factory=dict)
    strips: dict[Any, Any] = field(default_factory=dict)

    @property
    def grids(self) -> dict[Grid, list[Image]]:
        """Images by grid: those of one shape are computed together."""
        groups: dict[Grid, list[Image]] = defaultdict(list)
        for image in self.images:
            groups[image.grid].append(image)
        return groups

    def shown(self, stride: int) -> tuple[Tensor, Tensor]:
        """Visual rows and slots that a stride shows, `[batch, most rows]`; absent rows point to 0 and have slot -1."""
        if stride not in self._shown:
            mask = torch.zeros_like(self.visual_index, dtype=torch.bool)
            for image in self.images:
                mask[image.sample, image.start + torch.tensor(shown_tokens(image.grid, stride), device=mask.device)] = True
            rows, places = _compact(mask, 0)
            self._shown[stride] = rows, self.visual_slots.gather(1, rows).where(places >= 0, -1)
        return self._shown[stride]


def split_tokens(visual: Tensor, valid: Tensor | None, seen: int, images: tuple[Image, ...]) -> TokenSplit:
    """Split a call `[batch, length]` into text and visual rows. `visual` and `valid` are masks, `seen` the tokens cached before."""
    visual = visual if valid is None else visual & valid
    text = ~visual if valid is None else ~visual & valid
    text_index, text_slots = _compact(text, seen)
    visual_index, visual_slots = _compact(visual, seen)
    return TokenSplit(text_index, text_slots, visual_index, visual_slots, images)


def _compact(mask: Tensor, seen: int) -> tuple[Tensor, Tensor]:
    """Indices of the True places of each row, first ones first, and their slots, -1 beyond a row's count."""
    counts = mask.sum(1)
    width = int(counts.max())
    index = (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
    present = torch.arange(width, device=mask.device) < counts[:, None]
    return index.where(present, 0), (index + seen).where(present, -1)


def images_of_one_grid(counts: Sequence[int], grid: Grid) -> tuple[Image, ...]:
    """Images of a batch whose images (or tiles) all have the same grid. Raises ValueError when a count is no multiple of it."""
    for count in counts:
        if count % grid.tokens:
            raise ValueError(
                f"A sample has {count} visual tokens in this call, which is no multiple of the {grid.tokens} of an image. "
                "Pass whole images: a prompt cannot be cut inside one (no prefill_chunk_size)."
            )
    return tuple(Image(sample, start, grid) for sample, count in enumerate(counts) for start in range(0, count, grid.tokens))


def flat_index(index: Tensor, length: int) -> Tensor:
    """`[batch, rows]` of samples of `length` rows each, as flat numbers."""
    first = torch.arange(0, len(index) * length, length, device=index.device)
    return (index + first[:, None]).flatten()


def rows_of(index: Tensor, values: Tensor) -> Tensor:
    """Rows `[batch, rows, width]` of `values` `[batch or 1, length, width]` at `index` `[batch, rows]`."""
    flat = flat_index(index, values.shape[1]) if values.shape[0] > 1 else index.flatten()
    return values.flatten(0, 1).index_select(0, flat).view(*index.shape, -1)


def images_of_runs(visual: Tensor, positions: Tensor) -> tuple[Image, ...]:
    """Images and videos of a batch whose grids differ, from its multimodal positions `[3 or 4, batch, length]` (t, h, w last).

    Every unbroken run of visual tokens is one image or video; rows and columns are what its positions span.
    """
    images = []
    for sample, mask in enumerate(visual.cpu()):
        places = mask.nonzero()[:, 0]
        breaks = (places.diff() != 1).nonzero()[:, 0] + 1
        start = 0
        for run in places.tensor_split(breaks.tolist()):
            if not len(run):
                continue
            where = positions[-2:, sample if positions.shape[1] > 1 else 0, run.to(positions.device)]
            rows, columns = (where.amax(1) - where.amin(1) + 1).tolist()
            frames, rest = divmod(len(run), rows * columns)
            if rest:
                raise ValueError(
                    f"A run of {len(run)} visual tokens does not fill a grid of {rows} x {columns}. "
                    "Pass whole images: a prompt cannot be cut inside one (no prefill_chunk_size)."
                )
            images.append(Image(sample, start, Grid(rows, columns, frames)))
            start += len(run)
    return tuple(images)
