"""Models to time: transformers' own dense one and the pruned one over the same weights, real or random."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.resources import files
from math import isqrt
from typing import Any

import torch
import transformers
import transformers.models.auto.configuration_auto  # (first: once it is there, the pruned classes register, which need the others whole)
from torch import Tensor
from transformers.initialization import no_init_weights

from ..checkpoint.skeleton import native_config
from ..errors import YopoError
from ..families import Family, family_of
from ..runtime.plan import Grid, Plan, to_json

BLOCK = 1_000_003  # a prime, so that no two rows of a tiled weight are equal
STD = 0.02


def published_config(name: str) -> Any:
    """config.json of a model with a short name as an object, None where none ships with the package."""
    file = files("converters.bench") / "configs" / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def cut(config: Mapping[str, Any], layers: int | None) -> dict[str, Any]:
    """The config, in transformers' words, with `layers` decoder layers, None for all. Raises YopoError for a foreign layout."""
    family = family_of(config)
    if family.adapt is not None:
        raise YopoError(
            f"This {family.name} config is not in transformers' layout.", "Convert the model with --budget 1, or give a short name."
        )
    plain: dict[str, Any] = _class(family).config_class.from_dict(native_config(family, config)).to_dict()
    if layers is not None:
        text = plain["text_config"]
        text["num_hidden_layers"] = layers
        if text.get("layer_types"):
            text["layer_types"] = text["layer_types"][:layers]
    return plain


def _class(family: Family) -> Any:
    return getattr(transformers, family.architecture)


def random_model(config: Mapping[str, Any], device: torch.device, dtype: torch.dtype, seed: int = 0) -> Any:
    """A dense model with random weights: one random block, tiled, so that the time goes into nothing but memory."""
    model_class = _class(family_of(config))
    with no_init_weights(), torch.device(device):
        model: Any = model_class._from_config(model_class.config_class.from_dict(dict(config)), dtype=dtype)
    block = torch.randn(BLOCK, generator=torch.Generator().manual_seed(seed)).mul_(STD).to(device, dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.fill_(1)
            else:
                _tile(parameter, block)
    return model.eval()


def _tile(parameter: Tensor, block: Tensor) -> None:
    flat = parameter.view(-1)
    whole = len(flat) // len(block) * len(block)
    flat[:whole].view(-1, len(block)).copy_(block)
    flat[whole:].copy_(block[: len(flat) - whole])


def with_plan(dense: Any, plan: Plan) -> Any:
    """The pruned model over the dense one's own tensors, taken as they lie: as fast as a converted model, but another function.

    Everything but the decoder layers are the dense model's modules. What the runtime splits, it copies.
    """
    family = family_of(dense.config.to_dict())
    module = import_module(f"converters.runtime.modeling_{family.yopo_model_type}")
    config = getattr(module, family.yopo_config)(**{**dense.config.to_dict(), "yopo": {"plan": to_json(plan)}})
    with torch.device("meta"):
        pruned: Any = getattr(module, family.yopo_architecture)._from_config(config, dtype=dense.dtype)
    _share(pruned, dense)
    if family.kinds is None:  # its pictures have the grid of the config, which the plan's may differ from
        vision = pruned.model.config.vision_config
        native, wanted = family.grid(dense.config.to_dict()), plan.grids[0]
        vision.image_size = _scaled(vision.image_size, wanted.rows / native.rows)
    return pruned.eval()


def _scaled(size: Any, factor: float) -> Any:
    return round(size * factor) if isinstance(size, int) else [round(side * factor) for side in size]


def native(pruned: Any) -> Any:
    """Transformers' own dense model over a converted model's tensors; to be called before that model first runs."""
    from ..families import converted_family

    plain = pruned.config.to_dict()
    family = converted_family(plain)
    assert family is not None
    model_class = _class(family)
    with torch.device("meta"):
        dense: Any = model_class._from_config(model_class.config_class.from_dict(native_config(family, plain)), dtype=pruned.dtype)
    _share(dense, pruned)
    return dense.eval()


def _share(model: Any, source: Any) -> None:
    for name, module in source.model.named_children():
        if module is not source.get_decoder():
            setattr(model.model, name, module)
    for name, parameter in source.model.named_parameters(recurse=False):
        setattr(model.model, name, parameter)
    known = model.get_decoder().state_dict()
    state = {name: tensor for name, tensor in source.get_decoder().state_dict().items() if name in known}
    model.get_decoder().load_state_dict(state, assign=True)
    model.get_decoder().rotary_emb = source.get_decoder().rotary_emb
    model.lm_head.load_state_dict(source.lm_head.state_dict(), assign=True)
    model.generation_config = source.generation_config


def visual_grids(config: Mapping[str, Any], tokens: int) -> tuple[Grid, ...]:
    """`tokens` visual tokens of a model: as many of its tiles where it cuts pictures up, else one square picture. Raises YopoError."""
    family, side = family_of(config), isqrt(tokens)
    native = family.grid(config)
    if family.picture is not None:
        side = isqrt(max(0, tokens - native.tokens))
        if native.tokens + side * (side + 1) != tokens or not side:
            raise YopoError(f"{tokens} visual tokens are no square picture.", f"It has {native.tokens} and n rows of n + 1 tokens.")
        return native, Grid(side, side + 1)
    if is_tiled(config):
        if tokens % native.tokens:
            raise YopoError(f"{tokens} visual tokens are no whole tiles.", f"A tile of this model has {native.tokens}.")
        return (native,) * (tokens // native.tokens)
    if side * side != tokens:
        raise YopoError(f"{tokens} visual tokens are no square grid.", "Square ones are 576, 2304 and 9216 tokens.")
    return (Grid(side, side),)


def is_tiled(config: Mapping[str, Any]) -> bool:
    """Whether the model cuts pictures up."""
    return "downsample_ratio" in config or "scale_factor" in config


@dataclass(frozen=True)
class Prompt:
    """A batch of equal prompts: ids `[batch, length]` around pictures, features `[batch, visual tokens, hidden]` of these.

    `pixels` are what the vision tower would have been given, `places` what else the model wants to know of the pictures; `pictures` counts
    those of a sample.
    """

    ids: Tensor
    features: Tensor
    grids: tuple[Grid, ...]
    pixels: Tensor
    places: dict[str, Tensor]
    pictures: int


def random_prompt(dense: Any, grids: tuple[Grid, ...], text: int, batch: int, seed: int = 0) -> Prompt:
    """Random text around random pictures, as the projector would have given them, of one grid, or one of several; the pixels are black."""
    config, generator = dense.config, torch.Generator().manual_seed(seed)
    tokens, image = sum(grid.tokens for grid in grids), config.image_token_id
    words = torch.randint(3, min(image, config.text_config.vocab_size), (batch, text), generator=generator)
    ids = torch.cat([words[:, : text // 2], torch.full((batch, tokens), image), words[:, text // 2 :]], 1).to(dense.device)
    features = torch.randn(batch, tokens, config.text_config.hidden_size, generator=generator) * STD
    features = features.to(dense.device, dense.dtype)
    if (newline := getattr(dense.model, "image_newline", None)) is not None:
        features[:, grids[0].tokens :].unflatten(1, (grids[-1].rows, grids[-1].columns))[:, :, -1] = newline.detach()
    plain = config.to_dict()
    places = {name: tensor.to(dense.device) for name, tensor in family_of(plain).black(plain, grids, batch).items()}
    pixels = places.pop("pixel_values").to(dense.dtype)
    if "image_grid_thw" in places:  # multimodal positions are made from both
        places["mm_token_type_ids"] = (ids == image).int()
    return Prompt(ids, features, grids, pixels, places, len(grids) if len(set(grids)) == 1 else 1)
