"""Parameters from load to save: the same objects, trained, edited, adapted, hooked and checkpointed like any model's."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from support.random_plans import permuted
from support.random_plans import random_plan as plan_of_sizes
from support.tiny import tiny_inputs, tiny_llava
from support.tiny_families import internvl_inputs, tiny_internvl
from support.tiny_runtime import converted, text_rows
from torch import nn
from torch.utils.checkpoint import checkpoint

from converters.evaluation.reference import masked_logits
from converters.families import Layer
from converters.runtime.layer import run_layer
from converters.runtime.modeling_yopo_internvl import YopoInternVLConfig, YopoInternVLForConditionalGeneration
from converters.runtime.plan import Grid, LayerPlan, Plan, Sizes
from converters.runtime.projection import Adapted, Called, Plain, projection

pytestmark = [  # of peft: it asks transformers by an older name, and has its doubts about biases
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
    pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed"),
]
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EVERY = tuple(range(8))
PLANS = {
    "kept heads lead": LayerPlan(EVERY, (0, 1), (3, 5, 40), 3),
    "kept heads of three groups": LayerPlan(EVERY, (1, 2, 5, 7), (3, 5, 40)),
    "all": LayerPlan(EVERY, EVERY, tuple(range(48))),
    "read alone": LayerPlan(EVERY, (), (), None, 3),
}


def pruned(kept: LayerPlan) -> tuple[Any, Any]:
    """A tiny LLaVA with grouped KV heads and biases, and its inputs."""
    model, config = tiny_llava(layers=3, heads=8, kv_heads=4, hidden=64, attention_bias=True)
    plan = Plan(Sizes(64, 48, 3, 8, 4, 8), (kept, kept, LayerPlan(EVERY, (), ())), (Grid(4, 4),))
    return converted(model, plan), tiny_inputs(config, (3, 5), (1, 2))


def assert_is_reference(own: Any, whole: Any, inputs: Any) -> None:
    """What runs is the masked reference, which calls the modules as they are."""
    rows = text_rows(inputs, own.config)
    with torch.no_grad():
        torch.testing.assert_close(whole(**inputs).logits[rows], masked_logits(own, inputs)[rows], atol=1e-4, rtol=1e-4)


def adapted(own: Any, **options: Any) -> Any:
    """With adapters on all seven projections whose weights are not small."""
    whole = get_peft_model(own, LoraConfig(r=3, lora_alpha=6, target_modules=list(PROJECTIONS), **options))
    torch.manual_seed(0)
    for name, parameter in whole.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.2)
    return whole.eval()


@pytest.mark.parametrize("kept", PLANS)
def test_parameters_stay_the_same_objects(kept: str, tmp_path: Path) -> None:
    own, inputs = pruned(PLANS[kept])
    before = dict(own.named_parameters())
    values = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    with torch.inference_mode():
        own(**inputs)
    after = dict(own.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    assert all(tensor.equal(values[name]) for name, tensor in own.state_dict().items())
    own.save_pretrained(tmp_path)
    again = type(own).from_pretrained(tmp_path)
    with torch.inference_mode():
        assert again(**inputs).logits.equal(own(**inputs).logits)


@pytest.mark.parametrize("kept", PLANS)
def test_an_optimiser_made_before_the_first_call_trains_every_matrix(kept: str) -> None:
    own, inputs = pruned(PLANS[kept])
    parameters = {name: parameter for name, parameter in own.model.language_model.layers.named_parameters() if "proj.weight" in name}
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimiser = torch.optim.AdamW(parameters.values(), lr=0.01)
    own(**inputs).logits.square().mean().backward()
    optimiser.step()
    assert [name for name, parameter in parameters.items() if parameter.detach().equal(before[name])] == []
    assert_is_reference(own, own, inputs)


def test_edits_of_weights_take_effect_after_a_call() -> None:
    own, inputs = pruned(PLANS["kept heads of three groups"])
    with torch.inference_mode():
        logits = own(**inputs).logits
    for name in PROJECTIONS:
        module = next(module for path, module in own.named_modules() if path.endswith(f"layers.0.{_place(name)}"))
        with torch.no_grad():
            module.weight.mul_(1.5)
            assert not own(**inputs).logits.equal(logits)
        assert_is_reference(own, own, inputs)


def _place(name: str) -> str:
    return f"{'mlp' if name in PROJECTIONS[4:] else 'self_attn'}.{name}"


@pytest.mark.parametrize("kept", PLANS)
@pytest.mark.parametrize("option", [None, "use_rslora", "use_dora", "lora_bias"])
def test_adapters_are_honoured(kept: str, option: str | None) -> None:
    own, inputs = pruned(PLANS[kept])
    with torch.no_grad():
        plain = own(**inputs).logits
    whole = adapted(own, **({option: True} if option else {}))
    assert_is_reference(own, whole, inputs)
    with torch.no_grad():
        assert (whole(**inputs).logits - plain).abs().max() > 0.1
        with whole.disable_adapter():
            torch.testing.assert_close(whole(**inputs).logits, plain, atol=1e-5, rtol=1e-5)
    module = own.model.language_model.layers[0].self_attn.q_proj
    assert type(projection(module)) is (Called if option in ("use_dora", "lora_bias") else Adapted)


def test_each_projection_counts() -> None:
    own, inputs = pruned(PLANS["kept heads of three groups"])
    with torch.no_grad():
        plain = own(**inputs).logits
    for name in PROJECTIONS:
        whole = get_peft_model(own, LoraConfig(r=2, target_modules=[name], init_lora_weights=False))
        assert_is_reference(own, whole, inputs)
        with torch.no_grad():
            assert (whole(**inputs).logits - plain).abs().max() > 1e-3, name
        whole.unload()


def test_adapters_learn_merge_save_and_reload(tmp_path: Path) -> None:
    own, inputs = pruned(PLANS["kept heads of three groups"])
    own.save_pretrained(tmp_path / "pruned")
    with torch.inference_mode():
        own(**inputs)
    whole = get_peft_model(own, LoraConfig(r=3, target_modules=list(PROJECTIONS), lora_dropout=0.1)).train()
    learning = [parameter for name, parameter in whole.named_parameters() if "language_model" in name and "lora_" in name]
    optimiser = torch.optim.SGD(learning, lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        whole(**inputs).logits.log_softmax(-1)[..., 5].mean().neg().backward()
        optimiser.step()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in learning)
    whole.eval()
    with torch.no_grad():
        expected = whole(**inputs).logits
    whole.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(type(own).from_pretrained(tmp_path / "pruned"), tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, expected, atol=1e-5, rtol=1e-5)
        assert again.generate(**inputs, max_new_tokens=3, do_sample=False).shape == (2, inputs["input_ids"].shape[1] + 3)
    merged = again.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    for model in (merged, type(own).from_pretrained(tmp_path / "merged")):
        assert isinstance(projection(model.model.language_model.layers[0].mlp.down_proj), Plain)
        with torch.no_grad():
            torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-4, rtol=1e-4)


def test_adapters_of_fused_projections() -> None:
    plan = plan_of_sizes(Sizes(64, 48, 3, 8, 8, 8), 11, (Grid(4, 4),))
    fused = Layer("self_attn.qkv_proj", "self_attn.qkv_proj", "self_attn.qkv_proj", gate="mlp.gate_up_proj", up="mlp.gate_up_proj")
    own = permuted(tiny_internvl("phi3"), plan, YopoInternVLConfig, YopoInternVLForConditionalGeneration, fused)
    inputs = internvl_inputs(1, 2)
    whole = get_peft_model(
        own, LoraConfig(r=3, target_modules=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"], init_lora_weights=False)
    )
    rows = inputs["attention_mask"].bool() & (inputs["input_ids"] < 60)
    with torch.no_grad():
        torch.testing.assert_close(whole.eval()(**inputs).logits[rows], masked_logits(own, inputs)[rows], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_hooks_of_projections_fire(name: str) -> None:
    own, inputs = pruned(PLANS["kept heads of three groups"])
    module = own.model.language_model.layers[0].get_submodule(_place(name))
    with torch.no_grad():
        plain = own(**inputs).logits
    seen: list[torch.Tensor] = []
    hook = module.register_forward_hook(lambda _, arguments, output: (seen.append(output), output * 1.5)[1])
    rows = text_rows(inputs, own.config)
    with torch.no_grad():
        logits = own(**inputs).logits
        assert seen
        hook.remove()
        module.weight.mul_(1.5)
        module.bias is None or module.bias.mul_(1.5)
        torch.testing.assert_close(logits[rows], own(**inputs).logits[rows], atol=1e-4, rtol=1e-4)
    assert not logits.equal(plain)


def test_hooks_of_norms_change_both_kinds_of_rows() -> None:
    own, inputs = pruned(PLANS["kept heads lead"])
    norm = own.model.language_model.layers[1].input_layernorm
    hook = norm.register_forward_hook(lambda _, arguments, output: output * 2)
    with torch.no_grad():
        logits = own(**inputs).logits
        hook.remove()
        norm.weight.mul_(2)
        torch.testing.assert_close(logits, own(**inputs).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("place", ["", "self_attn", "mlp"])
def test_hooks_that_would_be_skipped_are_refused(place: str) -> None:
    own, inputs = pruned(PLANS["kept heads lead"])
    own.model.language_model.layers[1].get_submodule(place).register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=rf"A hook on a decoder layer{place and f's {place}'} would be skipped"):
        own(**inputs)
    with torch.no_grad(), own.dense():
        own(**inputs)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_is_obeyed(reentrant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same gradients, every layer run twice."""
    own, inputs = pruned(PLANS["kept heads of three groups"])
    runs: list[Any] = []
    monkeypatch.setattr("converters.runtime.text_model.run_layer", lambda *given: (runs.append(given[0]), run_layer(*given))[1])
    own.train()

    def gradients() -> list[torch.Tensor]:
        own.zero_grad()
        own(**inputs, use_cache=True).logits.square().mean().backward()
        return [parameter.grad.clone() for parameter in own.model.language_model.layers.parameters()]

    expected = gradients()
    assert len(runs) == 3
    own.model.language_model._set_gradient_checkpointing(True, partial(checkpoint, use_reentrant=reentrant))
    for found, wanted in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert len(runs) == 3 + 6


def test_checkpointing_is_switched_on_by_the_public_way() -> None:
    own, _ = pruned(PLANS["read alone"])
    getattr(own, "activation_checkpointing_enable", own.gradient_checkpointing_enable)()
    assert all(layer.gradient_checkpointing for layer in own.model.language_model.layers)
