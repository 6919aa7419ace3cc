"""Where the visual tokens of a call are taken from, and what is said about it."""

from typing import Any

import pytest
import torch
from support.random_plans import permuted
from support.random_plans import random_plan as plan_of_sizes
from support.tiny import tiny_inputs, tiny_llava
from support.tiny_families import internvl_inputs, qwen_inputs, tiny_internvl, tiny_qwen
from support.tiny_runtime import converted, random_plan

from converters.families import Layer
from converters.runtime.modeling_yopo_internvl import YopoInternVLConfig, YopoInternVLForConditionalGeneration
from converters.runtime.modeling_yopo_qwen2_vl import YopoQwen2VLConfig, YopoQwen2VLForConditionalGeneration
from converters.runtime.plan import Grid, Sizes


def llava() -> tuple[Any, dict[str, Any]]:
    model, config = tiny_llava(layers=3)
    return converted(model, random_plan(config, 2)), dict(tiny_inputs(config, (3, 5), (1, 2)))


def qwen() -> tuple[Any, dict[str, Any]]:
    plan = plan_of_sizes(Sizes(64, 48, 3, 8, 2, 8), 2, (Grid(3, 4),))
    own = permuted(tiny_qwen(), plan, YopoQwen2VLConfig, YopoQwen2VLForConditionalGeneration, Layer())
    return own, dict(qwen_inputs([(1, 3, 4)], [(1, 2, 2)])[0])


def internvl() -> tuple[Any, dict[str, Any]]:
    plan = plan_of_sizes(Sizes(64, 48, 3, 8, 2, 8), 12, (Grid(4, 4),))
    own = permuted(tiny_internvl("llama"), plan, YopoInternVLConfig, YopoInternVLForConditionalGeneration, Layer())
    return own, dict(internvl_inputs(1, 2))


def merged(own: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The same call with embeddings that have the features in place, as the dense model hands them to its language model."""
    taken: dict[str, Any] = {}

    def take(_: Any, __: Any, keywords: dict[str, Any]) -> None:
        taken.update(
            {name: keywords[name] for name in ("inputs_embeds", "position_ids", "attention_mask") if keywords.get(name) is not None}
        )

    hook = own.model.language_model.register_forward_pre_hook(take, with_kwargs=True)
    with own.dense():
        own(**inputs)
    hook.remove()
    placeholders = [getattr(own.config, name, -1) for name in ("image_token_id", "video_token_id")]
    return {**taken, "visual_mask": torch.isin(inputs["input_ids"], torch.tensor(placeholders))}


@pytest.mark.parametrize("family", [llava, qwen, internvl])
@torch.no_grad()
def test_merged_embeddings_with_their_mask_are_pruned_alike(family: Any) -> None:
    own, inputs = family()
    expected = own(**inputs).logits
    report = own.path_report()
    given = merged(own, inputs)
    assert "the last call was dense" in own.path_report()
    torch.testing.assert_close(own(**given).logits, expected, atol=1e-5, rtol=0)
    assert own.path_report() == report
    del given["visual_mask"]
    with pytest.raises(ValueError, match=r"pass visual_mask \[batch, length\]"):
        own(**given)


@torch.no_grad()
def test_placeholders_among_embeddings_are_found() -> None:
    own, inputs = llava()
    expected = own(**inputs).logits
    inputs["inputs_embeds"] = own.get_input_embeddings()(inputs.pop("input_ids"))
    torch.testing.assert_close(own(**inputs).logits, expected, atol=1e-5, rtol=0)
    assert "the last call pruned 32 visual tokens" in own.path_report()


@torch.no_grad()
def test_generation_from_merged_embeddings() -> None:
    own, inputs = llava()
    limits = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": -1}
    expected = own.generate(**inputs, **limits)[:, inputs["input_ids"].shape[1] :]
    given = merged(own, inputs)
    assert own.generate(**given, **limits).equal(expected)


@torch.no_grad()
def test_text_alone_is_told_from_pictures() -> None:
    own, inputs = llava()
    own(input_ids=inputs["input_ids"].clamp(max=59))
    assert "the last call had no visual tokens" in own.path_report()
    with pytest.raises(ValueError, match=r"visual_mask has the shape \(2, 3\), the tokens have \(2, 24\)"):
        own(inputs_embeds=torch.zeros(2, 24, 32), visual_mask=torch.ones(2, 3))
