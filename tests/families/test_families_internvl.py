"""Native InternVL with each language model, from the Hub's layout and from module names; the tied head that is not one."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import config_of, write_checkpoint
from support.conversions import assert_migrates, assert_prunes, assert_stands_alone
from support.tiny_families import internvl_inputs, tiny_internvl

from converters.checkpoint.reader import open_checkpoint
from converters.families import family_of
from converters.runtime.plan import Grid, Sizes

TILES = [(1,), (3, 1), (0, 0)]
PROMPTS = [(internvl_inputs(*tiles), [[Grid(4, 4)] * count for count in tiles]) for tiles in TILES]


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


@pytest.mark.parametrize(("layout", "text"), [("hub", "llama"), ("hub", "qwen2"), ("modules", "phi3")])
def test_converts_from_every_layout(layout: str, text: str, tmp_path: Path) -> None:
    model = save(tmp_path / "base", layout, text)
    checkpoint = open_checkpoint(tmp_path / "base")
    assert checkpoint.sizes == Sizes(64, 48, 3, 8, 8 if text == "phi3" else 2, 8)
    assert checkpoint.grid == Grid(4, 4)
    native = assert_migrates(tmp_path / "base", model, PROMPTS)
    assert json.loads((native / "config.json").read_text())["tie_word_embeddings"] is False
    for seed in range(2):
        out = assert_prunes(tmp_path / "base", model, PROMPTS, seed)
    assert_stands_alone(out, PROMPTS[1][0])


def test_what_transformers_saves_itself_is_read(tmp_path: Path) -> None:
    model = tiny_internvl("qwen2")
    for original in (True, False):
        model.save_pretrained(tmp_path / str(original), save_original_format=original)
        assert open_checkpoint(tmp_path / str(original)).tensors.keys() == model.state_dict().keys()


def test_a_published_size() -> None:
    """InternVL3-1B."""
    text = {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}
    config = {"model_type": "internvl", "text_config": text | {"num_key_value_heads": 2}, "vision_config": {"image_size": [448, 448]}}
    family = family_of(config)
    assert family.sizes(config) == Sizes(896, 4864, 24, 14, 2, 64)
    assert family.grid(config) == Grid(16, 16)
    assert family.image_token(config) == 151667
