"""Pruned models whose weights are quantised: parts have the whole's numbers, and visual rows go through parts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny import tiny_inputs, tiny_llava
from support.tiny_runtime import PROMPTS, converted, random_plan, text_rows
from torch import Tensor, nn

from converters.runtime.projection import Adapted, Called, Plain, own_projection, projection
from converters.runtime.quantised import CUT, Quantised

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries' own, which differ between versions

Quantiser = Callable[[nn.Module], None]


def by_torchao(config: Callable[[Any], Any]) -> Quantiser:
    def quantise(model: nn.Module) -> None:
        library = pytest.importorskip("torchao.quantization")
        library.quantize_(model, config(library))

    return quantise


def opaque(_: Any) -> Any:
    return pytest.importorskip("torchao.prototype.quantization.int4").PrototypeInt4WeightOnlyConfig(group_size=32)


def by_bitsandbytes(make: Callable[[Any, nn.Linear], Any]) -> Quantiser:
    def quantise(model: nn.Module) -> None:
        library = pytest.importorskip("bitsandbytes")
        for name, module in list(model.named_modules()):
            if type(module) is nn.Linear:
                layer = make(library.nn, module)
                layer.load_state_dict(module.state_dict())
                model.set_submodule(name, layer.to("cpu").eval())

    return quantise


def four_bits(library: Any, module: nn.Linear, nested: bool = True) -> Any:
    return library.Linear4bit(
        module.in_features, module.out_features, module.bias is not None, compress_statistics=nested, quant_type="nf4"
    )


def eight_bits(library: Any, module: nn.Linear, threshold: float = 0.0) -> Any:
    return library.Linear8bitLt(
        module.in_features, module.out_features, module.bias is not None, has_fp16_weights=False, threshold=threshold
    )


def dynamically(model: nn.Module) -> None:
    torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8, inplace=True)


QUANTISERS: dict[str, tuple[Quantiser, float]] = {
    "torchao int8": (by_torchao(lambda library: library.Int8WeightOnlyConfig()), 1e-4),
    "torchao int8, rows too": (by_torchao(lambda library: library.Int8DynamicActivationInt8WeightConfig()), 0.1),
    "torchao int4": (
        by_torchao(lambda ao: ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=ao.granularity.PerGroup(32))),
        1e-4,
    ),
    "torchao int4, packed": (by_torchao(opaque), 0.05),
    "bitsandbytes 4-bit": (by_bitsandbytes(four_bits), 0.05),  # on some processors it computes in bfloat16
    "bitsandbytes 8-bit": (by_bitsandbytes(eight_bits), 0.1),  # rows too
    "bitsandbytes 8-bit, large ones apart": (by_bitsandbytes(lambda *one: eight_bits(*one, threshold=1.0)), 0.1),
    "PyTorch's dynamic": (dynamically, 0.25),  # rows too, all of a call by one scale
}
"""How people quantise, and how far rounding of rows, which is another for a part, moves a product of numbers near 1."""


@pytest.mark.parametrize("kind", QUANTISERS)
@torch.no_grad()
def test_a_part_has_the_numbers_of_the_whole(kind: str) -> None:
    quantise, tolerance = QUANTISERS[kind]
    torch.manual_seed(0)
    holder = nn.Sequential(nn.Linear(128, 96)).eval()
    quantise(holder)
    module, rows = holder[0], torch.randn(20, 128)
    layer = projection(module)
    assert isinstance(layer, Quantised)
    near = {"atol": tolerance, "rtol": tolerance}
    bias = module(torch.zeros(1, 128))
    columns = module(torch.eye(128)) - bias
    torch.testing.assert_close(layer.outputs(rows), module(rows))
    torch.testing.assert_close(layer.outputs(rows, 5, 60), module(rows)[:, 5:60], **near)
    torch.testing.assert_close(layer.outputs(rows, 64), module(rows)[:, 64:], **near)
    torch.testing.assert_close(layer.inputs(rows[:, 7:50], 7, 50), rows[:, 7:50] @ columns[7:50] + bias, **near)
    torch.testing.assert_close(layer.inputs(rows[:, 32:64], 32, 64, biased=False), rows[:, 32:64] @ columns[32:64], **near)
    torch.testing.assert_close(layer.rest(rows[:, 50:], 50, None), rows[:, 50:] @ columns[50:], **near)
    second = 0 if kind == "bitsandbytes 4-bit" else 32  # its blocks have 64
    kept = {("outputs", 0, 64), ("outputs", 64, 96), ("inputs", 0, 64), ("inputs", second, 64)}
    assert set(CUT[module].products) == kept  # no more than whole blocks, and of the rest nothing


@torch.no_grad()
def test_parts_of_a_weight_that_is_another_are_cut_anew() -> None:
    library = pytest.importorskip("torchao.quantization")
    holder, other = nn.Sequential(nn.Linear(64, 64)), nn.Sequential(nn.Linear(64, 64))
    for one in (holder, other):
        library.quantize_(one, library.Int8WeightOnlyConfig())
    rows = torch.randn(3, 64)
    before = projection(holder[0]).outputs(rows, 0, 32)
    holder[0].weight, holder[0].bias = other[0].weight, other[0].bias
    after = projection(holder[0]).outputs(rows, 0, 32)
    torch.testing.assert_close(after, other[0](rows)[:, :32])
    assert not torch.allclose(before, after)


def pruned_tiny() -> tuple[Any, Any]:
    """A pruned LLaVA with sizes that all kernels take, and its config."""
    model, config = tiny_llava(layers=3, heads=8, kv_heads=4, hidden=64, intermediate=128)
    return converted(model, random_plan(config, 3)), config


def layers_of(own: Any) -> list[Any]:
    """The projections of all layers."""
    language_model = own.model.language_model
    every = [language_model.projections(layer) for layer in language_model.layers]
    return [getattr(one, name) for one in every for name in ("query", "key", "value", "output", "gate", "up", "down")]


@torch.no_grad()
def as_it_computes(own: Any, like: Any) -> Any:
    """An unquantised model with the weights that a quantised one computes with: its twin."""
    for name, twin in like.model.language_model.named_modules():
        if isinstance(twin, nn.Linear):
            module = own.model.language_model.get_submodule(name)
            twin.weight.copy_((module(torch.eye(twin.in_features)) - module(torch.zeros(1, twin.in_features))).t())
    return like


@pytest.mark.parametrize("kind", QUANTISERS)
@torch.no_grad()
def test_a_quantised_pruned_model_is_the_pruned_model_of_its_numbers(kind: str) -> None:
    quantise, tolerance = QUANTISERS[kind]
    (own, config), (like, _) = pruned_tiny(), pruned_tiny()
    quantise(own.model.language_model)
    assert all(isinstance(layer, Quantised) for layer in layers_of(own))
    twin = as_it_computes(own, like)
    for prompts in ("padded", "two images"):
        inputs = tiny_inputs(config, *PROMPTS[prompts]["prompts"], images=PROMPTS[prompts].get("images", 1))
        rows = text_rows(inputs, config)
        expected = twin(**inputs).logits[rows]
        with torch.inference_mode(prompts == "padded"):
            error = (own(**inputs).logits[rows] - expected).abs().mean() / expected.abs().mean()
        assert error < tolerance
    text = tiny_inputs(config, (3, 5), images=0)
    with own.dense():
        dense = own(**text).logits
    assert own(**text).logits.equal(dense) or kind.startswith("bits")  # whose kernels are chosen by shapes
    torch.testing.assert_close(own(**text).logits, dense, atol=tolerance, rtol=tolerance)
    assert "weights are quantised" in own.path_report()


def test_projections_that_no_group_divides_stay_as_they_are() -> None:
    library = pytest.importorskip("torchao.quantization")
    holder = nn.ModuleList([own_projection(128, 37), own_projection(37, 64), own_projection(128, 64)])
    by_group = library.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=library.granularity.PerGroup(32))
    library.quantize_(holder, by_group)
    assert [type(projection(one)) for one in holder] == [Plain, Plain, Quantised]
    rows = torch.randn(2, 37)
    torch.testing.assert_close(projection(holder[1]).outputs(rows, 0, 8), holder[1](rows)[:, :8])


def test_through_the_door_of_transformers(tmp_path: Path) -> None:
    library = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig

    own, config = pruned_tiny()
    own.save_pretrained(tmp_path)
    asked = TorchAoConfig(library.Int8WeightOnlyConfig())  # the head is left out unless it is asked for
    loaded = type(own).from_pretrained(tmp_path, quantization_config=asked).eval()
    assert all(isinstance(layer, Quantised) for layer in layers_of(loaded))
    by_hand, _ = pruned_tiny()
    library.quantize_(by_hand.model, library.Int8WeightOnlyConfig())
    inputs = tiny_inputs(config, (3, 5))
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, by_hand(**inputs).logits, atol=1e-5, rtol=1e-5)
        library.quantize_(own, library.Int8WeightOnlyConfig())  # all of it, the head too
        assert own.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] == inputs["input_ids"].shape[1] + 3


def test_adapters_of_a_quantised_model_learn() -> None:
    library, peft = pytest.importorskip("torchao.quantization"), pytest.importorskip("peft")
    own, config = pruned_tiny()
    library.quantize_(own.model.language_model, library.Int8WeightOnlyConfig())
    whole = peft.get_peft_model(own, peft.LoraConfig(r=2, target_modules=r".*language_model.*(k_proj|down_proj)", init_lora_weights=False))
    layers = layers_of(own)
    assert sum(isinstance(layer, Adapted) for layer in layers) == 6
    assert not any(isinstance(layer, Called) for layer in layers)
    inputs = tiny_inputs(config, (3, 5))
    loss: Tensor = whole(**inputs, labels=inputs["input_ids"]).loss
    loss.backward()
    learning = [parameter.grad for parameter in whole.parameters() if parameter.requires_grad]
    assert len(learning) == 12
    assert all(grad is not None and grad.abs().sum() > 0 for grad in learning)
