"""OpenGVLab's layout: a native model written out in it by a plain inverse of the mapping becomes the native model again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.conversions import assert_migrates, assert_prunes, assert_stands_alone, provenance
from support.layouts.internvl_chat import LARGE, SMALL, WORDS, chat_config, save
from support.tiny_families import internvl_inputs
from support.tokenizers_of import save_tokenizer
from transformers import AutoImageProcessor, AutoTokenizer

from converters.checkpoint.convert import convert
from converters.checkpoint.native import native_model
from converters.checkpoint.reader import open_checkpoint
from converters.errors import YopoError
from converters.families import family_of
from converters.families.family import RowRange
from converters.runtime.plan import Grid, Sizes

TILES = [(1,), (3, 1), (0, 0)]
PROMPTS = [(internvl_inputs(*tiles), [[Grid(4, 4)] * count for count in tiles]) for tiles in TILES]


@pytest.mark.parametrize(
    ("text", "tower"),
    [("internlm2", SMALL), ("internlm2", LARGE), ("phi3", SMALL), ("qwen2", SMALL), ("qwen3", SMALL)],
    ids=["2-8B", "2-26B", "2-4B", "3", "3.5"],
)
def test_becomes_the_native_model(text: str, tower: dict[str, Any], tmp_path: Path) -> None:
    model = save(tmp_path / "base", text, tower)
    checkpoint = open_checkpoint(tmp_path / "base")
    assert checkpoint.sizes == Sizes(64, 48, 3, 8, 8 if text == "phi3" else 2, 16 if text == "qwen3" else 8)
    assert checkpoint.tensors.keys() == model.state_dict().keys()
    assert all(checkpoint.read(name).equal(tensor) for name, tensor in model.state_dict().items())
    native = assert_migrates(tmp_path / "base", model, PROMPTS)
    assert not list(native.glob("*.py"))
    assert {file.name for file in native.iterdir()} == {
        "LICENSE.txt", "README.md", "SHA256SUMS", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "processor_config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    out = assert_prunes(tmp_path / "base", model, PROMPTS, 1)
    if tower is LARGE or text in ("phi3", "qwen3"):
        assert_stands_alone(out, PROMPTS[1][0])


def test_parts_of_a_fused_tensor_by_hand() -> None:
    """Two KV heads with two query heads each, one row a head."""
    fused = torch.tensor([[1.0], [2.0], [10.0], [100.0], [3.0], [4.0], [20.0], [200.0]])
    places = {"query": (0, 2), "key": (2, 3), "value": (3, 4)}
    parts = {name: RowRange(2, 4, *place).apply(fused).flatten().tolist() for name, place in places.items()}
    assert parts == {"query": [1, 2, 3, 4], "key": [10, 20], "value": [100, 200]}
    assert RowRange(2, 4, 0, 2).shape((8, 1)) == (4, 1)
    assert RowRange(2, 4, 3, 4).apply(fused[:, 0]).tolist() == [100, 200]  # a bias


def test_sizes_and_grid_are_known_from_config_alone() -> None:
    config = chat_config("internlm2", SMALL)
    assert family_of(config).sizes(config) == Sizes(64, 48, 3, 8, 2, 8)
    assert family_of(config).grid(config) == Grid(4, 4)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"ps_version": "v1"}, "ps_version is v1"),
        ({"force_image_size": 64}, "force_image_size is 64, the vision tower's 32"),
        ({"llm_config": {"model_type": "gpt"}}, r"internvl_chat is not supported \(language model: gpt\)"),
    ],
)
def test_variants_that_native_internvl_has_not(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    save(tmp_path, "internlm2", SMALL)
    (tmp_path / "config.json").write_text(json.dumps(chat_config("internlm2", SMALL) | change))
    with pytest.raises(YopoError, match=sentence) as raised:
        open_checkpoint(tmp_path)
    assert raised.value.hint


def test_a_config_without_ps_version_is_of_the_first_order(tmp_path: Path) -> None:
    save(tmp_path, "internlm2", SMALL)
    config = chat_config("internlm2", SMALL)
    del config["ps_version"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(YopoError, match="ps_version is v1"):
        open_checkpoint(tmp_path)


def test_a_tokenizer_without_the_placeholder(tmp_path: Path) -> None:
    save(tmp_path, "internlm2", SMALL)
    save_tokenizer(tmp_path, WORDS, 60, {60: "<img>"})
    with pytest.raises(YopoError, match="has no token <IMG_CONTEXT>"):
        open_checkpoint(tmp_path)


def test_the_placeholder_is_found_wherever_the_tokenizer_lists_it(tmp_path: Path) -> None:
    save(tmp_path, "internlm2", SMALL)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<IMG_CONTEXT>": 61}))
    assert open_checkpoint(tmp_path).config["image_token_id"] == 61


def test_tokenizer_and_chat_are_transformers_own(tmp_path: Path) -> None:
    save(tmp_path / "base", "internlm2", SMALL)
    out = convert(open_checkpoint(tmp_path / "base"), None, tmp_path / "out", provenance(tmp_path / "base"))
    tokenizer = AutoTokenizer.from_pretrained(out)
    names = ("start_image_token_id", "end_image_token_id", "context_image_token_id", "video_token_id")
    assert [getattr(tokenizer, name) for name in names] == [60, 61, 62, 63]
    hello, feed = 3 + WORDS.index("hello"), 3 + WORDS.index("\n")
    assert tokenizer.encode("hello<|im_end|><IMG_CONTEXT>") == [1, hello, 59, 62]  # no space is put before a text
    turn = [{"role": "system", "content": "hello"}, {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "hello"}]}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert text == ("<|im_start|>system\nhello<|im_end|><|im_start|>user\n<IMG_CONTEXT>\nhello<|im_end|><|im_start|>assistant\n")
    plain = tokenizer.apply_chat_template([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], tokenize=False)
    assert plain.startswith("<|im_start|>system\n你是由上海人工智能实验室")
    assert plain.endswith("助手。<|im_end|><|im_start|>user\na<|im_end|><|im_start|>assistant\nb<|im_end|>")
    assert tokenizer.encode("hello<|im_end|>\n")[-1] == feed
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": [59, 2], "pad_token_id": 0}
    processor = json.loads((out / "processor_config.json").read_text())
    assert (processor["processor_class"], processor["image_seq_length"]) == ("InternVLProcessor", 16)
    assert AutoImageProcessor.from_pretrained(out, backend="pil").size == {"height": 32, "width": 32}


@pytest.mark.parametrize("root", [{}, {"pad_token_id": 58, "eos_token_id": 59}], ids=["3", "3.5"])
def test_a_qwen_tokenizer_pads_where_the_config_does_not_tell(root: dict[str, int], tmp_path: Path) -> None:
    save(tmp_path / "base", "qwen3", SMALL)
    config = chat_config("qwen3", SMALL) | root
    config["llm_config"]["eos_token_id"] = 59
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    out = convert(open_checkpoint(tmp_path / "base"), None, tmp_path / "out", provenance(tmp_path / "base"))
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": [59], "pad_token_id": root.get("pad_token_id", 57)}
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert (tokenizer.pad_token_id, tokenizer.padding_side) == (57, "left")
    assert tokenizer.encode('!"<|im_end|><IMG_CONTEXT><video>') == [0, 1, 59, 62, 63]


@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt"])
def test_a_qwen_tokenizer_without_its_files(missing: str, tmp_path: Path) -> None:
    save(tmp_path / "base", "qwen3", SMALL)
    (tmp_path / "base" / missing).unlink()
    with pytest.raises(YopoError, match=f"has no {missing}"):
        convert(open_checkpoint(tmp_path / "base"), None, tmp_path / "out", provenance(tmp_path / "base"))


def test_a_template_that_is_not_known(tmp_path: Path) -> None:
    save(tmp_path / "base", "internlm2", SMALL)
    (tmp_path / "base" / "config.json").write_text(json.dumps(chat_config("internlm2", SMALL) | {"template": "other"}))
    checkpoint = open_checkpoint(tmp_path / "base")
    with pytest.raises(YopoError, match="The chat template 'other' is not known"):
        convert(checkpoint, None, tmp_path / "out", provenance(tmp_path / "base"))
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_the_dense_model_runs_without_converting(tmp_path: Path) -> None:
    model = save(tmp_path / "base", "internlm2", SMALL)
    native = native_model(open_checkpoint(tmp_path / "base"), torch.float32)
    inputs = PROMPTS[1][0]
    with torch.inference_mode():
        torch.testing.assert_close(native(**inputs).logits, model(**inputs).logits, atol=1e-4, rtol=0)
