"""Tiny SmolVLM and Idefics3 checkpoints as they are published, which is also transformers' layout."""

import json
from pathlib import Path
from typing import Any

from support.checkpoints import write_checkpoint
from support.tiny_families import tiny_smol


def save(folder: Path, kind: str = "smolvlm") -> Any:
    """A tiny model in three shards, with the words that published configs have besides."""
    model = tiny_smol(kind)
    config = json.loads(model.config.to_json_string()) | {"architectures": [type(model).__name__], "pad_token_id": 2}
    config["text_config"] |= {"architectures": ["VLlama3ForCausalLM"], "is_llama_config": True}
    write_checkpoint(folder, config, {name: tensor.clone() for name, tensor in model.state_dict().items()}, 3)
    return model
