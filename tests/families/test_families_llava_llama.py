"""liuhaotian's layout: pickled shards, the vision tower in a folder of its own, a vocabulary without the placeholder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.conversions import assert_migrates, assert_prunes, assert_stands_alone, provenance
from support.layouts.llava_llama import PUBLISHED, VOCABULARY, WORDS, save
from support.tiny import tiny_inputs
from transformers import AutoProcessor

from converters.checkpoint.convert import convert
from converters.checkpoint.reader import open_checkpoint
from converters.errors import YopoError
from converters.families import family_of
from converters.families.family import Folders, Grown
from converters.runtime.plan import Grid, Sizes


@pytest.mark.parametrize("inside", [False, True], ids=["tower apart", "tower inside"])
def test_becomes_the_native_model(inside: bool, tmp_path: Path) -> None:
    model = save(tmp_path, inside)
    checkpoint = open_checkpoint(tmp_path / "base")
    assert checkpoint.sizes == Sizes(32, 48, 2, 4, 4, 8)
    assert checkpoint.grids == (Grid(4, 4),)
    assert checkpoint.tensors.keys() == model.state_dict().keys()
    assert all(checkpoint.read(name).equal(tensor) for name, tensor in model.state_dict().items())
    inputs = tiny_inputs(model.config, (3, 5), (2, 2), images=2)
    text = tiny_inputs(model.config, (3, 5), (2, 2), images=0)
    prompts = [(dict(inputs), [[Grid(4, 4)] * 2] * 2), (dict(text), [[], []])]
    assert_migrates(tmp_path / "base", model, prompts)
    out = assert_prunes(tmp_path / "base", model, prompts, 1)
    if not inside:
        assert_stands_alone(out, dict(inputs))


def test_processor_is_transformers_own(tmp_path: Path) -> None:
    save(tmp_path)
    out = convert(open_checkpoint(tmp_path / "base"), None, tmp_path / "out", provenance(tmp_path / "base"))
    processor = AutoProcessor.from_pretrained(out, backend="pil")
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "hello"}]}]
    text = processor.apply_chat_template(turn, add_generation_prompt=True)
    assert text.startswith("A chat between a curious user")
    assert text.endswith("user's questions. USER: <image>\nhello ASSISTANT:")
    answered = processor.apply_chat_template([*turn, {"role": "assistant", "content": [{"type": "text", "text": "well"}]}, *turn])
    assert " ASSISTANT: well</s>USER: <image>" in answered
    assert json.loads((out / "config.json").read_text())["pad_token_id"] == VOCABULARY + 1
    picture = Image.new("RGB", (16, 8), "red")
    inputs = processor(text="hello<image>", images=picture, return_tensors="pt")
    assert inputs["input_ids"].tolist() == [[1, 3 + WORDS.index("▁hello"), *[VOCABULARY] * 16]]
    assert processor.tokenizer.pad_token_id == VOCABULARY + 1
    assert inputs["pixel_values"].shape == (1, 3, 16, 16)
    # Padded to a square with the mean colour, which is nearly zero once normalised; red in the middle.
    assert inputs["pixel_values"][0, :, 0].abs().max() < 0.02
    assert inputs["pixel_values"][0, 0, 8].min() > 1.9


def test_new_rows_by_hand() -> None:
    tensor = torch.tensor([[1.0, 5.0], [3.0, 7.0]])
    assert Grown(4).shape((2, 2)) == (4, 2)
    assert Grown(4).apply(tensor).tolist() == [[1, 5], [3, 7], [2, 6], [2, 6]]


def test_the_published_config_tells_sizes_grid_and_placeholder() -> None:
    family = family_of(PUBLISHED)
    assert family.sizes(PUBLISHED) == Sizes(4096, 11008, 32, 32, 32, 128)
    assert family.grid(PUBLISHED) == Grid(24, 24)
    assert family.image_token(PUBLISHED) == 32000
    (piece,) = family.pieces("lm_head.weight", PUBLISHED)
    assert piece.change == Grown(32064)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"mm_projector_type": "linear"}, "mm_projector_type is linear"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio is anyres"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end is set"),
        ({"mm_vision_tower": "./nothing"}, "There is no model './nothing'"),
    ],
)
def test_variants_that_cannot_be_converted(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    save(tmp_path)
    file = tmp_path / "base" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(YopoError, match=sentence) as raised:
        open_checkpoint(tmp_path / "base")
    assert raised.value.hint


def test_the_class_token_is_counted_where_it_is_taken(tmp_path: Path) -> None:
    save(tmp_path)
    file = tmp_path / "base" / "config.json"
    for feature, tokens in (("patch", 16), ("cls_patch", 17)):
        config = json.loads(file.read_text()) | {"mm_vision_select_feature": feature}
        native = family_of(config).native(config, Folders(tmp_path / "base", tmp_path / "tower-patch4-16"))
        assert native["image_seq_length"] == tokens
