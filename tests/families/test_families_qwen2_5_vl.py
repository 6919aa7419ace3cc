"""Qwen2.5-VL from both layouts, sharded, with a tied head and without; the windows of its vision tower are as they were."""

from pathlib import Path

import pytest
import torch
from support.conversions import assert_migrates, assert_prunes, assert_stands_alone
from support.layouts.qwen2_5_vl import save
from support.tiny_families import qwen_inputs, tiny_qwen

from converters.checkpoint.reader import open_checkpoint
from converters.families import family_of
from converters.runtime.plan import Grid, Sizes

PROMPTS = [
    qwen_inputs([(1, 6, 5)]),  # more than a window of the tower
    qwen_inputs([(1, 3, 4)], [(1, 2, 2), (1, 4, 3)]),  # grids of all kinds, two images, left padding
    qwen_inputs([(3, 2, 3)], [(1, 2, 2), (2, 3, 2)]),  # videos
    qwen_inputs([], []),
]


@pytest.mark.parametrize(("layout", "tied"), [("hub", False), ("hub", True), ("modules", False)])
def test_converts_from_every_layout(layout: str, tied: bool, tmp_path: Path) -> None:
    model = save(tmp_path / "base", layout, tied)
    checkpoint = open_checkpoint(tmp_path / "base")
    assert checkpoint.family.name == "Qwen2.5-VL"
    assert checkpoint.sizes == Sizes(64, 48, 3, 8, 2, 8)
    assert_migrates(tmp_path / "base", model, PROMPTS)
    out = assert_prunes(tmp_path / "base", model, PROMPTS, seed=tied)
    if layout == "modules":
        assert_stands_alone(out, PROMPTS[1][0])


def test_the_tower_sees_by_windows() -> None:
    """The tiny tower's windows matter: with full attention in every block the features are others."""
    model = tiny_qwen(kind="qwen2_5_vl")
    inputs, _ = qwen_inputs([(1, 6, 5)])
    tower, arguments = model.model.visual, (inputs["pixel_values"], inputs["image_grid_thw"])
    with torch.inference_mode():
        windowed = tower(*arguments).pooler_output
        tower.fullatt_block_indexes = [0, 1]
        assert not torch.allclose(tower(*arguments).pooler_output, windowed, atol=1e-3)


@pytest.mark.parametrize(
    ("hidden", "heads", "kv", "layers", "ffn"), [(2048, 16, 2, 36, 11008), (3584, 28, 4, 28, 18944), (8192, 64, 8, 80, 29568)]
)
def test_published_sizes(hidden: int, heads: int, kv: int, layers: int, ffn: int) -> None:
    """3B, 7B and 72B."""
    sizes = {"hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": kv, "num_hidden_layers": layers}
    config = {"model_type": "qwen2_5_vl", **sizes, "intermediate_size": ffn, "vision_config": {"patch_size": 14, "spatial_merge_size": 2}}
    family = family_of(config)
    assert family.sizes(config) == Sizes(hidden, ffn, layers, heads, kv, 128)
    assert family.grid(config) == Grid(27, 37)
    assert family.image_token(config) == 151655
