"""What Qwen2-VL and Qwen2.5-VL share: positions of time, row and column, from which the grids of pictures and videos are read."""

from typing import Any

import torch
from torch import Tensor

from .text_model import Rotary
from .token_split import Image, images_of_runs

PIXELS = ("pixel_values", "pixel_values_videos")


class MultimodalRotary:
    """Mixed into a language model."""

    rotary_emb: Any

    def rotary(self, rows: Tensor, positions: Tensor | None, seen: int) -> Rotary:
        """Positions are `[batch, length]`, `[3, batch, length]` (t, h, w) or `[4, batch, length]` (text, t, h, w)."""
        if positions is None:
            positions = torch.arange(seen, seen + rows.shape[1], device=rows.device)[None]
        positions = positions[None].expand(3, -1, -1) if positions.dim() == 2 else positions[-3:]
        cosine, sine = self.rotary_emb(rows, positions)
        return cosine, sine


class AnyGrid:
    """Mixed into a model without its head, whose class comes after it: marks the visual tokens for the language model."""

    config: Any

    def forward(self, input_ids: Tensor | None = None, **kwargs: Any) -> Any:
        pictures = any(kwargs.get(name) is not None for name in PIXELS) or bool(kwargs.get("mm_encoder_outputs"))
        if pictures and input_ids is None:
            raise ValueError("Pictures need input_ids: inputs_embeds alone do not tell which tokens are visual.")
        visual = None
        if pictures and input_ids is not None:
            visual = (input_ids == self.config.image_token_id) | (input_ids == self.config.video_token_id)
        following: Any = super()
        return following.forward(input_ids, visual_mask=visual, images=self.images, **kwargs)

    def images(self, visual: Tensor, positions: Tensor | None) -> tuple[Image, ...]:
        """The images and videos of a call: inside `generate()` only the positions tell their grids."""
        if positions is None or positions.dim() != 3:
            raise ValueError("Pictures need multimodal positions: pass mm_token_type_ids and image_grid_thw.")
        return images_of_runs(visual, positions)

    # What is meant for the language model does not reach the vision tower. `generate()` reads the parameters' names.
    def get_image_features(self, pixel_values: Tensor, image_grid_thw: Tensor | None = None, **kwargs: Any) -> Any:
        following: Any = super()
        return following.get_image_features(pixel_values, image_grid_thw, **_for_the_tower(kwargs))

    def get_video_features(self, pixel_values_videos: Tensor, video_grid_thw: Tensor | None = None, **kwargs: Any) -> Any:
        following: Any = super()
        return following.get_video_features(pixel_values_videos, video_grid_thw, **_for_the_tower(kwargs))


def _for_the_tower(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name not in ("visual_mask", "images")}
