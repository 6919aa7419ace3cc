"""Reading: every layout gives the same tensors; everything wrong that headers can tell is a sentence."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import LAYOUTS, config_of, save_model, write_checkpoint
from support.tiny import tiny_llava

from converters.checkpoint.header import read_header, read_tensor
from converters.checkpoint.pickled import pickled_header
from converters.checkpoint.reader import Checkpoint, open_checkpoint, open_converted
from converters.errors import YopoError
from converters.runtime.plan import Grid, Sizes


def assert_holds(checkpoint: Checkpoint, model: Any) -> None:
    expected = model.state_dict()
    assert checkpoint.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(checkpoint.read(name), tensor), name


@pytest.mark.parametrize("binary", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_reads_to_the_same_names(layout: str, shards: int, binary: bool, tmp_path: Path) -> None:
    model = save_model(tmp_path, layout, shards, binary)
    checkpoint = open_checkpoint(tmp_path)
    assert_holds(checkpoint, model)
    assert checkpoint.sizes == Sizes(32, 48, 2, 4, 4, 8)
    assert checkpoint.grids == (Grid(4, 4),)
    assert checkpoint.bytes == sum(tensor.nbytes for tensor in model.state_dict().values())


def test_what_transformers_saves_itself_is_read(tmp_path: Path) -> None:
    model, _ = tiny_llava(kv_heads=2, attention_bias=True)
    for original in (True, False):
        model.save_pretrained(tmp_path / str(original), save_original_format=original)
        assert_holds(open_checkpoint(tmp_path / str(original)), model)


def test_buffers_of_old_checkpoints_are_dropped(tmp_path: Path) -> None:
    model, config = tiny_llava()
    tensors = {LAYOUTS["hub"](name): tensor.clone() for name, tensor in model.state_dict().items()}
    tensors["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    tensors["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    write_checkpoint(tmp_path, config_of(config), tensors)
    assert_holds(open_checkpoint(tmp_path), model)


def test_a_tied_head_may_be_absent(tmp_path: Path) -> None:
    model, config = tiny_llava(tie_word_embeddings=True)
    config.tie_word_embeddings = True
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    write_checkpoint(tmp_path, config_of(config), tensors)
    assert "lm_head.weight" not in open_checkpoint(tmp_path).tensors


def test_the_fingerprint_is_the_model_not_its_layout(tmp_path: Path) -> None:
    save_model(tmp_path / "a", "hub", 1)
    save_model(tmp_path / "b", "modules", 3, binary=True)
    save_model(tmp_path / "c", "hub", 1, seed=1)
    prints = [open_checkpoint(tmp_path / name).fingerprint() for name in "abc"]
    assert prints[0] == prints[1] != prints[2]
    assert open_checkpoint(tmp_path / "a").fingerprint() == prints[0]


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def edit_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


NORM = "language_model.model.norm.weight"
EDITS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "missing tensor": (lambda tensors: tensors.pop(NORM), r"lacks 1 of \d+ tensors: model\.language_model\.norm\.weight"),
    "wrong shape": (
        lambda tensors: tensors.update({NORM: torch.ones(31)}),
        r"norm\.weight' in .* has shape \[31\], but .* asks for \[32\]",
    ),
    "integers": (lambda tensors: tensors.update({NORM: torch.ones(32, dtype=torch.int8)}), "has dtype I8: it is quantised"),
    "unknown tensor": (
        lambda tensors: tensors.update({"adapter.lora_A": torch.ones(1)}),
        r"'adapter\.lora_A' does not belong to a LLaVA-1\.5",
    ),
    "one layer too many": (
        lambda tensors: tensors.update({"language_model.model.layers.2.mlp.up_proj.weight": torch.ones(48, 32)}),
        r"layers\.2\.mlp\.up_proj\.weight' in model\.safetensors does not belong",
    ),
    "twice": (lambda tensors: tensors.update({"model.language_model.norm.weight": torch.ones(32)}), "is there twice"),
}


@pytest.mark.parametrize("case", EDITS)
def test_wrong_tensors(case: str, tmp_path: Path) -> None:
    edit, sentence = EDITS[case]
    save_model(tmp_path)
    edit_tensors(tmp_path, edit)
    with pytest.raises(YopoError, match=sentence) as raised:
        open_checkpoint(tmp_path)
    assert raised.value.hint


def cut(file: Path, length: int) -> None:
    file.write_bytes(file.read_bytes()[:length])


def drop_from_index(folder: Path, index: str) -> None:
    data = json.loads((folder / index).read_text())
    data["weight_map"].pop("language_model.model.norm.weight")
    (folder / index).write_text(json.dumps(data))


def list_elsewhere(folder: Path, index: str) -> None:
    data = json.loads((folder / index).read_text())
    files = sorted(set(data["weight_map"].values()))
    here = data["weight_map"]["language_model.model.norm.weight"]
    data["weight_map"]["language_model.model.norm.weight"] = next(file for file in files if file != here)
    (folder / index).write_text(json.dumps(data))


SHARD, INDEX = "model-00002-of-00003.safetensors", "model.safetensors.index.json"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing shard": (lambda folder: (folder / SHARD).unlink(), f"shard {SHARD} named in .* is missing"),
    "truncated shard": (lambda folder: cut(folder / SHARD, -5), r"is truncated: it has [\d,]+ bytes, its header announces [\d,]+"),
    "truncated in the header": (lambda folder: cut(folder / SHARD, 100), "ends inside its header, after 100 bytes"),
    "empty shard": (lambda folder: cut(folder / SHARD, 0), r"is not a safetensors file \(it has 0 bytes\)"),
    "too long": (lambda folder: (folder / SHARD).write_bytes((folder / SHARD).read_bytes() + b"...."), "is longer than it should be"),
    "git lfs pointer": (lambda folder: (folder / SHARD).write_text("version https://git-lfs.github.com/spec/v1"), "not a safetensors file"),
    "header not json": (lambda folder: (folder / SHARD).write_bytes((9).to_bytes(8, "little") + b"not json."), "is not JSON"),
    "index lacks a tensor": (lambda folder: drop_from_index(folder, INDEX), "has a tensor that the index does not place there"),
    "index places it elsewhere": (lambda folder: list_elsewhere(folder, INDEX), "disagree: the shard"),
    "index is empty": (lambda folder: (folder / INDEX).write_text("{}"), "has no weight_map"),
    "index reaches out": (lambda folder: (folder / INDEX).write_text('{"weight_map": {"a": "../b"}}'), "has no weight_map of file names"),
    "index names no file": (lambda folder: (folder / INDEX).write_text('{"weight_map": {"a": ""}}'), "has no weight_map of file names"),
    "index names the folder above": (lambda folder: (folder / INDEX).write_text('{"weight_map": {"a": ".."}}'), "has no weight_map of"),
    "index not json": (lambda folder: (folder / INDEX).write_text("{"), "is not JSON"),
    "no weights": (lambda folder: (folder / INDEX).unlink(), "has no weights"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json does not exist"),
    "config is a list": (lambda folder: (folder / "config.json").write_text("[]"), "is not a JSON object"),
    "no vision": (lambda folder: (folder / "config.json").write_text('{"model_type": "llama"}'), r"\(llama\) has no vision part"),
    "unsupported": (lambda folder: edit_config(folder, model_type="pixtral"), "architecture pixtral is not supported"),
    "quantised": (lambda folder: edit_config(folder, quantization_config={"quant_method": "gptq"}), r"is quantised \(gptq\)"),
    "impossible config": (
        lambda folder: edit_config(folder, text_config={"hidden_size": "wide"}),
        "text_config.hidden_size is .wide., but input",
    ),
    "converted": (lambda folder: edit_config(folder, model_type="yopo_llava", yopo={"base": {"name": "b"}}), "is pruned already"),
}


@pytest.mark.parametrize("binary", [False, True])
def test_a_file_that_is_cut_short_while_it_is_read(binary: bool, tmp_path: Path) -> None:
    """A mapped file would end the process with SIGBUS."""
    save_model(tmp_path, binary=binary)
    checkpoint = open_checkpoint(tmp_path)
    cut(tmp_path / ("pytorch_model.bin" if binary else "model.safetensors"), 2000)
    with pytest.raises(YopoError, match="was cut short while it was read"):
        list(map(checkpoint.read, checkpoint.tensors))


def test_pickled_tensors_that_are_views(tmp_path: Path) -> None:
    rows = torch.arange(12.0).view(3, 4)
    torch.save({"whole": rows, "turned": rows.T, "part": rows[1:, ::2], "half": rows[2].half()}, tmp_path / "a.bin")
    found = {name: read_tensor(info) for name, info in pickled_header(tmp_path / "a.bin").items()}
    assert found["turned"].equal(rows.T)
    assert found["part"].tolist() == [[4, 6], [8, 10]]
    assert found["half"].equal(rows[2].half())
    assert found["whole"].equal(rows)


PICKLES: dict[str, tuple[Callable[[Path], object], str]] = {
    "wrong byte": (
        lambda file: file.write_bytes(file.read_bytes().replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v\xff")),
        "cannot be read|holds more",
    ),
    "integer keys": (lambda file: torch.save({1: torch.ones(2)}, file), "not a flat dictionary of tensors by name"),
    "no data": (lambda file: torch.save({"a": torch.ones(2, device="meta")}, file), "'a' in .* has no data"),
    "sparse": (lambda file: torch.save({"a": torch.eye(2).to_sparse()}, file), "cannot be read|not a flat dictionary"),
    "text": (lambda file: file.write_text("version https://git-lfs.github.com/spec/v1"), "cannot be read: File is not a zip file"),
    "empty": (lambda file: file.write_bytes(b""), "cannot be read"),
}


@pytest.mark.parametrize("case", PICKLES)
def test_damaged_pickles(case: str, tmp_path: Path) -> None:
    damage, sentence = PICKLES[case]
    save_model(tmp_path, binary=True)
    damage(tmp_path / "pytorch_model.bin")
    with pytest.raises(YopoError, match=sentence) as raised:
        open_checkpoint(tmp_path)
    assert raised.value.hint


def header_of(*entries: object) -> bytes:
    text = json.dumps({f"t{index}": entry for index, entry in enumerate(entries)}).encode()
    return len(text).to_bytes(8, "little") + text


def entry(start: object, end: object, shape: object = (2,), dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ([entry(0, 8), entry(4, 12)], "overlap or leave a gap"),
        ([entry(0, 8), entry(0, 8)], "overlap or leave a gap"),
        ([entry(0, 8), entry(16, 24)], "overlap or leave a gap"),
        ([entry(0.0, 8)], "contradicts itself"),
        ([entry(0, 8, (True, 2))], "contradicts itself"),
        ([entry(0, 8, (-1, -2))], "contradicts itself"),
        ([entry(8, 0)], "contradicts itself"),
        ([entry(0, 8, 2)], "contradicts itself"),
        ([entry(0, 8, dtype=["F32"])], "contradicts itself"),
        ([{}], "contradicts itself"),
        ([entry(0, 8) | {"more": 1}], "contradicts itself"),
        ([entry(0, 10**20, (10**20,), "I8")], "truncated"),
    ],
)
def test_headers_that_contradict_themselves(entries: list[object], sentence: str, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(header_of(*entries) + bytes(24))
    with pytest.raises(YopoError, match=sentence):
        read_header(tmp_path / "a.safetensors")


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_checkpoints(case: str, tmp_path: Path) -> None:
    damage, sentence = DAMAGES[case]
    save_model(tmp_path, shards=3)
    damage(tmp_path)
    with pytest.raises(YopoError, match=sentence) as raised:
        open_checkpoint(tmp_path)
    assert raised.value.hint


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this must not be run",)


def test_a_pickle_with_code_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path, binary=True)
    torch.save({"a": Payload()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(YopoError, match="holds more than tensors"):
        open_checkpoint(tmp_path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"abc", pickle.dumps({"a": 1})], ids=["empty", "garbage", "old pickle"])
def test_a_damaged_pickle(content: bytes, tmp_path: Path) -> None:
    save_model(tmp_path, binary=True)
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(YopoError, match=r"pytorch_model\.bin") as raised:
        open_checkpoint(tmp_path)
    assert raised.value.hint


def test_a_truncated_pickle(tmp_path: Path) -> None:
    save_model(tmp_path, binary=True)
    cut(tmp_path / "pytorch_model.bin", -1000)
    with pytest.raises(YopoError, match="cannot be read"):
        open_checkpoint(tmp_path)


def test_a_dense_checkpoint_is_not_a_converted_one(tmp_path: Path) -> None:
    save_model(tmp_path)
    with pytest.raises(YopoError, match="was not written by yopo"):
        open_converted(tmp_path)
