"""Refitted projections: K and V of visual tokens by weights of their own, in the runtime and its slow twin."""

from typing import Any

import pytest
import tiny_families as families
import torch
from conversions import text_rows
from random_plans import permuted, random_plan, random_refits
from test_runtime import PROMPTS, sizes_of
from tiny import tiny_inputs, tiny_llava
from transformers import DynamicCache

from converters.families import Layer
from converters.planning.refit import Refit
from converters.reference import masked_logits
from converters.runtime.layout import layouts
from converters.runtime.modeling_yopo_internvl import YopoInternVLConfig, YopoInternVLForConditionalGeneration
from converters.runtime.modeling_yopo_llava import YopoLlavaConfig, YopoLlavaForConditionalGeneration
from converters.runtime.modeling_yopo_qwen2_vl import YopoQwen2VLConfig, YopoQwen2VLForConditionalGeneration
from converters.runtime.plan import Grid, Plan, Sizes, normalise

GRID = Grid(4, 4)
TOLERANCE = {"atol": 1e-4, "rtol": 0.0}
FUSED = Layer("self_attn.qkv_proj", "self_attn.qkv_proj", "self_attn.qkv_proj", gate="mlp.gate_up_proj", up="mlp.gate_up_proj")


def identities(plan: Plan) -> dict[int, Refit]:
    """Maps that change nothing."""
    width = plan.sizes.hidden_size
    held = [index for index, layout in enumerate(layouts(normalise(plan))) if layout.held]
    return {index: Refit(torch.eye(width), torch.zeros(width)) for index in held}


def llava(model: Any, plan: Plan, refits: dict[int, Refit]) -> Any:
    return permuted(model, plan, YopoLlavaConfig, YopoLlavaForConditionalGeneration, Layer(), refits)


@pytest.mark.parametrize("kv_heads", [8, 2])
@pytest.mark.parametrize("seed", range(6))
def test_llava_is_the_masked_reference(seed: int, kv_heads: int) -> None:
    model, config = tiny_llava(layers=4, heads=8, kv_heads=kv_heads, hidden=64, attention_bias=seed % 2 == 0)
    plan = random_plan(sizes_of(config), seed, (GRID,))
    plain = llava(model, plan, {})
    same, own = llava(model, plan, identities(plan)), llava(model, plan, random_refits(plan, seed))
    for name, prompt in PROMPTS.items():
        inputs = tiny_inputs(config, *prompt["prompts"], images=prompt.get("images", 1))
        rows = inputs["attention_mask"].bool() & (inputs["input_ids"] != config.image_token_id)
        with torch.inference_mode():
            before, found = plain(**inputs).logits[rows], own(**inputs).logits[rows]
            torch.testing.assert_close(same(**inputs).logits[rows], before, atol=1e-5, rtol=0)
            torch.testing.assert_close(found, masked_logits(own, inputs)[rows], **TOLERANCE)
            assert found.equal(before) == (name == "text" or not random_refits(plan, seed))
            with own.dense(), plain.dense():
                assert own(**inputs).logits.equal(plain(**inputs).logits)


@pytest.mark.parametrize("seed", range(3))
def test_a_second_picture_on_the_same_cache(seed: int) -> None:
    model, config = tiny_llava(layers=4, heads=8, hidden=64)
    plan = random_plan(sizes_of(config), seed, (GRID,))
    own = llava(model, plan, random_refits(plan, seed))
    one, two = tiny_inputs(config, (3, 5), (3, 5), seed=1), tiny_inputs(config, (4, 3), (4, 3), seed=2)
    inputs = {name: torch.cat([one[name], two[name]], 1) for name in ("input_ids", "attention_mask")}
    inputs["pixel_values"] = torch.stack([one["pixel_values"], two["pixel_values"]], 1).flatten(0, 1)
    rows = inputs["input_ids"] != config.image_token_id
    cache = DynamicCache()
    with torch.inference_mode():
        parts = [
            own(**part, past_key_values=cache, use_cache=True).logits for part in (one, {**two, "attention_mask": inputs["attention_mask"]})
        ]
        torch.testing.assert_close(torch.cat(parts, 1)[rows], masked_logits(own, inputs)[rows], **TOLERANCE)


@pytest.mark.parametrize("seed", range(3))
def test_qwen2_vl_is_the_masked_reference(seed: int) -> None:
    plan = random_plan(Sizes(64, 48, 3, 8, 2, 8), seed, (Grid(3, 4),))
    own = permuted(families.tiny_qwen(), plan, YopoQwen2VLConfig, YopoQwen2VLForConditionalGeneration, Layer(), random_refits(plan, seed))
    inputs, grids = families.qwen_inputs([(1, 3, 4)], [(1, 2, 2), (2, 3, 2)])
    rows = text_rows(inputs)
    with torch.inference_mode():
        torch.testing.assert_close(own(**inputs).logits[rows], masked_logits(own, inputs, grids=grids)[rows], **TOLERANCE)


@pytest.mark.parametrize("text", ["qwen2", "phi3"])
@pytest.mark.parametrize("seed", range(3))
def test_internvl_is_the_masked_reference(text: str, seed: int) -> None:
    plan = random_plan(Sizes(64, 48, 3, 8, 8 if text == "phi3" else 2, 8), seed + 10, (GRID,))
    own = permuted(
        families.tiny_internvl(text), plan, YopoInternVLConfig, YopoInternVLForConditionalGeneration,
        FUSED if text == "phi3" else Layer(), random_refits(plan, seed),
    )  # fmt: skip
    inputs = families.internvl_inputs(3, 1)
    rows = text_rows(inputs)
    with torch.inference_mode():
        torch.testing.assert_close(own(**inputs).logits[rows], masked_logits(own, inputs, grids=[[GRID] * 3, [GRID]])[rows], **TOLERANCE)
