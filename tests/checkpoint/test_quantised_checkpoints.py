"""Checkpoints that are quantised already: converted as they are, read as numbers, or refused with the reason."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import config_of, hub_name, save_model, write_checkpoint
from support.conversions import provenance
from support.tiny import tiny_inputs, tiny_llava
from support.tiny_runtime import text_rows
from torch import Tensor
from typer.testing import CliRunner

import yopo
from converters.checkpoint.convert import convert
from converters.checkpoint.quantised import ByTable
from converters.checkpoint.reader import open_checkpoint, open_converted
from converters.errors import YopoError
from converters.loading import Dtype, load
from converters.planning.compensation import LinearCompensation
from converters.runtime.plan import Grid, LayerPlan, Plan, Sizes
from yopo_cli.app import app

SIZES = Sizes(32, 48, 2, 4, 4, 8)
MOVING = Plan(SIZES, (LayerPlan((0, 2), (2,), (5, 7)), LayerPlan((1, 3), (), ())), (Grid(4, 4),))
INT8 = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True, "dynamic": False}
FP8 = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}
ROWS = {"num_bits": 8, "type": "int", "strategy": "token", "symmetric": True, "dynamic": True}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": True, "dynamic": False}


def scheme(weights: Mapping[str, Any], **others: Any) -> dict[str, Any]:
    """The section of config.json that compressed-tensors writes."""
    group = {
        "targets": ["Linear"],
        "weights": dict(weights),
        "input_activations": dict(ROWS, type=weights["type"]),
        "output_activations": None,
    }
    kind = "int-quantized" if weights["type"] == "int" else "float-quantized"
    facts = {"quant_method": "compressed-tensors", "format": kind, "quantization_status": "compressed", "ignore": ["lm_head"]}
    return {**facts, "config_groups": {"group_0": group}, "kv_cache_scheme": None, **others}


def in_eight_bits(weight: Tensor, kind: str) -> dict[str, Tensor]:
    """A weight and its scales: integers with one for each output, or floats with one for all."""
    if kind == "int8":
        scale = weight.abs().amax(1, keepdim=True) / 127
        return {"weight": (weight / scale).round().to(torch.int8), "weight_scale": scale}
    scale = weight.abs().max()[None] / 448
    return {"weight": (weight / scale).to(torch.float8_e4m3fn), "weight_scale": scale}


def quantised(folder: Path, kind: str) -> Path:
    """A tiny LLaVA whose language model has weights of eight bits, in the layout of the llava-hf repositories."""
    model, config = tiny_llava()
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        module, _, ending = hub_name(name).rpartition(".")
        if "language_model.layers" in name and ending == "weight" and tensor.dim() == 2:
            tensors |= {f"{module}.{part}": value.contiguous() for part, value in in_eight_bits(tensor, kind).items()}
        else:
            tensors[hub_name(name)] = tensor.clone()
    facts = config_of(config) | {"dtype": "float32", "quantization_config": scheme(INT8 if kind == "int8" else FP8)}
    write_checkpoint(folder, facts, tensors)
    return folder


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
    change = ByTable({}, {"shape": [2, 4], "blocksize": 4}, "F32")
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
