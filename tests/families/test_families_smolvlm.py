"""SmolVLM and Idefics3: tiles that stand apart in the text, patches shuffled into fewer tokens, other names of modules."""

from pathlib import Path

import pytest
import torch
from support.conversions import assert_migrates, assert_prunes, assert_stands_alone
from support.layouts.smolvlm import save
from support.tiny_families import smol_inputs, tiny_smol

from converters.calibration.batch import hash_of
from converters.checkpoint.reader import open_checkpoint
from converters.families import family_of
from converters.runtime.plan import Grid, Sizes

PROMPTS = [(smol_inputs(*tiles), [[Grid(4, 4)] * count for count in tiles]) for tiles in ((1,), (3, 2), (0, 0))]


@pytest.mark.parametrize("kind", ["smolvlm", "idefics3"])
def test_converts(kind: str, tmp_path: Path) -> None:
    model = save(tmp_path / "base", kind)
    checkpoint = open_checkpoint(tmp_path / "base")
    assert checkpoint.family.name.lower() == kind
    assert (checkpoint.sizes, checkpoint.grids) == (Sizes(64, 48, 3, 8, 2, 8), (Grid(4, 4),))
    assert_migrates(tmp_path / "base", model, PROMPTS)
    for seed in (1, 2) if kind == "smolvlm" else (3,):
        out = assert_prunes(tmp_path / "base", model, PROMPTS, seed)
    assert_stands_alone(out, PROMPTS[1][0])


def test_tiles_that_fill_up_a_batch_are_no_pixels_of_a_sample() -> None:
    """Both samples of a batch are what each is alone."""
    config = tiny_smol().config.to_dict()
    visuals, (both, _) = family_of(config).visuals(config), PROMPTS[1]
    alone = [{name: tensor[sample : sample + 1] for name, tensor in both.items()} for sample in (0, 1)]
    alone[1]["pixel_values"] = alone[1]["pixel_values"][:, :2]
    hashes = [int(hash_of(batch, visuals), 16) for batch in (both, *alone)]
    assert hashes[0] == sum(hashes[1:]) % 2**256
    both["pixel_values"] = both["pixel_values"].clone()
    both["pixel_values"][1, 1, 0, 0, 0] += 1
    assert int(hash_of(both, visuals), 16) != hashes[0]


def test_black_tiles_are_tiles() -> None:
    """Zeros would be taken for what fills up a batch."""
    model, config = tiny_smol(), tiny_smol().config.to_dict()
    pixels = family_of(config).black(config, [Grid(4, 4)] * 2, 3)["pixel_values"]
    with torch.inference_mode():
        assert [len(part) for part in model.model.get_image_features(pixels, return_dict=True).pooler_output] == [32] * 3


@pytest.mark.parametrize(
    ("kind", "text", "vision", "scale", "sizes", "grid"),
    [
        ("idefics3", (576, 1536, 30, 9, 3), (512, 16), 4, Sizes(576, 1536, 30, 9, 3, 64), Grid(8, 8)),  # SmolVLM-256M
        ("smolvlm", (2048, 8192, 24, 32, 32), (384, 14), 3, Sizes(2048, 8192, 24, 32, 32, 64), Grid(9, 9)),  # SmolVLM2-2.2B
    ],
)
def test_published_sizes(kind: str, text: tuple[int, ...], vision: tuple[int, int], scale: int, sizes: Sizes, grid: Grid) -> None:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    config = {"model_type": kind, "text_config": {"model_type": "llama", "head_dim": 64} | dict(zip(names, text, strict=True))}
    config |= {"vision_config": dict(zip(("image_size", "patch_size"), vision, strict=True)), "scale_factor": scale}
    family = family_of(config)
    assert (family.sizes(config), family.grid(config)) == (sizes, grid)
