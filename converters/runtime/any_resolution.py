"""What LLaVA-NeXT and LLaVA-OneVision share: pictures of any resolution, whose grids are read from the ends of their rows.

A picture is the whole of it in one tile, then the grid of all its tiles without their padding, row by row, with a learned vector at the
end of every row. That vector is a visual token: a large picture is a grid with one column more. `generate()` keeps sizes of pictures
from the language model, but no other token equals that vector.
"""

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from .plan import Grid
from .switch import is_off
from .token_split import Image
from .visual_places import visual_places

PRECISION = 2**-6
"""More than bfloat16 and float16 change a number by, and no two rows of features are as near in all of their numbers."""


class AnyResolution:
    """Mixed into a model without its head, whose class comes after it: marks the visual tokens for the language model."""

    config: Any
    language_model: Any
    image_newline: Tensor

    def forward(self, input_ids: Tensor | None = None, visual_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """`visual_mask` `[batch, length]` marks the visual tokens of `inputs_embeds` that have their features in place."""
        following: Any = super()
        if is_off(self.language_model):
            return following.forward(input_ids, **kwargs)
        video_token = getattr(self.config, "video_token_id", None)
        placeholders = [self.config.image_token_id, *([] if video_token is None else [video_token])]
        visual = visual_places(self, placeholders, input_ids, visual_mask, kwargs)
        videos = None if input_ids is None or video_token is None else input_ids == video_token
        return following.forward(input_ids, visual_mask=visual, images=partial(self.images, videos=videos), **kwargs)

    def images(self, visual: Tensor, positions: Tensor | None, rows: Tensor, videos: Tensor | None = None) -> tuple[Image, ...]:
        """The images of a call, by the rows `[batch, length, hidden]` that enter the language model; `videos` marks tokens of videos."""
        vision = self.config.vision_config
        side = vision.image_size // vision.patch_size
        tile, frame = Grid(side, side), Grid((side + 1) // 2, (side + 1) // 2)
        untold = videos is None and getattr(self.config, "video_token_id", None) is not None
        images = []
        for sample, mask in enumerate(visual):
            features = rows[sample, mask]
            ends = is_end(features, self.image_newline).tolist()
            kinds = [False] * len(ends) if videos is None else videos[sample, mask].tolist()
            place = 0
            for is_video, run in groupby(zip(kinds, ends, strict=True), key=lambda token: token[0]):
                found = [end for _, end in run]
                for grid in grids_of_videos(found, frame) if is_video else grids_of_pictures(found, tile):
                    if untold and grid.rows == 1 < grid.columns:
                        raise ValueError("These visual tokens may be a video's: pass input_ids, which tell videos from pictures.")
                    images.append(Image(sample, place, grid))
                    place += grid.tokens
        return tuple(images)


def is_end(rows: Tensor, newline: Tensor) -> Tensor:
    """Which rows are the learned end of a row, but for what a lower precision on the way (autocast) has left of it."""
    return torch.isclose(rows.float(), newline.to(rows.device).float(), rtol=PRECISION, atol=PRECISION**3).all(-1)


def grids_of_pictures(ends: Sequence[bool], tile: Grid) -> list[Grid]:
    """Of visual tokens that end a row or do not: the grids of the pictures that they make up. Raises ValueError where one is not whole.

    After its tile a picture has rows of one length, each with an end; or one end alone, where a sample has several pictures; or nothing, if
    it is so narrow that not a row is left.
    """
    grids: list[Grid] = []
    place = 0
    while place < len(ends):
        if len(ends) < place + tile.tokens or any(ends[place : place + tile.tokens]):
            raise ValueError(
                f"{len(ends)} visual tokens are no whole pictures: each begins with one of {tile}. "
                "Pass whole pictures: a prompt cannot be cut inside one (no prefill_chunk_size)."
            )
        grids.append(tile)
        place += tile.tokens
        columns = _next_end(ends, place) + 1
        if columns > tile.tokens:  # the next picture's tile
            continue
        rows = 0
        while place + columns <= len(ends) and ends[place + columns - 1] and not any(ends[place : place + columns - 1]):
            rows, place = rows + 1, place + columns
        grids.append(Grid(rows, columns))
    return grids


def grids_of_videos(ends: Sequence[bool], frame: Grid) -> list[Grid]:
    """The same of videos: frames of one grid, and one end after the last. Raises ValueError where one is not whole."""
    grids: list[Grid] = []
    place = 0
    while place < len(ends):
        count = _next_end(ends, place)
        frames, rest = divmod(count, frame.tokens)
        if rest or not frames or place + count == len(ends):
            raise ValueError(
                f"{len(ends)} visual tokens are no whole videos of frames of {frame}. "
                "Pass whole videos: a prompt cannot be cut inside one (no prefill_chunk_size)."
            )
        grids += [Grid(frame.rows, frame.columns, frames), Grid(1, 1)]
        place += count + 1
    return grids


def _next_end(ends: Sequence[bool], place: int) -> int:
    """How many tokens from `place` on end no row."""
    return next((number for number, end in enumerate(ends[place:]) if end), len(ends) - place)
