"""What Qwen2-VL, Qwen2.5-VL and Qwen3-VL share: positions of time, row and column, from which the grids of pictures and videos are read."""

from typing import Any

import torch
from torch import Tensor

from .call import Rotary
from .switch import is_off
from .token_split import Image, images_of_runs
from .visual_places import visual_places


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
    language_model: Any

    def forward(self, input_ids: Tensor | None = None, visual_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """`visual_mask` `[batch, length]` marks the visual tokens of `inputs_embeds` that have their features in place."""
        following: Any = super()
        if is_off(self.language_model):
            return following.forward(input_ids, **kwargs)
        placeholders = (self.config.image_token_id, self.config.video_token_id)
        visual = visual_places(self, placeholders, input_ids, visual_mask, kwargs)
        return following.forward(input_ids, visual_mask=visual, images=self.images, **kwargs)

    def images(self, visual: Tensor, positions: Tensor | None, rows: Tensor, videos: Tensor | None = None) -> tuple[Image, ...]:
        """The images and videos of a call: inside `generate()` only the positions tell their grids."""
        if positions is None or positions.dim() != 3:
            raise ValueError("Pictures need multimodal positions: pass mm_token_type_ids and image_grid_thw.")
        return images_of_runs(visual, positions)
