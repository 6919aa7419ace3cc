"""Tiny InternVL checkpoints in the layouts of the Hub and of transformers."""

from pathlib import Path
from typing import Any

from support.checkpoints import config_of, write_checkpoint
from support.tiny_families import tiny_internvl


def hub_name(name: str) -> str:
    """The layout of the `-hf` repositories."""
    for new, old in (("model.language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head."), ("model.", "")):
        if name.startswith(new):
            return old + name.removeprefix(new)
    raise AssertionError(name)


def save(folder: Path, layout: str, text: str) -> Any:
    """In three shards; the config does not say that the head is not tied, as those on the Hub do not."""
    model = tiny_internvl(text)
    rename = hub_name if layout == "hub" else str
    config = config_of(model.config) | {"architectures": ["InternVLForConditionalGeneration"]}
    del config["tie_word_embeddings"]
    write_checkpoint(folder, config, {rename(name): tensor.clone() for name, tensor in model.state_dict().items()}, 3)
    return model
