"""Graphs for onnxruntime-genai and transformers.js: their contracts, obeyed in a loop over ONNX Runtime, against the PyTorch runtime."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.checkpoints import config_of, save_model, write_checkpoint
from support.conversions import load, provenance
from support.decoder_sessions import GRID, assert_same_answers, decoder, embedded
from support.random_plans import random_plan
from support.tiny import tiny_inputs
from support.tiny_families import internvl_inputs, tiny_internvl

from converters.checkpoint.convert import convert
from converters.checkpoint.manifest import MANIFEST, changed_files, read_manifest
from converters.checkpoint.reader import Checkpoint, open_checkpoint, open_converted
from converters.data.demo.shapes import samples
from converters.data.prompts import encode, prompt
from converters.errors import YopoError
from converters.export.graph import single
from converters.export.graph.slots import slots
from converters.export.graph.text import text_model
from converters.export.onnx.parity import compare
from converters.export.packages import genai, transformers_js
from converters.export.request import ExportReport, ExportRequest
from converters.families import FAMILIES
from converters.loading import Dtype, demo_folder
from converters.loading import load as load_for_answers
from converters.runtime.plan import Grid, Plan


def converted(folder: Path, plan_seed: int, **sizes: Any) -> tuple[Checkpoint, Plan, Any]:
    """A tiny LLaVA under a random plan: its tensors, the plan, and the PyTorch runtime."""
    save_model(folder / "base", **sizes)
    base = open_checkpoint(folder / "base")
    out = convert(base, random_plan(base.sizes, plan_seed, (GRID,)), folder / "out", provenance(folder / "base"))
    opened = open_converted(out)
    return opened.open_tensors(), opened.plan, load(out)


@pytest.mark.parametrize(
    ("seed", "sizes"), [(0, {"layers": 4}), (3, {"layers": 4, "kv_heads": 2}), (8, {"layers": 3, "attention_bias": True})]
)
def test_one_graph_serves_every_call(tmp_path: Path, seed: int, sizes: dict[str, Any]) -> None:
    """Pictures, several of them, padded batches, text alone: with short cache slots and with padded ones."""
    checkpoint, plan, model = converted(tmp_path, seed, **sizes)
    prompts = [
        tiny_inputs(model.config, (5, 4)),
        tiny_inputs(model.config, (3, 6), (1, 2), images=2),
        tiny_inputs(model.config, (4, 4), (2, 1), images=0),
    ]
    for padded in (False, True):
        run = decoder(tmp_path, checkpoint, plan, padded)
        caches = [assert_same_answers(run, model, inputs) for inputs in prompts]
        lengths = {value.shape[2] for value in caches[0].values()}
        assert lengths == {28} if padded else min(lengths) >= 12  # 9 text tokens, 16 visual ones, 3 more
        held = sum(value.nbytes for value in caches[0].values())
        assert held == single.cache_bytes(text_model(checkpoint, plan), GRID, 12, 4, padded)


def test_tiles_of_internvl_in_padded_slots(tmp_path: Path) -> None:
    """A picture of three tiles: as many images of one grid."""
    dense = tiny_internvl("qwen2")
    write_checkpoint(tmp_path / "base", config_of(dense.config) | {"architectures": [type(dense).__name__]}, dict(dense.state_dict()))
    base = open_checkpoint(tmp_path / "base")
    out = convert(base, random_plan(base.sizes, 4, (GRID,)), tmp_path / "out", provenance(tmp_path / "base"))
    opened, model = open_converted(out), load(out)
    run = decoder(tmp_path, opened.open_tensors(), opened.plan, True)
    for tiles in (1,), (3,), (0,):
        assert_same_answers(run, model, internvl_inputs(*tiles))


def test_dense_models_have_text_rows_only(tmp_path: Path) -> None:
    model = save_model(tmp_path / "base")
    run = decoder(tmp_path, open_checkpoint(tmp_path / "base"), None, False)
    cache = assert_same_answers(run, model, tiny_inputs(model.config, (3, 4), (2, 1)))
    assert {value.shape for value in cache.values()} == {(2, 1, 26, 1), (2, 4, 26, 8)}


def test_contract_of_the_decoder(tmp_path: Path) -> None:
    """What transformers.js reads from the inputs: a batch of this name, numbers for heads and sizes, a first slot of every token."""
    checkpoint, plan, _ = converted(tmp_path, 1, layers=3)
    run = decoder(tmp_path, checkpoint, plan, False)
    owned = slots(text_model(checkpoint, plan))
    numbers = sorted({int(name.split(".")[1]) for name in run.past})
    assert numbers == list(range(len(owned) + 1))
    assert all(value.shape[0] == "batch_size" for value in run.past.values())
    assert run.past["past_key_values.0.key"].shape[1::2] == [1, 1]
    assert [run.past[f"past_key_values.{slot.number + 1}.key"].shape[1] for slot in owned] == [slot.heads for slot in owned]
    assert {value.name for value in run.session.get_inputs()} - run.past.keys() == {"inputs_embeds", "attention_mask", "position_ids"}
    logits, *rest = run.session.get_outputs()
    assert (logits.name, logits.shape) == ("logits", ["batch_size", 1, 64])
    assert {value.name for value in rest} == {name.replace("past_key_values", "present") for name in run.past}


def test_what_does_not_fit_fails(tmp_path: Path) -> None:
    """A picture after the first call, half a picture, and samples with different numbers of pictures: never a wrong answer."""
    checkpoint, plan, model = converted(tmp_path, 1)
    run = decoder(tmp_path, checkpoint, plan, False)
    inputs = tiny_inputs(model.config, (3, 4))
    with torch.inference_mode():
        embeds = embedded(model, inputs)
    _, past = run(embeds, np.ones((1, 23), np.int64), None)
    with pytest.raises(Exception, match="pictures_come_with_the_first_call_only"):
        run(embeds, np.ones((1, 46), np.int64), past)
    half = np.concatenate([embeds[:, :10], embeds[:, -4:]], 1)
    for wrong in (half, np.concatenate([embeds, embeds * np.array([*[1] * 32, 0], np.float32)])):
        with pytest.raises(Exception, match="Reshape"):
            run(wrong, np.ones(wrong.shape[:2], np.int64), None)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> ExportRequest:
    """The demo under a plan that reads by turns and drops heads, ready to be exported."""
    folder = tmp_path_factory.mktemp("demo")
    base = open_checkpoint(demo_folder())
    out = convert(base, random_plan(base.sizes, 5, base.grids), folder / "out", provenance(demo_folder()))
    opened = open_converted(out)
    checkpoint = opened.open_tensors()
    return ExportRequest(checkpoint, opened.plan, checkpoint.grids)


def compared(demo: ExportRequest) -> ExportRequest:
    """To be held against the PyTorch runtime on a picture, on two of them in a batch, and on words alone."""
    loaded = load_for_answers(demo.checkpoint.path, "cpu", Dtype.FLOAT32)
    asked = list(samples(3, 0, "eval"))

    def batch(some: list[Any], pictures: int) -> Any:
        return encode(
            loaded.processor, [prompt(loaded.processor, one.question, pictures) for one in some], [one.image for one in some] * pictures
        )

    prompts = {"single": batch(asked[:1], 1), "batch": batch(asked[1:], 1), "text": batch(asked, 0)}
    return replace(demo, compare=lambda run: compare(run, loaded.model, prompts, tokens=6))


def assert_equal(folder: Path, report: ExportReport) -> None:
    """Every greedy token is the PyTorch runtime's, and the package says so."""
    assert report.parity is not None
    found = report.parity["prompts"]
    assert {name: (one["equal_tokens"], one["largest_difference"] < 1e-3) for name, one in found.items()} == {
        "single": (6, True), "batch": (12, True), "text": (18, True)
    }  # fmt: skip
    assert json.loads((folder / "export_report.json").read_text())["parity"] == report.parity


@pytest.mark.slow
def test_transformers_js_package(demo: ExportRequest, tmp_path: Path) -> None:
    folder = tmp_path / "js"
    report = transformers_js.export(replace(compared(demo), output=folder))
    assert_equal(folder, report)
    config = json.loads((folder / "config.json").read_text())
    assert demo.plan is not None
    assert config["text_config"]["num_hidden_layers"] == 1 + len(slots(text_model(demo.checkpoint, demo.plan)))
    assert config["model_type"] == "llava"
    sessions = ("embed_tokens", "decoder_model_merged", "vision_encoder")
    assert config["transformers.js_config"]["use_external_data_format"] == dict.fromkeys(sessions, 1)
    graphs = {f"{name}.onnx{ending}" for name in sessions for ending in ("", "_data")}
    assert {file.name for file in (folder / "onnx").iterdir()} == graphs
    assert "USER: " in json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    # The library adds this to rows * columns, and the tower gives no more than these.
    assert json.loads((folder / "processor_config.json").read_text())["num_additional_image_tokens"] == 0
    assert 0 < report.copied_bytes < report.checkpoint_bytes  # less what nothing reads: the last layer of the tower
    assert str(tmp_path).encode() not in b"".join((folder / "onnx" / f"{name}.onnx").read_bytes() for name in sessions)


@pytest.mark.slow
def test_genai_package(demo: ExportRequest, tmp_path: Path) -> None:
    folder = tmp_path / "genai"
    report = genai.export(replace(compared(demo), output=folder))
    assert_equal(folder, report)
    config = json.loads((folder / "genai_config.json").read_text())["model"]
    assert (config["type"], config["eos_token_id"], config["pad_token_id"]) == ("phi3v", 2, 3)
    assert config["decoder"]["hidden_size"] == 129  # with the flag
    assert all((folder / config[part]["filename"]).is_file() for part in ("vision", "embedding", "decoder"))
    assert {*report.files, MANIFEST} == {file.name for file in folder.iterdir()}
    assert changed_files(folder, read_manifest(folder)) == ()


@pytest.mark.slow
def test_genai_beside_the_weights(demo: ExportRequest, tmp_path: Path) -> None:
    """The graphs refer to the checkpoint's own file; only columns that visual rows use are written anew."""
    report = genai.export(compared(demo))
    assert_equal(demo.checkpoint.path, report)
    assert report.copied_bytes == 0
    assert report.added_bytes < report.checkpoint_bytes


def test_refusals(demo: ExportRequest, tmp_path: Path) -> None:
    families = {family.name: family for family in FAMILIES}
    others = {name: replace(demo, checkpoint=replace(demo.checkpoint, family=families[name])) for name in ("InternVL", "Qwen2-VL")}
    cases = [
        (transformers_js, others["InternVL"], "transformers.js cannot be given a InternVL"),
        (genai, others["Qwen2-VL"], "onnxruntime-genai cannot be given a Qwen2-VL"),
        (transformers_js, demo, "A transformers.js package has a config.json of its own"),
        (genai, replace(demo, grids=(Grid(3, 3),)), "LLaVA-1.5 has pictures of one grid, 12x12"),
    ]
    for module, request, sentence in cases:
        with pytest.raises(YopoError, match=sentence) as caught:
            module.export(request)
        assert caught.value.hint
