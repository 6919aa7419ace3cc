"""Which tokens of a call are visual, and how that reaches the language model past the vision tower."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from .outputs import refuse_other_outputs

PIXELS = ("pixel_values", "pixel_values_videos")
FOR_THE_LANGUAGE_MODEL = ("visual_mask", "images")


def visual_places(
    model: Any, placeholders: Sequence[int], input_ids: Tensor | None, visual_mask: Tensor | None, given: dict[str, Any]
) -> Tensor | None:
    """A mask `[batch, length]` of the visual tokens of a call of `model`, None where it has none.

    `visual_mask` itself; else the `placeholders` in `input_ids`, or their embeddings in `inputs_embeds`, where pictures are `given`. A
    placeholder without a picture, such as one that the model itself generated, is an ordinary token. Raises ValueError for a mask
    of another shape, and for `inputs_embeds` alone, which do not tell.
    """
    refuse_other_outputs(given, model.config)
    embeds = given.get("inputs_embeds")
    if visual_mask is not None:
        shape = tuple((embeds if input_ids is None else input_ids).shape[:2])  # type: ignore[union-attr]
        if tuple(visual_mask.shape) != shape:
            raise ValueError(f"visual_mask has the shape {tuple(visual_mask.shape)}, the tokens have {shape}.")
        return visual_mask.bool()
    pictures = any(given.get(name) is not None for name in PIXELS) or bool(given.get("mm_encoder_outputs"))
    if input_ids is not None:
        return torch.isin(input_ids, input_ids.new_tensor(placeholders)) if pictures else None
    if embeds is None:
        return None
    if not pictures:
        raise ValueError(
            "inputs_embeds do not tell which tokens are visual: pass visual_mask [batch, length] too, True for visual tokens "
            "(all False for text alone), or input_ids."
        )
    marks = model.get_input_embeddings()(torch.tensor(placeholders, device=embeds.device))
    marked: Tensor = (embeds[:, :, None] == marks).all(-1).any(-1)
    return marked


def for_the_tower(features: Callable[..., Any]) -> Callable[..., Any]:
    """A model's `get_image_features` (or videos'), which is not given what is meant for the language model, nor no pictures at all.

    `generate()` reads the names of its parameters, which stay. Raises ValueError where there are no pixels.
    """

    @wraps(features)
    def only(self: Any, *arguments: Any, **keywords: Any) -> Any:
        for pixels in (*arguments[:1], *(keywords.get(name) for name in PIXELS)):
            if pixels is not None and not pixels.numel():
                raise ValueError(f"The pixels hold no picture: their shape is {tuple(pixels.shape)}. Leave them out where there is none.")
        return features(self, *arguments, **{name: value for name, value in keywords.items() if name not in FOR_THE_LANGUAGE_MODEL})

    return only
