"""What SmolVLM and Idefics3 share: tiles of one grid each, whose patches are shuffled into fewer tokens; their modules' names."""

from typing import Any

from torch import Tensor

from .plan import Grid
from .switch import is_off
from .token_split import Image, images_of_one_grid
from .visual_places import visual_places


class ShuffledTiles:
    """Mixed into a model without its head, whose class comes after it: marks the visual tokens for the language model."""

    config: Any
    text_model: Any

    def forward(self, input_ids: Tensor | None = None, visual_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """`visual_mask` `[batch, length]` marks the visual tokens of `inputs_embeds` that have their features in place."""
        following: Any = super()
        if is_off(self.text_model):
            return following.forward(input_ids, **kwargs)
        visual = visual_places(self, (self.config.image_token_id,), input_ids, visual_mask, kwargs)
        return following.forward(input_ids, visual_mask=visual, images=self.images, **kwargs)

    def images(self, visual: Tensor, positions: Tensor | None, rows: Tensor, videos: Tensor | None = None) -> tuple[Image, ...]:
        """The tiles of a call, and whole pictures and frames: each is an image of its own, as text stands between them."""
        vision = self.config.vision_config
        side = vision.image_size // vision.patch_size // self.config.scale_factor
        return images_of_one_grid(visual.sum(1).tolist(), Grid(side, side))
