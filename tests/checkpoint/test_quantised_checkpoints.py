"""Checkpoints that are quantised already: converted as they are, read as numbers, or refused with the reason."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import config_of, hub_name, save_model, write_checkpoint
from support.conversions import provenance
from support.eight_bits import INT4, INT8, quantised, scheme
from support.tiny import tiny_inputs, tiny_llava
from support.tiny_runtime import text_rows
from typer.testing import CliRunner

import yopo
from converters.checkpoint.config_schema import BlockState
from converters.checkpoint.convert import convert
from converters.checkpoint.header import read_header
from converters.checkpoint.quantised import ByTable, readable
from converters.checkpoint.reader import open_checkpoint, open_converted
from converters.errors import YopoError
from converters.loading import Dtype, load
from converters.planning.compensation import LinearCompensation
from converters.runtime.plan import Grid, LayerPlan, Plan, Sizes
from yopo_cli.app import app

SIZES = Sizes(32, 48, 2, 4, 4, 8)
MOVING = Plan(SIZES, (LayerPlan((0, 2), (2,), (5, 7)), LayerPlan((1, 3), (), ())), (Grid(4, 4),))


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_eight_bits_are_put_in_order_as_they_are(tmp_path: Path, kind: str) -> None:
    base = quantised(tmp_path / "base", kind)
    checkpoint = open_checkpoint(base)
    out = convert(checkpoint, MOVING, tmp_path / "out", provenance(base))
    before, after = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    assert after.keys() == {name for weight in checkpoint.written for name in [weight]}
    prefix, old = "model.language_model.layers.0.", "language_model.model.layers.0."
    neurons = torch.tensor([5, 7, *(number for number in range(48) if number not in (5, 7))])
    gate, down = "mlp.gate_proj.weight", "mlp.down_proj.weight"
    assert after[prefix + gate].view(torch.int8).equal(before[old + gate].view(torch.int8)[neurons])
    assert after[prefix + down].view(torch.int8).equal(before[old + down].view(torch.int8)[:, neurons])
    scales = before[old + gate + "_scale"]
    assert after[prefix + gate + "_scale"].equal(scales[neurons] if kind == "int8" else scales)
    assert after[prefix + down + "_scale"].equal(before[old + down + "_scale"])
    assert open_converted(out).dense_fingerprint() == checkpoint.fingerprint()
    listed = json.loads((out / "config.json").read_text())["quantization_config"]["ignore"]
    assert "lm_head" in listed
    assert "model.multi_modal_projector.linear_1" in listed
    assert not any("mlp.gate_proj" in name for name in listed)


@torch.no_grad()
def test_it_computes_with_the_numbers_that_they_stand_for(tmp_path: Path) -> None:
    base = quantised(tmp_path / "base", "int8")
    save_model(tmp_path / "plain")
    numbers = open_checkpoint(base)
    plain = load_file(tmp_path / "plain" / "model.safetensors")
    save_file({hub_name(name): numbers.read(name) for name in numbers.tensors}, tmp_path / "plain" / "model.safetensors")
    weight = hub_name("model.language_model.layers.1.self_attn.q_proj.weight")
    assert 0 < (numbers.read("model.language_model.layers.1.self_attn.q_proj.weight") - plain[weight]).abs().max() < 0.01
    outs = [convert(open_checkpoint(one), MOVING, tmp_path / f"{one.name}-out", provenance(one)) for one in (base, tmp_path / "plain")]
    from converters.checkpoint.native import converted_model

    ours, same = (converted_model(open_converted(out), torch.float32) for out in outs)
    inputs = tiny_inputs(same.config, (3, 5))
    rows = text_rows(inputs, same.config)
    assert ours(**inputs).logits[rows].equal(same(**inputs).logits[rows])


@pytest.mark.filterwarnings("ignore")  # of the library's own
@torch.no_grad()
def test_transformers_loads_what_was_converted(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForImageTextToText, CompressedTensorsConfig

    from converters.checkpoint.native import converted_model

    base = quantised(tmp_path / "base", "int8")
    refits = {1: LinearCompensation(torch.eye(32), torch.zeros(32))}  # visual tokens have K and V of their own there, in floats
    out = convert(open_checkpoint(base), MOVING, tmp_path / "out", provenance(base), refits=refits)
    yopo.register()
    theirs, ours = AutoModelForImageTextToText.from_pretrained(out).eval(), converted_model(open_converted(out), torch.float32)
    inputs = tiny_inputs(ours.config, (3, 5))
    expected = ours(**inputs).logits
    error = (theirs(**inputs).logits - expected).abs().mean() / expected.abs().mean()
    assert 0 < error < 0.1  # they round rows too
    assert "projections are called whole" in theirs.path_report()
    numbers = AutoModelForImageTextToText.from_pretrained(out, quantization_config=CompressedTensorsConfig(dequantize=True)).eval()
    torch.testing.assert_close(numbers(**inputs).logits, expected, atol=1e-4, rtol=1e-4)
    assert "called whole" not in numbers.path_report()


def test_four_bits_are_read_as_numbers() -> None:
    """Eight numbers of four bits, the higher half of a byte first; a scale for each row of four."""
    change = ByTable({}, BlockState(shape=[2, 4], blocksize=4), "F32")
    table, scales = torch.arange(16.0) - 8, torch.tensor([1.0, 0.5])
    numbers = change.of(torch.tensor([[0x8F], [0x07], [0x9A], [0xF8]], dtype=torch.uint8), table, scales)
    assert numbers.tolist() == [[0, 7, -8, -1], [0.5, 1, 3.5, 0]]


@pytest.mark.filterwarnings("ignore")  # of the library's own
@pytest.mark.parametrize("bits", [4, 8])
def test_a_checkpoint_of_bitsandbytes_is_read_as_it_computes(tmp_path: Path, bits: int) -> None:
    library = pytest.importorskip("bitsandbytes")
    model, config = tiny_llava(hidden=64)  # a whole block
    options: dict[str, Any] = {"compress_statistics": True, "quant_type": "nf4"} if bits == 4 else {"has_fp16_weights": False}
    make = library.nn.Linear4bit if bits == 4 else library.nn.Linear8bitLt
    name = "model.language_model.layers.0.mlp.up_proj"
    plain = model.get_submodule(name)
    layer = make(plain.in_features, plain.out_features, False, **options)
    layer.load_state_dict(plain.state_dict())
    layer.to("cpu")
    model.set_submodule(name, layer)
    tensors = {hub_name(key): value.contiguous() for key, value in model.state_dict().items()}
    write_checkpoint(tmp_path, config_of(config) | {"dtype": "float32", "quantization_config": {"quant_method": "bitsandbytes"}}, tensors)
    checkpoint = open_checkpoint(tmp_path)
    assert "quantization_config" not in checkpoint.config
    assert checkpoint.written == checkpoint.tensors
    if bits == 4:
        expected = library.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    else:
        expected = library.functional.int8_vectorwise_dequant(layer.weight.CB, layer.weight.SCB)
    torch.testing.assert_close(checkpoint.read(f"{name}.weight"), expected.float(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"quant_method": "gptq"}, r"is quantised \(gptq\): GPTQ shares a scale among neighbouring inputs: pruning puts neurons in"),
        ({"quant_method": "awq"}, r"is quantised \(awq\): AWQ shares a scale"),
        ({"quant_method": "hqq"}, r"is quantised \(hqq\)\."),
        (scheme(INT4), r"is quantised \(compressed-tensors, 4 bits int, a scale for each group\)"),
        (scheme(INT8, format="pack-quantized"), r"is quantised \(compressed-tensors, pack-quantized\), which is not read"),
        (scheme(INT8, kv_cache_scheme={"num_bits": 8}), r"\(compressed-tensors, int-quantized, kv_cache_scheme\)"),
    ],
)
def test_what_shares_scales_among_inputs_is_refused(tmp_path: Path, section: dict[str, Any], sentence: str) -> None:
    save_model(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": section}))
    with pytest.raises(YopoError, match=sentence) as raised:
        open_checkpoint(tmp_path / "model")
    assert "quantise what yopo writes when you load it" in (raised.value.hint or "")


def test_a_dtype_that_is_not_told(tmp_path: Path) -> None:
    """Configs with `torch_dtype: null` are on the Hub."""
    save_model(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    for name in ("dtype", "torch_dtype"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {name: None}))
        assert open_checkpoint(tmp_path / "model").tensors


@pytest.mark.parametrize(
    ("groups", "sentence"),
    [
        ([1], "quantization_config.config_groups is"),
        ({"a": 3}, "quantization_config.config_groups.a is 3, but"),
        ({"a": {"weights": [1]}}, "quantization_config.config_groups.a.weights is"),
        ({"a": {"weights": INT8, "input_activations": "x"}}, "quantization_config.config_groups.a.input_activations is 'x', but"),
    ],
)
def test_sections_of_other_types(tmp_path: Path, groups: Any, sentence: str) -> None:
    save_model(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": scheme(INT8, config_groups=groups)}))
    with pytest.raises(YopoError, match=sentence):
        open_checkpoint(tmp_path / "model")


FOUR = {"weight": (4, 1), "weight.absmax": (2,), "weight.quant_map": (16,)}
NESTED = FOUR | {"weight.absmax": (2,), "weight.nested_absmax": (1,), "weight.nested_quant_map": (256,)}
TOLD: dict[str, Any] = {"shape": [2, 4], "blocksize": 4}


@pytest.mark.parametrize(
    ("told", "shapes", "sentence"),
    [
        (TOLD, FOUR, None),
        (TOLD | {"nested_blocksize": 2, "nested_offset": 0.5}, NESTED, None),
        (TOLD, NESTED, "does not tell how its scales are quantised"),
        (TOLD | {"nested_blocksize": 1, "nested_offset": 0.5}, NESTED, "nested_absmax' has shape"),
        (TOLD | {"shape": [2, 6]}, FOUR, "weight' has shape"),
        (TOLD | {"blocksize": 2}, FOUR, "absmax' has shape"),
        (TOLD | {"blocksize": 0}, FOUR, "blocksize is 0, but"),
        (TOLD, FOUR | {"weight.quant_map": (8,)}, "quant_map' has shape"),
        ("{", FOUR, "is not JSON"),
    ],
)
def test_four_bits_are_held_against_what_is_told_of_them(tmp_path: Path, told: Any, shapes: Any, sentence: str | None) -> None:
    text = told if isinstance(told, str) else json.dumps(told)
    tensors = {f"m.{name}": torch.zeros(shape, dtype=torch.uint8) for name, shape in shapes.items()}
    state = "weight.quant_state.bitsandbytes__nf4"
    save_file(tensors | {f"m.{state}": torch.tensor(list(text.encode()), dtype=torch.uint8)}, tmp_path / "file.safetensors")
    header = read_header(tmp_path / "file.safetensors")
    parts = {name.removeprefix("m."): info for name, info in header.items() if name != "m.weight"}
    given = {"m.weight": header["m.weight"]}, {"m.weight": parts}, {}
    if sentence is None:
        assert readable(*given)["m.weight"].shape == (2, 4)
    else:
        with pytest.raises(YopoError, match=sentence):
            readable(*given)


@pytest.mark.parametrize("ending", ["weight_scale", "weight_zero_point"])
def test_scales_that_are_not_one_for_each_output(tmp_path: Path, ending: str) -> None:
    tensors = {"weight": torch.zeros(4, 6, dtype=torch.int8), "weight_scale": torch.ones(4, 1), "weight_zero_point": torch.zeros(4, 1)}
    save_file(tensors | {ending: torch.ones(3, 1)}, tmp_path / "file.safetensors")
    header = read_header(tmp_path / "file.safetensors")
    with pytest.raises(YopoError, match=rf"'{ending}' has shape \[3, 1\], its weight \[4, 6\]"):
        readable({"m.weight": header.pop("weight")}, {"m.weight": header}, {})


def test_a_weight_without_its_scales_is_refused(tmp_path: Path) -> None:
    base = quantised(tmp_path / "base", "int8")
    tensors = load_file(base / "model.safetensors")
    del tensors["language_model.model.layers.0.mlp.up_proj.weight_scale"]
    save_file(tensors, base / "model.safetensors")
    with pytest.raises(YopoError, match=r"up_proj.weight' in model.safetensors has dtype I8: it is quantised"):
        open_checkpoint(base)


def test_what_cannot_be_done_with_integers_is_refused(tmp_path: Path) -> None:
    base = quantised(tmp_path / "base", "int8")
    out = convert(open_checkpoint(base), MOVING, tmp_path / "out", provenance(base))
    assert yopo.inspect(base).quantised == yopo.inspect(out).quantised == "compressed-tensors"
    shown = CliRunner().invoke(app, ["inspect", str(base)])
    assert "a dense LLaVA-1.5, quantised (compressed-tensors): 2 layers" in " ".join(shown.stdout.split())
    with pytest.raises(YopoError, match="is quantised, and graphs round weights themselves"):
        yopo.export(yopo.load(out), tmp_path / "graphs")
    with pytest.raises(YopoError, match="is quantised, and healing teaches weights"):
        yopo.heal(yopo.load(out), "demo", tmp_path / "healed")
    with pytest.raises(YopoError, match="has no processor"):
        load(out, "cpu", Dtype.FLOAT32)
