"""A tiny LLaVA under a random plan, and prompts for it."""

from typing import Any

import torch

from converters.families import Layer, family_of
from converters.runtime.modeling_yopo_llava import YopoLlavaConfig, YopoLlavaForConditionalGeneration
from converters.runtime.plan import Grid, Plan, Sizes
from support import random_plans
from support.random_plans import permuted


def sizes_of(config: Any) -> Sizes:
    return family_of(config.to_dict()).sizes(config.to_dict())


def random_plan(config: Any, seed: int, side: int = 4) -> Plan:
    return random_plans.random_plan(sizes_of(config), seed, (Grid(side, side),))


def converted(model: Any, plan: Plan) -> Any:
    return permuted(model, plan, YopoLlavaConfig, YopoLlavaForConditionalGeneration, Layer())


PROMPTS = {
    "single": {"prompts": [(3, 5)]},
    "padded": {"prompts": [(3, 5), (1, 2), (6, 4)]},
    "two images": {"prompts": [(3, 5), (2, 7)], "images": 2},
    "text": {"prompts": [(3, 5), (1, 2)], "images": 0},
}


def text_rows(inputs: Any, config: Any) -> torch.Tensor:
    return inputs["attention_mask"].bool() & (inputs["input_ids"] != config.image_token_id)
