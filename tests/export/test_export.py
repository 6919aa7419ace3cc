"""Exports for onnxruntime: graphs that are the runtime's equal, over the checkpoint's own bytes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from support import tiny_families as families
from support.conversions import load
from support.exports import GRID, assert_equal, converted, decoders
from support.tiny import tiny_inputs, tiny_llava
from transformers import BatchFeature

from converters.checkpoint.reader import open_checkpoint, open_converted
from converters.errors import YopoError
from converters.export.graph.builder import Graph
from converters.export.graph.precision import BLOCK, eight_bit_columns, four_bit_blocks, precision_of
from converters.export.graph.text import Rotary
from converters.export.graph.weights import Store, Weight
from converters.export.onnx import manifest, onnxruntimes
from converters.export.onnx import target as onnxruntime_target
from converters.export.onnx.parity import compare
from converters.export.onnx.prompts import arrange, grid_of
from converters.export.onnx.session import open_export
from converters.export.onnx.target import WEIGHTS, export
from converters.export.request import ExportRequest
from converters.runtime.plan import Grid


def request(out: Path, **options: Any) -> ExportRequest:
    opened = open_converted(out)
    checkpoint = opened.open_tensors()
    return ExportRequest(checkpoint, opened.plan, options.pop("grids", checkpoint.grids), **options)


def words(inputs: Mapping[str, Any]) -> BatchFeature:
    """The prompts with words in the place of pictures."""
    ids = inputs["input_ids"]
    return BatchFeature({"input_ids": ids.where(ids < 60, 5), "attention_mask": inputs["attention_mask"]})


@pytest.mark.parametrize(("seed", "opset"), [(0, 23), (1, 23), (2, 18), (3, 25)])
def test_llavas_decoder_is_the_runtimes(tmp_path: Path, seed: int, opset: int) -> None:
    model, config = tiny_llava(layers=3, kv_heads=2 if seed % 2 else 4, attention_bias=seed == 0, seed=seed)
    out = converted(tmp_path, model, seed)
    exported, own = decoders(out, GRID, opset), load(out)
    for inputs in (tiny_inputs(config, (5, 7)), tiny_inputs(config, (6, 3), (0, 9)), tiny_inputs(config, (4, 3), (2, 2), images=2)):
        assert_equal(exported, own, inputs, GRID)
    assert_equal(exported, own, tiny_inputs(config, (4, 7), (1, 3), images=0), None)


@pytest.mark.parametrize("seed", [0, 1])
def test_qwen2_vls_decoder_is_the_runtimes(tmp_path: Path, seed: int) -> None:
    out = converted(tmp_path, families.tiny_qwen(tied=seed == 1), seed, Grid(3, 4))
    exported, own = decoders(out, Grid(3, 4)), load(out)
    for samples in ([[(1, 3, 4)]], [[(1, 3, 4)], [(1, 3, 4), (1, 3, 4)], []]):
        inputs, _ = families.qwen_inputs(*samples)
        assert_equal(exported, own, inputs, Grid(3, 4))
    assert_equal(exported, own, words(inputs), None)


def test_qwen3_vls_decoder_is_the_runtimes(tmp_path: Path) -> None:
    """Features that are added after the first layers, interleaved RoPE, norms of heads."""
    for seed, folder in enumerate((tmp_path / "one", tmp_path / "other")):
        out = converted(folder, families.tiny_qwen(kind="qwen3_vl"), seed, Grid(3, 4))
        exported, own = decoders(out, Grid(3, 4)), load(out)
        for samples in ([[(1, 3, 4)]], [[(1, 3, 4)], [(1, 3, 4), (1, 3, 4)], []]):
            inputs, _ = families.qwen_inputs(*samples)
            assert_equal(exported, own, inputs, Grid(3, 4))
        assert_equal(exported, own, words(inputs), None)


@pytest.mark.parametrize("text", ["llama", "mistral", "qwen2"])
def test_pictures_of_two_grids(tmp_path: Path, text: str) -> None:
    """LLaVA-NeXT and LLaVA-OneVision: the whole picture, then rows with ends."""
    for seed, folder in enumerate((tmp_path / "one", tmp_path / "other")):
        out = converted(folder, families.tiny_next(text), seed, Grid(6, 9))
        exported, own = decoders(out, Grid(6, 9)), load(out)
        for samples in ([[(24, 32)]], [[(24, 32)], [], [(24, 32)]]):
            assert_equal(exported, own, families.next_inputs(*samples, counted=text == "qwen2")[0], Grid(6, 9))
        assert_equal(exported, own, families.next_inputs([], [])[0], None)


def test_frequencies_take_turns() -> None:
    """Qwen3-VL's: rows and columns as long as they have some left, time in all other places."""
    assert Rotary((1.0,) * 8, 1.0, (4, 2, 2), 10, interleaved=True).axes == [0, 1, 2, 0, 1, 2, 0, 0]
    assert Rotary((1.0,) * 4, 1.0, (2, 1, 1), 10).axes == [0, 0, 1, 2]


def test_qwen2_vls_videos(tmp_path: Path) -> None:
    grid = Grid(3, 4, 2)
    out = converted(tmp_path, families.tiny_qwen(), 2, grid)
    inputs, _ = families.qwen_inputs([(2, 3, 4)], [(2, 3, 4)])
    assert_equal(decoders(out, grid), load(out), inputs, grid)


@pytest.mark.parametrize("text", ["llama", "qwen2", "qwen3", "phi3"])
def test_internvls_decoder_is_the_runtimes(tmp_path: Path, text: str) -> None:
    out = converted(tmp_path, families.tiny_internvl(text), 4)
    exported, own = decoders(out, GRID), load(out)
    for tiles in ((1,), (2, 1), (0, 3)):
        assert_equal(exported, own, families.internvl_inputs(*tiles), GRID)
    assert_equal(exported, own, families.internvl_inputs(0, 0), None)


def test_weights_are_byte_ranges_of_the_checkpoint(tmp_path: Path) -> None:
    """Slices overlap their matrices; what is written beside is what visual rows need of columns alone, and the graphs are small."""
    model, _ = tiny_llava(layers=3, heads=4, intermediate=48)
    out = converted(tmp_path, model, 0)
    decoders(out, GRID)
    graph = onnx.load(out / "prefill.onnx", load_external_data=False).graph
    places = {one.name: {entry.key: entry.value for entry in one.external_data} for one in graph.initializer if one.external_data}
    parts = {name: place for name, place in places.items() if "[0:" in name}
    assert parts
    for name, place in parts.items():
        whole = places[name.partition("[")[0]]
        assert (place["location"], place["offset"]) == (whole["location"], whole["offset"]) == ("model.safetensors", whole["offset"])
        assert int(place["length"]) < int(whole["length"])
    written = {name for name, place in places.items() if place["location"] == WEIGHTS}
    assert written
    assert all(name.endswith(("visual_columns", "visual_rows")) for name in written)
    assert sum(len(one.raw_data) for one in graph.initializer if not one.external_data) < 20_000


def test_four_bits_are_onnxruntimes_own(tmp_path: Path) -> None:
    """A product equals the one with the weights that the packed numbers stand for; part of the rows is part of the bytes."""
    model, _ = tiny_llava(hidden=2 * BLOCK, heads=4, intermediate=96)
    model.save_pretrained(tmp_path)
    store = Store(open_checkpoint(tmp_path), tmp_path, WEIGHTS, beside=True)
    weight = Weight("model.language_model.layers.0.mlp.gate_proj.weight")
    matrix = store.read(weight).numpy()
    packed, scales = four_bit_blocks(matrix)
    numbers = np.stack([packed & 15, packed >> 4], -1).reshape(*matrix.shape).astype(np.float32) - 8
    rounded = (numbers.reshape(len(matrix), -1, BLOCK) * scales[..., None]).reshape(matrix.shape)
    assert np.abs(rounded - matrix).max() <= np.abs(scales).max()
    rows = np.random.default_rng(0).standard_normal((5, 2 * BLOCK), np.float32)
    for part in (weight, weight.part(0, 32), weight.part(32, 96)):
        found = product(tmp_path, store, 4, part, rows)
        expected = rows @ rounded[part.first : part.last].T
        assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()  # activations are rounded to 8 bits
    assert store.added_bytes == packed.nbytes + scales.nbytes


def test_eight_bits_are_onnxruntimes_own(tmp_path: Path) -> None:
    from onnxruntime.quantization.quant_utils import quantize_data

    model, _ = tiny_llava()
    model.save_pretrained(tmp_path)
    store = Store(open_checkpoint(tmp_path), tmp_path, WEIGHTS, beside=True)
    weight = Weight("model.language_model.layers.0.mlp.gate_proj.weight")
    matrix = store.read(weight).numpy()
    integers, scales = eight_bit_columns(matrix)
    for row, column, scale in zip(matrix, integers.T, scales, strict=True):
        _, expected, numbers = quantize_data(row, onnx.TensorProto.INT8, symmetric=True, reduce_range=True)
        np.testing.assert_array_equal(column, numbers)
        assert scale == pytest.approx(expected, rel=1e-6)
    rows = np.random.default_rng(0).standard_normal((5, 32), np.float32)
    found = product(tmp_path, store, 8, weight, rows)
    expected = rows @ (integers.astype(np.float32) * scales).astype(np.float32)
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def product(folder: Path, store: Store, bits: int | None, weight: Weight, rows: Any) -> Any:
    """Rows times a weight, in a graph of its own."""
    graph = Graph("product", 23, ir.DataType.FLOAT, store, precision_of(bits))
    given = graph.input("rows", ir.DataType.FLOAT, ("rows", rows.shape[1]))
    graph.output(graph.linear(given, weight), "product", ir.DataType.FLOAT, ("rows", "out"))
    store.finish()
    ir.save(graph.model({}, folder), folder / "product.onnx")
    return onnxruntimes.session(folder / "product.onnx").run(None, {"rows": rows})[0]


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "internvl qwen3", "next", "smolvlm"])
def test_exports_answer_as_pytorch_does(tmp_path: Path, family: str) -> None:
    """Whole exports, tower included: 20 greedy tokens of single, batched and text-only prompts; nothing of this machine is in them."""
    grid = Grid(3, 4) if family.startswith("qwen") else GRID
    if family == "llava":
        model, config = tiny_llava(layers=3)
        prompts = {
            "single": tiny_inputs(config, (5, 7)),
            "batch": tiny_inputs(config, (6, 3), (0, 9)),
            "text": tiny_inputs(config, (4, 7), images=0),
        }
    elif family.startswith("qwen"):
        model = families.tiny_qwen(kind=family)
        prompts = {"single": families.qwen_inputs([(1, 3, 4)])[0], "batch": families.qwen_inputs([(1, 3, 4)], [(1, 3, 4)])[0]}
        prompts["text"] = words(prompts["batch"])
    elif family == "next":
        grid, size, model, given = Grid(6, 9), (24, 32), families.tiny_next(), families.next_inputs
        prompts = {"single": given([size])[0], "batch": given([size], [size])[0], "text": given([])[0]}
    elif family == "smolvlm":
        model = families.tiny_smol()
        prompts = {"single": families.smol_inputs(1), "batch": families.smol_inputs(2, 1), "text": families.smol_inputs(0, 0)}
    else:
        model = families.tiny_internvl("qwen3" if family.endswith("qwen3") else "llama")
        prompts = {"single": families.internvl_inputs(1), "batch": families.internvl_inputs(2, 1), "text": families.internvl_inputs(0, 0)}
    out = converted(tmp_path, model, 1, grid)
    own = load(out)
    report = export(request(out, grids=(grid,), compare=lambda exported: compare(exported, own, prompts)))
    assert report.parity is not None
    for name, found in report.parity["prompts"].items():
        assert found["equal_tokens"] == found["all_tokens"] == 20 * len(prompts[name]["input_ids"]), name
    assert manifest.read(out).report["parity"] == json.loads(json.dumps(report.parity))
    for file in (out / name for name in report.files if name.endswith(".onnx")):
        text = file.read_bytes()
        assert not any(word in text for word in (str(out).encode(), b"site-packages", b"torch", b"converters/"))
        told = {entry.key: entry.value for entry in onnx.load(file, load_external_data=False).metadata_props}
        assert told["yopo.grids"] == str(grid)
        assert json.loads(told["yopo.plan"])["schema"] == 1


def test_videos_with_a_frame_rate_are_refused(tmp_path: Path) -> None:
    out = converted(tmp_path, families.tiny_qwen(kind="qwen2_5_vl"), 2, Grid(3, 4, 2))
    with pytest.raises(YopoError, match="know no frame rate"):
        export(request(out, grids=(Grid(3, 4, 2),)))
    assert not list(out.glob("*.onnx"))


def test_an_export_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_target, "_towers", lambda request, model: {})  # tracing takes seconds
    model, _ = tiny_llava()
    out = converted(tmp_path, model, 0)
    before = sorted(file.name for file in out.iterdir())

    def fails(folder: Path) -> Mapping[str, Any]:
        raise YopoError("They differ.")

    with pytest.raises(YopoError, match="They differ"):
        export(request(out, compare=fails))
    assert sorted(file.name for file in out.iterdir()) == before


def test_weights_that_are_links_are_refused(tmp_path: Path) -> None:
    """As in a hub's cache: onnx's checker refuses them."""
    out = converted(tmp_path, tiny_llava()[0], 0)
    (out / "model.safetensors").rename(tmp_path / "blob")
    (out / "model.safetensors").symlink_to(tmp_path / "blob")
    with pytest.raises(YopoError, match=r"model.safetensors is a link") as raised:
        export(request(out))
    assert "-o" in raised.value.hint


@pytest.mark.parametrize(
    ("sizes", "grids", "message"),
    [
        ([[1, 6, 8], [1, 6, 6]], [Grid(3, 4)], "Pictures of 2 grids in one batch: 3x3, 3x4."),
        ([[1, 6, 6]], [Grid(3, 4), Grid(4, 4)], "The grid 3x3 was not exported; there is 3x4, 4x4."),
        (None, [Grid(3, 4), Grid(4, 4)], "2 grids were exported and the pictures' is not told."),
    ],
)
def test_pictures_of_other_grids_are_refused(sizes: Any, grids: list[Grid], message: str) -> None:
    with pytest.raises(YopoError) as raised:
        grid_of(sizes, 2, grids)
    assert raised.value.message == message


def test_images_that_are_not_whole_are_refused() -> None:
    ids = np.array([[5, 63, 63, 63, 7]])
    with pytest.raises(YopoError, match="3 image tokens, which are no whole images of 16"):
        arrange(ids, np.ones_like(ids), ids == 63, GRID, multimodal=False)


def test_two_distributions_of_onnxruntime_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntimes, "installed", lambda: {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"})
    with pytest.raises(YopoError, match=r"onnxruntime 1.32.0 and onnxruntime-gpu 1.31.1 are both installed") as raised:
        onnxruntimes.onnxruntime()
    assert "pip uninstall onnxruntime onnxruntime-gpu" in raised.value.hint


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_an_error_unless_allowed(tmp_path: Path) -> None:
    model, _ = tiny_llava()
    model.save_pretrained(tmp_path)
    store = Store(open_checkpoint(tmp_path), tmp_path, WEIGHTS, beside=True)
    product(tmp_path, store, None, Weight("lm_head.weight"), np.zeros((1, 32), np.float32))
    file = tmp_path / "product.onnx"
    with pytest.raises(YopoError, match=r"cuda was asked for, but onnxruntime runs product.onnx with CPUExecutionProvider"):
        onnxruntimes.session(file, "cuda")
    assert onnxruntimes.session(file, "cuda", allow_cpu=True).get_providers() == ["CPUExecutionProvider"]
    with pytest.raises(YopoError, match="not run on 'mps'"):
        onnxruntimes.session(file, "mps")


def test_what_is_no_export(tmp_path: Path) -> None:
    with pytest.raises(YopoError, match="holds no export for onnxruntime"):
        open_export(tmp_path)
    (tmp_path / manifest.MANIFEST).write_text('{"schema": 7}')
    with pytest.raises(YopoError, match="has the schema 7, this version reads 1"):
        open_export(str(tmp_path))
