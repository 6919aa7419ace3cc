"""Tiny LLaVA-NeXT and LLaVA-OneVision checkpoints in the layouts that people have."""

import json
from pathlib import Path
from typing import Any

from support.checkpoints import hub_name, write_checkpoint
from support.tiny_families import tiny_next

# What a published config.json leaves to defaults or has besides.
PUBLISHED = {"ignore_index": -100, "use_image_newline_parameter": True, "transformers_version": "4.39.0.dev0"}


def published_name(name: str) -> str:
    return "image_newline" if name == "model.image_newline" else hub_name(name)


def save(folder: Path, layout: str, text: str = "llama", tied: bool = False) -> Any:
    """A tiny model in three shards; a tied head is not in the files."""
    model = tiny_next(text, tied=tied)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items() if not (tied and name == "lm_head.weight")}
    config = json.loads(model.config.to_json_string()) | {"architectures": [type(model).__name__]}
    if layout == "hub":
        tensors = {published_name(name): tensor for name, tensor in tensors.items()}
        config |= PUBLISHED
    write_checkpoint(folder, config, tensors, 3)
    return model
