"""Qwen2-VL from both layouts, sharded, with a tied head and without."""

from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.conversions import assert_migrates, assert_prunes, assert_stands_alone
from support.layouts.qwen2_vl import save
from support.tiny_families import qwen_inputs, tiny_qwen

from converters.checkpoint.reader import open_checkpoint
from converters.families import family_of
from converters.runtime.plan import Grid, Sizes

PROMPTS = [
    qwen_inputs([(1, 3, 4)]),
    qwen_inputs([(1, 3, 4)], [(1, 2, 2), (1, 4, 3)]),  # grids of all kinds, two images, left padding
    qwen_inputs([(3, 2, 3)], [(1, 2, 2), (2, 3, 2)]),  # videos
    qwen_inputs([], []),
]


@pytest.mark.parametrize(("layout", "tied"), [("hub", False), ("hub", True), ("modules", False), ("modules", True)])
def test_converts_from_every_layout(layout: str, tied: bool, tmp_path: Path) -> None:
    model = save(tmp_path / "base", layout, tied)
    checkpoint = open_checkpoint(tmp_path / "base")
    assert checkpoint.sizes == Sizes(64, 48, 3, 8, 2, 8)
    assert len(checkpoint.tensors) == len(model.state_dict()) - tied
    native = assert_migrates(tmp_path / "base", model, PROMPTS)
    assert load_file(native / "model.safetensors").keys() == checkpoint.tensors.keys()
    for seed in range(2):
        out = assert_prunes(tmp_path / "base", model, PROMPTS, seed)
    if layout == "hub":
        assert_stands_alone(out, PROMPTS[1][0])


def test_what_transformers_saves_itself_is_read(tmp_path: Path) -> None:
    model = tiny_qwen()
    for original in (True, False):
        model.save_pretrained(tmp_path / str(original), save_original_format=original)
        assert open_checkpoint(tmp_path / str(original)).tensors.keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    ("hidden", "heads", "kv", "layers", "ffn"), [(1536, 12, 2, 28, 8960), (3584, 28, 4, 28, 18944), (8192, 64, 8, 80, 29568)]
)
def test_published_sizes(hidden: int, heads: int, kv: int, layers: int, ffn: int) -> None:
    """2B, 7B and 72B; without a calibration set, costs are those of a picture of 768 x 1024: 27 x 37 tokens."""
    sizes = {"hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": kv, "num_hidden_layers": layers}
    vision = {"depth": 32, "embed_dim": 1280, "hidden_size": hidden, "patch_size": 14, "spatial_merge_size": 2}
    config = {"model_type": "qwen2_vl", **sizes, "intermediate_size": ffn, "vision_config": vision}
    family = family_of(config)
    assert family.sizes(config) == Sizes(hidden, ffn, layers, heads, kv, 128)
    assert family.grid(config) == Grid(27, 37)
    assert family.image_token(config) == 151655
