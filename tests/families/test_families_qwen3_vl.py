"""Qwen3-VL from both layouts, with a tied head and without: norms of heads, features added after the first layers, frames apart."""

from pathlib import Path

import pytest
import torch
from support.conversions import assert_migrates, assert_prunes, assert_stands_alone
from support.layouts.qwen3_vl import save
from support.tiny_families import VIDEO, qwen_inputs, tiny_qwen

from converters.calibration.batch import TokenMasks, layouts_of
from converters.checkpoint.reader import open_checkpoint
from converters.families import family_of
from converters.runtime.plan import Grid, Sizes

PROMPTS = [
    qwen_inputs([(1, 3, 4)], [(1, 2, 2), (1, 4, 3)]),  # grids of all kinds, two images, left padding
    qwen_inputs([(3, 2, 3)], [(1, 2, 2), (2, 3, 2)], timed=True),  # videos and a picture
    qwen_inputs([], []),
]


@pytest.mark.parametrize(("layout", "tied"), [("hub", True), ("modules", False)])
def test_converts_from_every_layout(layout: str, tied: bool, tmp_path: Path) -> None:
    model = save(tmp_path / "base", layout, tied)
    checkpoint = open_checkpoint(tmp_path / "base")
    assert checkpoint.family.name == "Qwen3-VL"
    assert checkpoint.sizes == Sizes(64, 48, 3, 8, 2, 16)
    assert_migrates(tmp_path / "base", model, PROMPTS)
    for seed in (1, 2):
        out = assert_prunes(tmp_path / "base", model, PROMPTS, seed)
    if layout == "hub":
        assert_stands_alone(out, PROMPTS[0][0])


def test_every_frame_of_a_video_is_a_picture() -> None:
    inputs, grids = PROMPTS[1]
    visuals = family_of({"model_type": "qwen3_vl"}).visuals(tiny_qwen(kind="qwen3_vl").config.to_dict())
    rows = TokenMasks.of(inputs, visuals)
    assert [list(layout) for layout in layouts_of(inputs, rows, visuals)] == grids
    assert grids == [[Grid(2, 3)] * 3, [Grid(2, 2), Grid(3, 2), Grid(3, 2)]]
    assert (inputs["input_ids"] == VIDEO).sum() == 3 * 6 + 2 * 6


def test_what_is_added_after_the_first_layers_matters() -> None:
    model, inputs = tiny_qwen(kind="qwen3_vl"), PROMPTS[0][0]
    with torch.inference_mode():
        whole = model(**inputs).logits
        for merger in model.model.visual.deepstack_merger_list:
            merger.linear_fc2.weight.zero_()
            merger.linear_fc2.bias.zero_()
        assert (model(**inputs).logits - whole).abs().max() > 0.1


@pytest.mark.parametrize(("hidden", "heads", "layers", "ffn"), [(2048, 16, 28, 6144), (2560, 32, 36, 9728)])
def test_published_sizes(hidden: int, heads: int, layers: int, ffn: int) -> None:
    """2B and 4B."""
    text = {"model_type": "qwen3_vl_text", "hidden_size": hidden, "intermediate_size": ffn, "num_attention_heads": heads, "head_dim": 128}
    config = {"model_type": "qwen3_vl", "text_config": text | {"num_key_value_heads": 8, "num_hidden_layers": layers}}
    config["vision_config"] = {"patch_size": 16, "spatial_merge_size": 2}
    family = family_of(config)
    assert family.sizes(config) == Sizes(hidden, ffn, layers, heads, 8, 128)
    assert family.grid(config) == Grid(24, 32)
    assert family.image_token(config) == 151655
