"""The runtime against its slow twin, and against the dense model."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import tiny_inputs, tiny_llava
from transformers import DynamicCache, StaticCache

from converters.planning.cost import kv_cache_bytes
from converters.reference import masked_logits
from converters.runtime.layout import layouts
from converters.runtime.modeling_yopo_llava import YopoLlavaConfig, YopoLlavaForConditionalGeneration
from converters.runtime.plan import Grid, LayerPlan, Plan, Sizes, dense_plan, normalise, to_json


def sizes_of(config: Any) -> Sizes:
    text = config.text_config
    return Sizes(
        text.hidden_size,
        text.intermediate_size,
        text.num_hidden_layers,
        text.num_attention_heads,
        text.num_key_value_heads,
        text.hidden_size // text.num_attention_heads,
    )


def random_plan(config: Any, seed: int, side: int = 4) -> Plan:
    """Random heads, neurons, windows and phases; about every fourth set is empty."""
    choose = random.Random(seed)
    sizes = sizes_of(config)

    def some(limit: int) -> tuple[int, ...]:
        count = choose.choice([0, choose.randint(1, limit), choose.randint(1, limit), limit])
        return tuple(sorted(choose.sample(range(limit), count)))

    layers = tuple(
        LayerPlan(
            some(sizes.num_attention_heads),
            some(sizes.num_attention_heads),
            some(sizes.intermediate_size),
            choose.choice([None, 1, 3, 5]),
            choose.choice([1, 2, 3, 5]),
        )
        for _ in range(sizes.num_hidden_layers)
    )
    return Plan(sizes, layers, (Grid(side, side),), choose.choice(["causal", "symmetric"]))


def converted(model: Any, config: Any, plan: Plan) -> YopoLlavaForConditionalGeneration:
    """The converted model, permuted in memory with nothing but indexing."""
    plan = normalise(plan)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    size = plan.sizes.head_dim
    for index, layout in enumerate(layouts(plan)):
        prefix = f"model.language_model.layers.{index}."
        for name, order, axis in (
            ("self_attn.q_proj", layout.query_order, 0),
            ("self_attn.k_proj", layout.kv_order, 0),
            ("self_attn.v_proj", layout.kv_order, 0),
            ("self_attn.o_proj", layout.query_order, 1),
        ):
            elements = [head * size + element for head in order for element in range(size)]
            state[f"{prefix}{name}.weight"] = state[f"{prefix}{name}.weight"].index_select(axis, torch.tensor(elements))
            if f"{prefix}{name}.bias" in state and axis == 0:
                state[f"{prefix}{name}.bias"] = state[f"{prefix}{name}.bias"][elements]
        for name, axis in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
            key = f"{prefix}mlp.{name}.weight"
            state[key] = state[key].index_select(axis, torch.tensor(layout.neuron_order))
    own = YopoLlavaForConditionalGeneration(YopoLlavaConfig(**{**config.to_dict(), "yopo": {"plan": to_json(plan)}})).eval()
    own.load_state_dict(state)
    return own


PROMPTS = {
    "single": {"prompts": [(3, 5)]},
    "padded": {"prompts": [(3, 5), (1, 2), (6, 4)]},
    "two images": {"prompts": [(3, 5), (2, 7)], "images": 2},
    "text": {"prompts": [(3, 5), (1, 2)], "images": 0},
}


def text_rows(inputs: Any, config: Any) -> torch.Tensor:
    return inputs["attention_mask"].bool() & (inputs["input_ids"] != config.image_token_id)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_full_plan_is_the_dense_model(prompt: str, kv_heads: int) -> None:
    model, config = tiny_llava(layers=3, kv_heads=kv_heads)
    own = converted(model, config, dense_plan(sizes_of(config), (Grid(4, 4),)))
    inputs = tiny_inputs(config, *PROMPTS[prompt]["prompts"], images=PROMPTS[prompt].get("images", 1))
    rows = text_rows(inputs, config)
    with torch.inference_mode():
        torch.testing.assert_close(own(**inputs).logits[rows], model(**inputs).logits[rows], atol=1e-5, rtol=0)
        limits = {"max_new_tokens": 6, "do_sample": False}
        assert own.generate(**inputs, **limits).equal(model.generate(**inputs, **limits))


@pytest.mark.parametrize("kv_heads", [8, 2])
@pytest.mark.parametrize("seed", range(12))
def test_random_plan_is_the_masked_reference(seed: int, kv_heads: int) -> None:
    model, config = tiny_llava(layers=4, heads=8, kv_heads=kv_heads, hidden=64, attention_bias=seed % 2 == 0)
    plan = random_plan(config, seed)
    own = converted(model, config, plan)
    for prompt in PROMPTS.values():
        inputs = tiny_inputs(config, *prompt["prompts"], images=prompt.get("images", 1))
        rows = text_rows(inputs, config)
        with torch.inference_mode():
            expected = masked_logits(model, inputs, plan)[rows]
            torch.testing.assert_close(own(**inputs).logits[rows], expected, atol=1e-4, rtol=0)
            torch.testing.assert_close(masked_logits(own, inputs)[rows], expected, atol=1e-4, rtol=0)
            with own.dense():
                torch.testing.assert_close(own(**inputs).logits[rows], model(**inputs).logits[rows], atol=1e-4, rtol=0)
