"""Native InternVL with each language model, from the Hub's layout and from module names; the tied head that is not one."""

import json
from pathlib import Path

import pytest
from support.conversions import assert_migrates, assert_prunes, assert_stands_alone
from support.layouts.internvl import save
from support.tiny_families import internvl_inputs, tiny_internvl

from converters.checkpoint.reader import open_checkpoint
from converters.families import family_of
from converters.runtime.plan import Grid, Sizes

TILES = [(1,), (3, 1), (0, 0)]
PROMPTS = [(internvl_inputs(*tiles), [[Grid(4, 4)] * count for count in tiles]) for tiles in TILES]


@pytest.mark.parametrize(("layout", "text"), [("hub", "llama"), ("hub", "qwen2"), ("modules", "phi3"), ("hub", "qwen3")])
def test_converts_from_every_layout(layout: str, text: str, tmp_path: Path) -> None:
    model = save(tmp_path / "base", layout, text)
    checkpoint = open_checkpoint(tmp_path / "base")
    assert checkpoint.sizes == Sizes(64, 48, 3, 8, 8 if text == "phi3" else 2, 16 if text == "qwen3" else 8)
    assert checkpoint.grids == (Grid(4, 4),)
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
