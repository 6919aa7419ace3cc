"""What a method hands to the language model of each picture: all of its visual tokens, or fewer where it works before it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import YopoError
from ..families.llava import LLAVA
from ..families.llava_next import LLAVA_NEXT
from .schedule import Schedule
from .selection import at_random, attention_of, contextual, dominant, most_diverse, pooled

SIZES = ("image_sizes",)
"""What a model of pictures of any resolution wants to know of them."""
VISIONZIP_CONTEXTUAL = 10 / 64
"""Of VisionZip's tokens, those that are merged ones: 54 dominant ones, the class token among them, and 10."""


@dataclass(frozen=True)
class Tower:
    """What VisionZip takes from the vision tower's layer whose output the projector reads, class token first.

    `hidden` `[pictures, 1 + tokens, width]` is its output, `attention` `[pictures, heads, tokens]` what its class token pays,
    `keys` `[pictures, 1 + tokens, head_dim]` its keys averaged over heads.
    """

    hidden: Tensor
    attention: Tensor
    keys: Tensor


def check_model(config: Any) -> None:
    """Raise YopoError for a model that token pruners are not written for."""
    if config.model_type not in (LLAVA.model_type, LLAVA_NEXT.model_type):
        raise YopoError(f"Token pruners run over {LLAVA.name} and {LLAVA_NEXT.name} alone.", "Leave --against out.")


def pictures(model: Any, inputs: Mapping[str, Tensor], schedule: Schedule, seed: int = 0) -> Tensor:
    """Visual tokens that enter the language model, `[pictures, tokens, hidden]`, of a processor's `inputs`. `model` is transformers' own.

    Pictures have the grids of the schedule, all the same.
    """
    pixels, sizes = inputs["pixel_values"].to(model.dtype), {name: inputs[name] for name in SIZES if name in inputs}
    if schedule.method == "visionzip":
        return merged(model, look(model, pixels), schedule)
    features = torch.stack(list(model.model.get_image_features(pixels, return_dict=True, **sizes).pooler_output))
    return chosen(features, schedule, seed)


def apart(inputs: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The samples of a batch, one picture each, without padding. Raises YopoError where there are others."""
    if any(len(inputs.get(name, ())) != len(inputs["input_ids"]) for name in ("pixel_values", *SIZES)):
        raise YopoError("Token pruners take one picture a question where pictures differ in size.", "Leave --against out.")
    for sample, mask in enumerate(inputs["attention_mask"].bool()):
        own = {name: tensor[sample : sample + 1] for name, tensor in inputs.items()}
        yield own | {name: own[name][:, mask] for name in ("input_ids", "attention_mask")}


def chosen(features: Tensor, schedule: Schedule, seed: int = 0) -> Tensor:
    """Of each picture's features `[pictures, tokens, hidden]`, those that a method other than VisionZip lets in."""
    count = entering(schedule)
    match schedule.method:
        case "divprune":
            return torch.stack([picture[most_diverse(picture, count)] for picture in features])
        case "random":
            return features[:, at_random(features.shape[1], count, seed).to(features.device)]
        case "downsample":
            assert schedule.coarse is not None
            fine = (schedule.grids[0].rows, schedule.grids[0].columns)
            return torch.stack([pooled(picture, fine, (schedule.coarse.rows, schedule.coarse.columns)) for picture in features])
    return features


def entering(schedule: Schedule) -> int:
    """Visual tokens of one picture that enter the language model."""
    return schedule.entering // schedule.pictures


def merged(model: Any, tower: Tower, schedule: Schedule) -> Tensor:
    """VisionZip (arXiv 2412.04467): class token and dominant ones in the picture's order, then the contextual ones; projected."""
    count = entering(schedule)
    some = min(count - 1, round(count * VISIONZIP_CONTEXTUAL))
    kept = []
    for hidden, attention, keys in zip(tower.hidden, tower.attention, tower.keys, strict=True):
        best = torch.cat([torch.zeros(1, dtype=torch.long, device=hidden.device), dominant(attention, count - some - 1) + 1])
        others = torch.ones(len(hidden), dtype=torch.bool, device=hidden.device)
        others[best] = False
        kept.append(torch.cat([hidden[best], *([contextual(hidden[others], keys[others], some)[0]] if some else [])]))
    projected: Tensor = model.model.multi_modal_projector(torch.stack(kept))
    return projected


def look(model: Any, pixel_values: Tensor) -> Tower:
    """Run the vision tower and take from one of its layers what VisionZip needs; only the class token's attention is computed.

    Raises YopoError where the projector reads what enters the first layer.
    """
    layers = model.model.vision_tower.encoder.layers
    place = model.config.vision_feature_layer
    place += len(layers) + 1 if place < 0 else 0
    if place == 0:
        raise YopoError("VisionZip goes by the vision tower's attention, of which this model's projector sees nothing.", "Leave it out.")
    states = model.model.vision_tower(pixel_values, output_hidden_states=True, return_dict=True).hidden_states
    layer = layers[place - 1]
    attention, before = layer.self_attn, layer.layer_norm1(states[place - 1])
    shape = (len(before), -1, attention.num_heads, attention.head_dim)
    keys = attention.k_proj(before).view(shape).transpose(1, 2)
    query = attention.q_proj(before[:, :1]).view(shape).transpose(1, 2)
    paid = torch.stack([attention_of(one, some, attention.scale)[:, 0] for one, some in zip(query, keys, strict=True)])
    return Tower(states[place], paid[..., 1:], keys.mean(1))
