"""Models to time: transformers' own dense one and the pruned one over the same weights, real or random."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
import transformers.models.auto.configuration_auto  # noqa: F401  (first: once it is there, the pruned classes register, which need the others whole)
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration
from transformers.initialization import no_init_weights

from ..runtime.modeling_yopo_llava import YopoLlavaConfig, YopoLlavaForConditionalGeneration
from ..runtime.plan import Grid, Plan, to_json

BLOCK = 1_000_003  # a prime, so that no two rows of a tiled weight are equal
STD = 0.02


def published_config(name: str) -> Any:
    """config.json of a model with a short name as an object, None where none ships with the package."""
    file = files("converters.measure") / "configs" / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def cut(config: Mapping[str, Any], layers: int | None) -> dict[str, Any]:
    """The config with `layers` decoder layers, None for all."""
    plain: dict[str, Any] = LlavaConfig.from_dict(dict(config)).to_dict()
    if layers is not None:
        plain["text_config"]["num_hidden_layers"] = layers
    return plain


def random_model(config: Mapping[str, Any], device: torch.device, dtype: torch.dtype, seed: int = 0) -> Any:
    """A dense LLaVA with random weights: one random block, tiled, so that the time goes into nothing but memory."""
    with no_init_weights(), torch.device(device):
        model: Any = LlavaForConditionalGeneration._from_config(LlavaConfig.from_dict(dict(config)), dtype=dtype)
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

    Vision tower, projector, rotary embedding and head are the dense model's modules. What the runtime splits, it copies.
    """
    config = YopoLlavaConfig(**{**dense.config.to_dict(), "yopo": {"plan": to_json(plan)}})
    with torch.device("meta"):
        pruned: Any = YopoLlavaForConditionalGeneration._from_config(config, dtype=dense.dtype)
    _share(pruned, dense)
    grid = plan.grids[0]
    pruned.model.config.vision_config.image_size = grid.rows * dense.config.vision_config.patch_size
    return pruned.eval()


def native(pruned: Any) -> Any:
    """Transformers' own dense model over a converted model's tensors; to be called before that model first runs."""
    plain = {key: value for key, value in pruned.config.to_dict().items() if key not in ("yopo", "auto_map", "model_type", "architectures")}
    with torch.device("meta"):
        dense: Any = LlavaForConditionalGeneration._from_config(LlavaConfig(**plain), dtype=pruned.dtype)
    _share(dense, pruned)
    return dense.eval()


def _share(model: Any, source: Any) -> None:
    model.model.vision_tower = source.model.vision_tower
    model.model.multi_modal_projector = source.model.multi_modal_projector
    model.model.language_model.load_state_dict(source.model.language_model.state_dict(), assign=True)
    model.model.language_model.rotary_emb = source.model.language_model.rotary_emb
    model.lm_head = source.lm_head
    model.generation_config = source.generation_config


@dataclass(frozen=True)
class Prompt:
    """A batch of equal prompts: ids `[batch, length]` around one picture, its features `[tokens, hidden]` for each sample."""

    ids: Tensor
    features: Tensor
    grid: Grid


def random_prompt(dense: Any, grid: Grid, text: int, batch: int, seed: int = 0) -> Prompt:
    """Random text around a random picture of any grid, as the projector would have given it."""
    generator = torch.Generator().manual_seed(seed)
    image = dense.config.image_token_id
    words = torch.randint(3, min(image, dense.config.text_config.vocab_size), (batch, text), generator=generator)
    picture = torch.full((batch, grid.tokens), image)
    ids = torch.cat([words[:, : text // 2], picture, words[:, text // 2 :]], 1)
    features = torch.randn(batch, grid.tokens, dense.config.text_config.hidden_size, generator=generator) * STD
    return Prompt(ids.to(dense.device), features.to(dense.device, dense.dtype), grid)
