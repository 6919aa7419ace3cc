"""Tiny Qwen3-VL checkpoints as they are published, which is also transformers' layout but for some words of the config."""

from pathlib import Path
from typing import Any

from support.checkpoints import config_of, write_checkpoint
from support.tiny_families import INTERLEAVED, TEXT, tiny_qwen

ARCHITECTURE = {"architectures": ["Qwen3VLForConditionalGeneration"]}


def hub_config(model: Any, tied: bool) -> dict[str, Any]:
    """The published form: RoPE in the old words, another name of the tower's type."""
    config = config_of(model.config) | ARCHITECTURE
    scaling = {name: value for name, value in INTERLEAVED.items() if name != "rope_theta"}
    text = {**TEXT, "model_type": "qwen3_vl_text", "head_dim": 16, "rope_scaling": scaling, "rope_theta": 10000.0}
    vision = {name: value for name, value in config["vision_config"].items() if not name.startswith("rope")}
    return config | {"text_config": text | {"tie_word_embeddings": tied}, "vision_config": vision | {"model_type": "qwen3_vl"}}


def save(folder: Path, layout: str, tied: bool) -> Any:
    """A tiny model in three shards; a tied head is not in the files."""
    model = tiny_qwen(tied=tied, kind="qwen3_vl")
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items() if not (tied and name == "lm_head.weight")}
    write_checkpoint(folder, hub_config(model, tied) if layout == "hub" else config_of(model.config) | ARCHITECTURE, tensors, 3)
    return model
