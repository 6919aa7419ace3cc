"""A batch of prompts as an exported decoder takes it: every sample with the same number of images, in rows of one length."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import YopoError
from ...runtime.plan import Grid

Array = Any


@dataclass(frozen=True)
class Prompts:
    """A left-padded batch: `ids` and `mask` `[batch, length]`, `positions` `[batch, length]` or `[3, batch, length]`.

    `starts` `[batch, images]` are the places of the images, all of one `grid` (None: there are none) and so many `tokens`. Those that a
    sample lacks stand first, in its padding; `present` tells which do not.
    """

    ids: Array
    mask: Array
    positions: Array
    starts: Array
    present: Array
    grid: Grid | None
    tokens: int


def arrange(ids: Array, mask: Array, visual: Array, grid: Grid | None, multimodal: bool, tokens: int | None = None) -> Prompts:
    """Prompts of a padded batch `[batch, length]`; `visual` marks image tokens, of which an image has `tokens` (default: the grid's).

    Raises YopoError if an image is not whole.
    """
    samples = [ids[sample][mask[sample].astype(bool)] for sample in range(len(ids))]
    marks = [visual[sample][mask[sample].astype(bool)] for sample in range(len(ids))]
    tokens = 0 if grid is None else tokens or grid.tokens
    starts = [_starts(mark, tokens) for mark in marks]
    images = max(map(len, starts))
    length = max(len(sample) + (images - len(sample_starts)) * tokens for sample, sample_starts in zip(samples, starts, strict=True))
    lead = [length - len(sample) for sample in samples]
    kinds = [_positions(mark, grid, multimodal) for mark in marks]
    positions = np.stack([np.pad(sample_starts, ((0, 0), (left, 0))) for sample_starts, left in zip(kinds, lead, strict=True)], 1)
    absent = [[image * tokens for image in range(images - len(sample_starts))] for sample_starts in starts]
    return Prompts(
        np.stack([np.pad(sample, (left, 0)) for sample, left in zip(samples, lead, strict=True)]),
        np.stack([np.arange(length) >= left for left in lead]).astype(np.int64),
        positions if multimodal else positions[0],
        np.array(
            [[*none, *(left + start for start in sample_starts)] for none, sample_starts, left in zip(absent, starts, lead, strict=True)],
            np.int64,
        ),
        np.array([[image >= images - len(sample_starts) for image in range(images)] for sample_starts in starts], bool),
        grid if images else None,
        tokens,
    )


def _starts(visual: Array, tokens: int) -> list[int]:
    """Where each image of a sample begins: images that stand side by side, such as tiles, are cut apart."""
    places = np.flatnonzero(visual)
    if not len(places):
        return []
    firsts: list[int] = places[:: max(tokens, 1)].tolist()
    if tokens == 0 or len(places) % tokens or any(not visual[first : first + tokens].all() for first in firsts):
        raise YopoError(
            f"A prompt has {len(places)} image tokens, which are no whole images of {tokens}.", "Export the grid of these pictures: --grid."
        )
    return firsts


def _positions(visual: Array, grid: Grid | None, multimodal: bool) -> Array:
    """Positions of one sample: `[1, length]` in order, or `[3, length]` of time, row and column for multimodal RoPE.

    A picture's positions start after the text before it, text goes on after the largest of them (Qwen2-VL, arXiv 2409.12191, 2.1).
    """
    if not multimodal or grid is None:
        return np.arange(len(visual))[None].repeat(3 if multimodal else 1, 0)
    where = np.stack(np.unravel_index(np.arange(grid.tokens), (grid.frames, grid.rows, grid.columns)))
    found, following, place = np.zeros((3, len(visual)), np.int64), 0, 0
    while place < len(visual):
        step = grid.tokens if visual[place] else 1
        found[:, place : place + step] = following + (where if visual[place] else 0)
        following, place = int(found[:, place : place + step].max()) + 1, place + step
    return found


def grid_by_tokens(visual: Array, tokens: Mapping[Grid, int]) -> Grid:
    """The grid of a batch's pictures, of those exported, by how many tokens each sample has. Raises YopoError where that does not tell.

    Of as many tiles no two pictures of a model have as many tokens; of other numbers of tiles the tower's graph takes none.
    """
    counts = visual.sum(1)
    found = [grid for grid, count in tokens.items() if not (counts % count).any()]
    if len(found) != 1:
        exported = ", ".join(map(str, tokens))
        raise YopoError(
            f"Samples of {', '.join(map(str, counts.tolist()))} image tokens are no pictures of one exported grid: {exported}.",
            "Ask about one size at a time, or export its grid too: --grid.",
        )
    return found[0]


def grid_of(sizes: Array | None, merge: int, grids: Sequence[Grid]) -> Grid:
    """The grid of a batch's pictures: the only one that was exported, or by their sizes in patches `[images, 3]`. Raises YopoError."""
    if sizes is None:
        if len(grids) != 1:
            raise YopoError(f"{len(grids)} grids were exported and the pictures' is not told.", "Pass image_grid_thw.")
        return grids[0]
    found = {Grid(int(rows) // merge, int(columns) // merge, int(frames)) for frames, rows, columns in sizes}
    if len(found) > 1:
        raise YopoError(
            f"Pictures of {len(found)} grids in one batch: {', '.join(map(str, sorted(found)))}.", "Ask about one size at a time."
        )
    grid = found.pop()
    if grid not in grids:
        exported = ", ".join(map(str, grids))
        raise YopoError(f"The grid {grid} was not exported; there is {exported}.", f"Export it too: --grid {grid}.")
    return grid
