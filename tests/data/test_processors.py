"""Processors without torchvision: pictures and frames of videos through transformers' PIL image processors."""

import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.published import LAYOUTS, save_smolvlm

from converters.checkpoint.reader import open_checkpoint
from converters.data.prompts import encode, prompt
from converters.errors import YopoError
from converters.loading import load_processor

pytestmark = pytest.mark.skipif(find_spec("torchvision") is not None, reason="the whole processor loads where torchvision is installed")
PICTURE = Image.new("RGB", (64, 32), "red")


def processor_of(layout: str, folder: Path) -> Any:
    LAYOUTS[layout](folder / "base")
    checkpoint = open_checkpoint(folder / "base")
    if not checkpoint.foreign:
        return load_processor(folder / "base")
    checkpoint.write_processor(folder)
    return load_processor(folder)


def noise(*sizes: tuple[int, int]) -> list[Image.Image]:
    return [Image.effect_noise(size, 90).convert("RGB") for size in sizes]


def test_internvl(tmp_path: Path) -> None:
    processor = processor_of("InternVL2, InternLM2", tmp_path)
    text = prompt(processor, "hello", 1)
    assert text.endswith("<|im_start|>user\n<IMG_CONTEXT>\nhello<|im_end|><|im_start|>assistant\n")
    inputs = encode(processor, [text], [PICTURE])
    assert inputs["pixel_values"].shape == (3, 3, 32, 32)  # two tiles and the thumbnail
    assert (inputs["input_ids"] == 62).sum() == 3 * 16


@pytest.mark.parametrize("layout", ["InternVL native", "InternVL2, InternLM2"])
def test_a_frame_of_internvl_is_a_picture_of_one_tile(layout: str, tmp_path: Path) -> None:
    processor = processor_of(layout, tmp_path)
    frames = noise((64, 32), (64, 32), (64, 32))
    inputs = processor(text="<video>hello", videos=[frames], return_tensors="pt")
    assert (inputs["input_ids"] == 62).sum() == 3 * 16
    alone = processor.image_processor(frames, crop_to_patches=False, return_tensors="pt")["pixel_values"]
    assert inputs["pixel_values"].equal(alone)
    with pytest.raises(ValueError, match="have 2, 3 frames"):
        processor(text="<video><video>", videos=[frames, frames[:2]])


def test_onevision(tmp_path: Path) -> None:
    """Pictures that stand together in a prompt are of one tile; a frame is a quarter of one, and is resized as a whole picture is."""
    processor = processor_of("LLaVA-OneVision", tmp_path)
    inputs = encode(processor, ["<image> w8", "<image><image> w9"], [PICTURE, *noise((48, 48), (32, 16))])
    assert inputs["batch_num_images"].tolist() == [1, 2]
    # In 48 x 48 pixels the picture is 48 x 24: six rows of twelve.
    assert (inputs["input_ids"] == 62).sum(1).tolist() == [16 + 6 * (12 + 1), 2 * (16 + 1)]
    frames = noise(*[(64, 32)] * 3)
    inputs = processor(text="<video> w8", videos=[frames], return_tensors="pt")
    assert (inputs["input_ids"] == 63).sum() == 3 * 4 + 1
    whole = processor.image_processor(frames, return_tensors="pt")["pixel_values"][:, 0]
    assert inputs["pixel_values_videos"].equal(whole[None])


@pytest.mark.skipif(find_spec("num2words") is not None, reason="nothing is missing")
def test_smolvlm_says_what_is_missing(tmp_path: Path) -> None:
    save_smolvlm(tmp_path)
    with pytest.raises(YopoError, match="needs a package that is not installed: Package `num2words` is required"):
        load_processor(tmp_path)


@pytest.mark.parametrize("layout", ["Qwen2-VL", "Qwen2.5-VL"])
def test_qwen_pictures_and_videos(layout: str, tmp_path: Path) -> None:
    processor = processor_of(layout, tmp_path)
    placeholders = "<|vision_start|><|image_pad|><|vision_end|> w9 <|vision_start|><|video_pad|><|vision_end|> w8"
    options = {"video_metadata": [{"fps": 1.0, "total_num_frames": 3}]} if layout == "Qwen2.5-VL" else {}
    inputs = processor(text=[placeholders], images=[PICTURE], videos=[noise(*[(32, 48)] * 3)], return_tensors="pt", **options)
    assert inputs["image_grid_thw"].tolist() == [[1, 8, 16]]
    assert inputs["video_grid_thw"].tolist() == [[2, 12, 8]]  # three frames make two pairs
    counts = [(inputs["mm_token_type_ids"] == kind).sum().item() for kind in (1, 2)]
    assert counts == [4 * 8, 2 * 6 * 4]
    assert inputs["pixel_values_videos"].shape == (2 * 12 * 8, 3 * 2 * 4 * 4)
    with pytest.raises(ValueError, match="num_frames: frames are not chosen"):
        processor(text=[placeholders], images=[PICTURE], videos=[noise((32, 48))], num_frames=2, return_tensors="pt")


def test_two_equal_frames_are_a_picture(tmp_path: Path) -> None:
    """Transformers' image processor makes of a picture what its video processor makes of that picture shown twice."""
    processor = processor_of("Qwen2-VL", tmp_path)
    (frame,) = noise((72, 40))
    picture = processor.image_processor([frame], return_tensors="pt")
    video = processor.video_processor([[frame, frame]], return_tensors="pt")
    assert video["pixel_values_videos"].equal(picture["pixel_values"])
    assert video["video_grid_thw"].equal(picture["image_grid_thw"])


@pytest.fixture
def video_processing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Transformers' module of Qwen2-VL's video processor; of torchvision, which it imports, only resizing would be used."""
    parts = ("torchvision", "torchvision.transforms", "torchvision.transforms.v2", "torchvision.transforms.v2.functional")
    for parent, name in zip(("", *parts), parts, strict=False):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        if parent:
            setattr(sys.modules[parent], name.rpartition(".")[2], sys.modules[name])
    module = "transformers.models.qwen2_vl.video_processing_qwen2_vl"
    yield import_module(module)
    sys.modules.pop(module, None)


@pytest.mark.parametrize("frames", [2, 3, 4])
def test_patches_are_those_of_transformers_video_processor(frames: int, tmp_path: Path, video_processing: Any) -> None:
    """Frames that need no resizing, through transformers' own patchify, which is torch alone."""
    processor = processor_of("Qwen2-VL", tmp_path)
    video = noise(*[(32, 48)] * frames)
    pixels = torch.tensor(np.stack(video)).permute(0, 3, 1, 2).float()
    normal = (pixels / 255 - 0.5) / 0.25
    patches, *grid = video_processing.Qwen2VLVideoProcessor.patchify(None, normal[None], 4, 2, 2)
    found = processor.video_processor([video], return_tensors="pt")
    torch.testing.assert_close(found["pixel_values_videos"], patches[0], atol=1e-5, rtol=0)
    assert found["video_grid_thw"].tolist() == [grid]
    assert video_processing.smart_resize(48, 32, 8, 256, 4096) == (48, 32)
