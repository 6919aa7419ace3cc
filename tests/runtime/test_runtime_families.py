"""Qwen2-VL and InternVL through the runtime: grouped KV heads, biases, any grid, videos, tiles, fused projections."""

from typing import Any

import pytest
import torch
from support.random_plans import permuted, random_plan
from support.tiny_families import internvl_inputs, next_inputs, qwen_inputs, tiny_internvl, tiny_next, tiny_qwen
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from converters.evaluation.reference import masked_logits
from converters.families import Layer
from converters.planning.execution import attention_flops, linear_flops
from converters.runtime.modeling_yopo_internvl import YopoInternVLConfig, YopoInternVLForConditionalGeneration
from converters.runtime.modeling_yopo_llava_next import YopoLlavaNextConfig, YopoLlavaNextForConditionalGeneration
from converters.runtime.modeling_yopo_qwen2_vl import YopoQwen2VLConfig, YopoQwen2VLForConditionalGeneration
from converters.runtime.modeling_yopo_qwen3_vl import YopoQwen3VLConfig, YopoQwen3VLForConditionalGeneration
from converters.runtime.plan import Grid, Sizes

QWEN_PROMPTS = {
    "one": [[(1, 3, 4)]],
    "batch of grids": [[(1, 3, 4)], [(1, 2, 2), (1, 4, 3)]],
    "video": [[(3, 2, 3)], [(1, 2, 2), (2, 3, 2)]],
    "text": [[], []],
}


def text_rows(model: Any, inputs: Any) -> torch.Tensor:
    return inputs["attention_mask"].bool() & (inputs["input_ids"] < 60)


@pytest.mark.parametrize("prompt", QWEN_PROMPTS)
@pytest.mark.parametrize("seed", range(3))
def test_qwen2_vl_is_the_masked_reference(prompt: str, seed: int) -> None:
    model = tiny_qwen()
    sizes = Sizes(64, 48, 3, 8, 2, 8)
    plan = random_plan(sizes, seed, (Grid(3, 4),))
    own = permuted(model, plan, YopoQwen2VLConfig, YopoQwen2VLForConditionalGeneration, Layer())
    inputs, grids = qwen_inputs(*QWEN_PROMPTS[prompt])
    rows = text_rows(model, inputs)
    limits = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": [60, 61, 62, 63]}
    with torch.inference_mode():
        logits = own(**inputs).logits[rows]
        torch.testing.assert_close(logits, masked_logits(model, inputs, plan, grids)[rows], atol=1e-4, rtol=0)
        assert own.generate(**inputs, **limits, eos_token_id=-1).equal(greedy(own, inputs, 5))
        with own.dense():
            torch.testing.assert_close(own(**inputs).logits[rows], model(**inputs).logits[rows], atol=1e-4, rtol=0)
            assert own.generate(**inputs, **limits).equal(model.generate(**inputs, **limits))


def greedy(model: Any, inputs: dict[str, torch.Tensor], steps: int) -> torch.Tensor:
    """Greedy tokens by whole forward calls, without a cache."""
    inputs = dict(inputs)
    for _ in range(steps):
        token = model(**inputs).logits[:, -1, :60].argmax(-1, keepdim=True)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], token], 1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(token)], 1)
        if "mm_token_type_ids" in inputs:
            inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(token)], 1)
    return inputs["input_ids"]


@pytest.mark.parametrize("text", ["llama", "qwen2", "qwen3", "phi3"])
@pytest.mark.parametrize("tiles", [(1,), (3, 1), (0, 0)])
def test_internvl_is_the_masked_reference(text: str, tiles: tuple[int, ...]) -> None:
    model = tiny_internvl(text)
    kv_heads = 8 if text == "phi3" else 2
    fused = Layer("self_attn.qkv_proj", "self_attn.qkv_proj", "self_attn.qkv_proj", gate="mlp.gate_up_proj", up="mlp.gate_up_proj")
    inputs = internvl_inputs(*tiles)
    rows = text_rows(model, inputs)
    limits = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": [60, 61, 62, 63]}
    for seed in range(3):
        plan = random_plan(Sizes(64, 48, 3, 8, kv_heads, 16 if text == "qwen3" else 8), seed + 10, (Grid(4, 4),))
        own = permuted(model, plan, YopoInternVLConfig, YopoInternVLForConditionalGeneration, fused if text == "phi3" else Layer())
        grids = [[Grid(4, 4)] * count for count in tiles]
        with torch.inference_mode():
            logits = own(**inputs).logits[rows]
            with own.dense():
                dense = own(**inputs).logits[rows]
                torch.testing.assert_close(dense, model(**inputs).logits[rows], atol=1e-4, rtol=0)
                assert own.generate(**inputs, **limits).equal(model.generate(**inputs, **limits))
            torch.testing.assert_close(logits, masked_logits(model, inputs, plan, grids)[rows], atol=1e-4, rtol=0)
            assert own.generate(**inputs, **limits, eos_token_id=-1).equal(greedy(own, inputs, 5))


@pytest.mark.parametrize("kind", ["internvl", "qwen3_vl", "llava_next"])
@pytest.mark.parametrize("seed", range(2))
def test_flop_counter_finds_the_predicted_flops(kind: str, seed: int) -> None:
    """Heads that together are wider than the rows, with norms; adding features between layers is no product; nor are ends of rows."""
    sizes = Sizes(64, 48, 3, 8, 2, 8 if kind == "llava_next" else 16)
    grids = (Grid(4, 4), Grid(6, 9)) if kind == "llava_next" else (Grid(4, 4),)
    plan = random_plan(sizes, seed + 20, grids)
    if kind == "internvl":
        own = permuted(tiny_internvl("qwen3"), plan, YopoInternVLConfig, YopoInternVLForConditionalGeneration, Layer())
        inputs = internvl_inputs(1)
    elif kind == "llava_next":
        own = permuted(tiny_next(), plan, YopoLlavaNextConfig, YopoLlavaNextForConditionalGeneration, Layer())
        inputs, _ = next_inputs([(24, 32)])
    else:
        own = permuted(tiny_qwen(kind=kind), plan, YopoQwen3VLConfig, YopoQwen3VLForConditionalGeneration, Layer())
        inputs, _ = qwen_inputs([(1, 4, 4)])
    before = 3 if kind == "llava_next" else 4
    given: dict[str, Any] = {}
    text_model = own.model.language_model
    hook = text_model.register_forward_pre_hook(lambda module, arguments, keywords: given.update(keywords), with_kwargs=True)
    with torch.inference_mode():
        own(**inputs)
        hook.remove()
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            text_model(**given | {"past_key_values": None})
        with FlopCounterMode(display=False) as rotary:
            text_model.rotary(given["inputs_embeds"], given.get("position_ids"), 0)
    text = inputs["input_ids"].shape[1] - sum(grid.tokens for grid in grids)
    counts = counter.get_flop_counts()["Global"]
    linear = sum(flops for operator, flops in counts.items() if "bmm" not in str(operator))
    assert linear == linear_flops(plan, text)
    assert counter.get_total_flops() - linear - rotary.get_total_flops() == attention_flops(plan, text, leading=before)
