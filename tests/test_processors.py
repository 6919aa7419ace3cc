"""InternVL's processor and Qwen2-VL's from a checkpoint's files, where torchvision is not installed."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image
from test_families_internvl_chat import SMALL, save

from converters.checkpoint.reader import open_checkpoint
from yopo_cli.loader import load_processor
from yopo_cli.prompts import encode, prompt

pytestmark = pytest.mark.skipif(find_spec("torchvision") is not None, reason="the whole processor loads where torchvision is installed")
PICTURE = Image.new("RGB", (64, 32), "red")


def test_internvl(tmp_path: Path) -> None:
    save(tmp_path / "base", "internlm2", SMALL)
    open_checkpoint(tmp_path / "base").write_processor(tmp_path)
    processor = load_processor(tmp_path)
    text = prompt(processor, "hello", 1)
    assert text.endswith("<|im_start|>user\n<IMG_CONTEXT>\nhello<|im_end|><|im_start|>assistant\n")
    inputs = encode(processor, [text], [PICTURE])
    assert inputs["pixel_values"].shape == (3, 3, 32, 32)  # two tiles and the thumbnail
    assert (inputs["input_ids"] == 62).sum() == 3 * 16


def test_qwen2_vl(tmp_path: Path) -> None:
    save(tmp_path / "base", "internlm2", SMALL)
    open_checkpoint(tmp_path / "base").write_processor(tmp_path)
    for name in ("processor_config.json", "chat_template.jinja"):
        (tmp_path / name).unlink()
    tokenizer = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"image_token": "<IMG_CONTEXT>"}))
    pictures = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 64, "max_pixels": 4096}
    words = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor", **pictures}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(words))
    processor = load_processor(tmp_path)
    inputs = encode(processor, ["hello<IMG_CONTEXT>hello"], [PICTURE])
    assert inputs["image_grid_thw"].tolist() == [[1, 8, 16]]
    assert inputs["mm_token_type_ids"].sum() == 4 * 8
