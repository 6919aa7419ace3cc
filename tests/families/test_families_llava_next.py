"""LLaVA-NeXT and LLaVA-OneVision: pictures of any resolution, whose rows each end with a visual token; several pictures, videos."""

from pathlib import Path

import pytest
import torch
from support.conversions import assert_migrates, assert_prunes, assert_stands_alone
from support.layouts.llava_next import save
from support.tiny_families import VIDEO, next_inputs, tiny_next

from converters.calibration.batch import TokenMasks, hash_of, layouts_of
from converters.checkpoint.reader import open_checkpoint
from converters.errors import YopoError
from converters.families import family_of
from converters.families.llava_next import grids_of_picture
from converters.runtime.any_resolution import grids_of_pictures, grids_of_videos, is_end
from converters.runtime.modeling_yopo_llava_onevision import YopoLlavaOnevisionModel
from converters.runtime.plan import Grid, Sizes

TOWER_336 = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14}
PROMPTS = [
    next_inputs([(24, 32)], [(16, 16), (48, 16)]),  # grids of all kinds, two pictures side by side, left padding
    next_inputs([(16, 32)]),
    next_inputs([], []),
]
SEVERAL = [
    next_inputs([(48, 48)], [(16, 16), (48, 16), 2], counted=True),  # pictures that are not alone are one tile; a video after them
    next_inputs([3], [3, 3]),
    next_inputs([], []),
]


@pytest.mark.parametrize(
    ("text", "layout", "tied"),
    [("llama", "hub", False), ("mistral", "modules", False), ("qwen2", "hub", True)],
)
def test_converts_from_every_layout(text: str, layout: str, tied: bool, tmp_path: Path) -> None:
    model, prompts = save(tmp_path / "base", layout, text, tied), SEVERAL if text == "qwen2" else PROMPTS
    checkpoint = open_checkpoint(tmp_path / "base")
    assert checkpoint.family.name == ("LLaVA-OneVision" if text == "qwen2" else "LLaVA-NeXT")
    assert checkpoint.sizes == Sizes(64, 48, 3, 8, 2, 8)
    assert checkpoint.grids == (Grid(4, 4), Grid(4, 5) if text == "qwen2" else Grid(8, 9))
    assert "model.image_newline" in checkpoint.tensors
    assert_migrates(tmp_path / "base", model, prompts)
    for seed in (1, 2):
        out = assert_prunes(tmp_path / "base", model, prompts, seed)
    if layout == "hub":
        assert_stands_alone(out, prompts[0][0])


@pytest.mark.parametrize(("text", "prompts"), [("llama", PROMPTS), ("qwen2", SEVERAL)])
def test_grids_are_those_of_the_processor(text: str, prompts: list) -> None:
    visuals = family_of(tiny_next(text).config.to_dict()).visuals(tiny_next(text).config.to_dict())
    for inputs, grids in prompts[:2]:
        rows = TokenMasks.of(inputs, visuals)
        assert [list(layout) for layout in layouts_of(inputs, rows, visuals)] == grids


@pytest.mark.parametrize(("text", "prompts"), [("llama", PROMPTS), ("qwen2", SEVERAL)])
def test_the_hash_knows_no_tiles_that_fill_up_a_batch(text: str, prompts: list) -> None:
    config = tiny_next(text).config.to_dict()
    visuals, both = family_of(config).visuals(config), {name: tensor for name, tensor in prompts[0][0].items() if "videos" not in name}
    if text == "qwen2":
        both["input_ids"] = both["input_ids"].where(both["input_ids"] != VIDEO, 5)
    count, whole = 1, hash_of(both, visuals)
    parts = []
    for sample, pictures in ((0, slice(0, count)), (1, slice(count, None))):
        part = {name: tensor[sample : sample + 1] for name, tensor in both.items() if name in ("input_ids", "attention_mask")}
        part |= {name: both[name][pictures] for name in ("pixel_values", "image_sizes")}
        if "batch_num_images" in both:
            part["batch_num_images"] = both["batch_num_images"][sample : sample + 1]
        parts.append(int(hash_of(part, visuals), 16))
    assert int(whole, 16) == sum(parts) % 2**256
    both["pixel_values"] = torch.cat([both["pixel_values"], torch.ones_like(both["pixel_values"][:, :1])], 1)
    assert hash_of(both, visuals) == whole


def test_grids_are_read_from_the_ends_of_rows() -> None:
    """A tile of 2 x 2; three rows of two; a picture that is not alone; a strip of which no row is left; one row of three."""
    tile, row = [False] * 4, [False, False, True]
    ends = [*tile, *row * 3, *tile, True, *tile, *tile, *[False] * 3, True]
    grids = [Grid(2, 2), Grid(3, 3), Grid(2, 2), Grid(1, 1), Grid(2, 2), Grid(2, 2), Grid(1, 4)]
    assert grids_of_pictures(ends, Grid(2, 2)) == grids
    assert grids_of_videos([*[False] * 8, True, *[False] * 4, True], Grid(2, 2)) == [Grid(2, 2, 2), Grid(1, 1), Grid(2, 2), Grid(1, 1)]
    for cut in (3, 12, 19):
        with pytest.raises(ValueError, match="no whole pictures"):
            grids_of_pictures(ends[:cut] if cut != 12 else ends[1:], Grid(2, 2))
    for cut in (8, 7):
        with pytest.raises(ValueError, match="no whole videos"):
            grids_of_videos([False] * cut, Grid(2, 2))


def test_a_video_is_not_taken_for_pictures() -> None:
    """Five frames of four tokens are a tile and a row of four to whoever does not know the placeholder."""
    model = tiny_next("qwen2").model
    rows = torch.cat([torch.randn(1, 20, 64), model.image_newline.detach()[None, None]], 1)
    images, visual = YopoLlavaOnevisionModel.images, torch.ones(1, 21, dtype=torch.bool)
    assert [image.grid for image in images(model, visual, None, rows, visual)] == [Grid(2, 2, 5), Grid(1, 1)]
    assert [image.grid for image in images(model, visual, None, rows, ~visual)] == [Grid(4, 4), Grid(1, 5)]
    with pytest.raises(ValueError, match="may be a video's: pass input_ids"):
        images(model, visual, None, rows)


def test_autocast_changes_no_grid() -> None:
    """The end of a row has then been through bfloat16."""
    torch.manual_seed(0)
    newline = torch.randn(64)
    rows = torch.stack([newline, newline.bfloat16().float(), newline.half().float(), newline * 1.1, newline.roll(1)])
    assert is_end(rows, newline).tolist() == [True, True, True, False, False]


@pytest.mark.parametrize(
    ("size", "grid", "tokens"),
    [
        ((480, 640), Grid(36, 49), 2340),
        ((1024, 768), Grid(48, 37), 2352),
        ((336, 336), Grid(24, 25), 1176),
        ((672, 672), Grid(48, 49), 2928),
    ],
)
def test_published_resolutions(size: tuple[int, int], grid: Grid, tokens: int) -> None:
    """Of LLaVA-NeXT, as transformers counts them."""
    config = {"model_type": "llava_next", "text_config": {"model_type": "llama"}, "vision_config": TOWER_336}
    grids = grids_of_picture(config, size)
    assert grids == (Grid(24, 24), grid)
    assert sum(part.tokens for part in grids) == tokens


@pytest.mark.parametrize(("size", "tokens"), [((480, 640), 2929), ((768, 1024), 4725), ((384, 384), 1485)])
def test_large_pictures_of_onevision_shrink(size: tuple[int, int], tokens: int) -> None:
    config = {"model_type": "llava_onevision", "text_config": {"model_type": "qwen2"}}
    assert sum(grid.tokens for grid in grids_of_picture(config, size)) == tokens


def test_a_sliding_window_is_refused() -> None:
    text = {"model_type": "mistral", "sliding_window": 4096, "max_position_embeddings": 32768}
    config = {"model_type": "llava_next", "text_config": text, "vision_config": TOWER_336}
    with pytest.raises(YopoError, match="A sliding window of 4096 of 32768 tokens is not supported"):
        family_of(config).sizes(config)


def test_grids_that_no_picture_has_are_refused() -> None:
    config = tiny_next().config.to_dict()
    assert family_of(config).black(config, (Grid(4, 4), Grid(6, 9)), 2)["image_sizes"].tolist() == [[24, 32]] * 2
    with pytest.raises(YopoError, match=r"No picture of this model has the grids 4x4 \+ 5x9"):
        family_of(config).black(config, (Grid(4, 4), Grid(5, 9)), 1)
