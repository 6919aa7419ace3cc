"""The runtime against its slow twin, and against the dense model."""

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.tiny import tiny_inputs, tiny_llava
from support.tiny_runtime import PROMPTS, converted, random_plan, sizes_of, text_rows
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, StaticCache

from converters.evaluation.reference import masked_logits
from converters.planning.cost import kv_cache_bytes
from converters.planning.execution import attention_flops, linear_flops
from converters.runtime.modeling_yopo_llava import YopoLlavaForConditionalGeneration
from converters.runtime.outputs import CACHE
from converters.runtime.plan import Grid, LayerPlan, Plan, dense_plan
from converters.runtime.token_split import Image, images_of_one_grid


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_full_plan_is_the_dense_model(prompt: str, kv_heads: int) -> None:
    model, config = tiny_llava(layers=3, kv_heads=kv_heads)
    own = converted(model, dense_plan(sizes_of(config), (Grid(4, 4),)))
    inputs = tiny_inputs(config, *PROMPTS[prompt]["prompts"], images=PROMPTS[prompt].get("images", 1))
    rows = text_rows(inputs, config)
    with torch.inference_mode():
        torch.testing.assert_close(own(**inputs).logits[rows], model(**inputs).logits[rows], atol=1e-5, rtol=0)
        limits = {"max_new_tokens": 6, "do_sample": False}
        assert own.generate(**inputs, **limits).equal(model.generate(**inputs, **limits))


@pytest.mark.parametrize("kv_heads", [8, 2])
@pytest.mark.parametrize("seed", range(8))
def test_random_plan_is_the_masked_reference(seed: int, kv_heads: int) -> None:
    model, config = tiny_llava(layers=4, heads=8, kv_heads=kv_heads, hidden=64, attention_bias=seed % 2 == 0)
    plan = random_plan(config, seed)
    own = converted(model, plan)
    for prompt in PROMPTS.values():
        inputs = tiny_inputs(config, *prompt["prompts"], images=prompt.get("images", 1))
        rows = text_rows(inputs, config)
        with torch.inference_mode():
            expected = masked_logits(model, inputs, plan)[rows]
            torch.testing.assert_close(own(**inputs).logits[rows], expected, atol=1e-4, rtol=0)
            torch.testing.assert_close(masked_logits(own, inputs)[rows], expected, atol=1e-4, rtol=0)
            with own.dense():
                torch.testing.assert_close(own(**inputs).logits[rows], model(**inputs).logits[rows], atol=1e-4, rtol=0)


def forward_parts(own: Any, inputs: Any, cut: int) -> torch.Tensor:
    """Logits of a prompt given in two calls on one cache, cut at token `cut`; the first call has the first image."""
    cache = DynamicCache()
    per_sample = inputs["pixel_values"].unflatten(0, (inputs["input_ids"].shape[0], -1))
    parts = []
    for part, image in ((slice(None, cut), 0), (slice(cut, None), 1)):
        parts.append(
            own(
                input_ids=inputs["input_ids"][:, part],
                attention_mask=inputs["attention_mask"][:, : part.stop],
                pixel_values=per_sample[:, image],
                use_cache=True,
                **{CACHE: cache},
            ).logits
        )
    return torch.cat(parts, 1)


def test_all_neurons_but_one() -> None:
    """Text goes through the last one too."""
    model, config = tiny_llava(layers=2, heads=4, hidden=32)
    plan = dense_plan(sizes_of(config), (Grid(4, 4),))
    plan = replace(plan, layers=(replace(plan.layers[0], neurons=plan.layers[0].neurons[:-1]), *plan.layers[1:]))
    inputs = tiny_inputs(config, (3, 5))
    rows = text_rows(inputs, config)
    with torch.inference_mode():
        expected = masked_logits(model, inputs, plan)[rows]
        torch.testing.assert_close(converted(model, plan)(**inputs).logits[rows], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(8))
def test_second_turn_on_the_same_cache(seed: int) -> None:
    model, config = tiny_llava(layers=3, heads=8, kv_heads=4, hidden=64)
    plan = random_plan(config, seed + 100)
    own = converted(model, plan)
    one, two = tiny_inputs(config, (3, 5), (1, 2), seed=1), tiny_inputs(config, (4, 3), (4, 3), seed=2)
    inputs = {name: torch.cat([one[name], two[name]], 1) for name in ("input_ids", "attention_mask")}
    inputs["pixel_values"] = torch.stack([one["pixel_values"], two["pixel_values"]], 1).flatten(0, 1)
    rows = text_rows(inputs, config)
    with torch.inference_mode():
        parts = forward_parts(own, inputs, one["input_ids"].shape[1])
        torch.testing.assert_close(parts[rows], masked_logits(model, inputs, plan)[rows], atol=1e-4, rtol=0)


@pytest.mark.parametrize("seed", range(4))
def test_cache_follows_crop_and_batch_changes(seed: int) -> None:
    model, config = tiny_llava(layers=3, heads=8, hidden=64)
    own = converted(model, random_plan(config, seed))
    inputs = tiny_inputs(config, (3, 9), (2, 6))
    with torch.inference_mode():
        cache = DynamicCache()
        own(**inputs, use_cache=True, **{CACHE: cache})
        expected = own(**inputs).logits[:, -4:]
        cache.crop(-4)
        assert cache.get_seq_length() == inputs["input_ids"].shape[1] - 4
        again = {"input_ids": inputs["input_ids"][:, -4:], "attention_mask": inputs["attention_mask"]}
        torch.testing.assert_close(own(**again, **{CACHE: cache}).logits, expected, atol=1e-5, rtol=0)
        cache.crop(-6)  # what comes next is not what was there
        other = {"input_ids": torch.full_like(inputs["input_ids"][:, -6:], 9), "attention_mask": inputs["attention_mask"]}
        whole = inputs | {"input_ids": torch.cat([inputs["input_ids"][:, :-6], other["input_ids"]], 1)}
        torch.testing.assert_close(own(**other, **{CACHE: cache}).logits, own(**whole).logits[:, -6:], atol=1e-5, rtol=0)
        cache.crop(-6)
        own(input_ids=inputs["input_ids"][:, -6:-4], attention_mask=inputs["attention_mask"][:, :-4], **{CACHE: cache})
        cache.reorder_cache(torch.tensor([1, 0]))
        swapped = {name: tensor.flip(0) for name, tensor in again.items()}
        torch.testing.assert_close(own(**swapped, **{CACHE: cache}).logits, expected.flip(0), atol=1e-5, rtol=0)
        cache.crop(-4)
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([1, 2]))
        torch.testing.assert_close(own(**swapped, **{CACHE: cache}).logits, expected.flip(0), atol=1e-5, rtol=0)


def test_a_cache_that_is_cropped_before_its_picture() -> None:
    """Visual columns come first in the cache: where they go, those of text move."""
    model, config = tiny_llava(layers=3, heads=8, hidden=64)
    own = converted(model, random_plan(config, 3))
    inputs, more = tiny_inputs(config, (3, 9)), torch.full((1, 5), 9)
    with torch.inference_mode():
        cache = DynamicCache()
        own(**inputs, use_cache=True, **{CACHE: cache})
        own(input_ids=more, **{CACHE: cache})  # now there is room to grow
        cache.crop(3)
        expected = own(input_ids=torch.cat([inputs["input_ids"][:, :3], more], 1)).logits[:, 3:]
        torch.testing.assert_close(own(input_ids=more, **{CACHE: cache}).logits, expected, atol=1e-5, rtol=0)


def test_generation_modes_agree() -> None:
    model, config = tiny_llava(layers=3, heads=8, hidden=64)
    own = converted(model, random_plan(config, 3))
    inputs = tiny_inputs(config, (3, 9), (2, 6))
    alone = tiny_inputs(config, (3, 9))
    limits = {"max_new_tokens": 8, "do_sample": False, "suppress_tokens": [config.image_token_id]}
    with torch.inference_mode():
        beams = own.generate(**inputs, **limits, num_beams=3)
        assert beams.equal(own.generate(**inputs, **limits, num_beams=3, use_cache=False))
        assert own.generate(**alone, **limits).equal(own.generate(**alone, **limits, prompt_lookup_num_tokens=2))
        torch.manual_seed(0)
        sampled = own.generate(**inputs, **{**limits, "do_sample": True})
        torch.manual_seed(0)
        assert sampled.equal(own.generate(**inputs, **{**limits, "do_sample": True}, use_cache=False))


def test_rectangles_grow_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where they are joined anew, and without a trace in what was held before."""
    model, config = tiny_llava(layers=3, heads=8, hidden=64)
    own = converted(model, random_plan(config, 4))
    inputs = tiny_inputs(config, (3, 9), (2, 6))
    caches = [DynamicCache(), DynamicCache()]
    with torch.no_grad():
        for one in caches:
            own(**inputs, **{CACHE: one})
        held = [pair for layer in caches[0].layers for pair in layer.rectangles.values()]
        before = [(keys.clone(), values.clone()) for keys, values in held]
        monkeypatch.setattr("converters.runtime.cache.ROOM", 2)
        for step in range(6):
            mask = torch.cat([inputs["attention_mask"], torch.ones(2, step + 1, dtype=torch.long)], 1)
            given = {"input_ids": torch.full((2, 1), 5), "attention_mask": mask}
            grown = own(**given, **{CACHE: caches[0]}).logits
            with torch.enable_grad():
                joined = own(**given, **{CACHE: caches[1]}).logits
            torch.testing.assert_close(grown, joined.detach(), atol=1e-5, rtol=0)
    assert all(now[0].equal(then[0]) and now[1].equal(then[1]) for now, then in zip(held, before, strict=True))
    assert sum(layer.nbytes for layer in caches[0].layers) == sum(layer.nbytes for layer in caches[1].layers)


def test_types_may_change_by_themselves() -> None:
    model, config = tiny_llava(layers=3, heads=8, hidden=64)
    own = converted(model, random_plan(config, 4))
    inputs = tiny_inputs(config, (3, 9), (2, 6))
    rows = text_rows(inputs, config)
    with torch.inference_mode():
        expected = own(**inputs).logits[rows]
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(own(**inputs).logits[rows].float(), expected, atol=0.5, rtol=0)


@pytest.mark.parametrize("seed", range(6))
def test_cache_bytes_are_the_predicted_ones(seed: int) -> None:
    model, config = tiny_llava(layers=4, heads=8, kv_heads=4, hidden=64)
    plan = random_plan(config, seed)
    own = converted(model, plan)
    inputs = tiny_inputs(config, (3, 5), images=2)
    with torch.inference_mode():
        cache = own(**inputs, use_cache=True)[CACHE]
    assert sum(layer.nbytes for layer in cache.layers) == kv_cache_bytes(plan, (Grid(4, 4),) * 2, 8, element_bytes=4)


@pytest.mark.parametrize("seed", range(6))
def test_flop_counter_finds_the_predicted_flops(seed: int) -> None:
    model, config = tiny_llava(layers=4, heads=8, kv_heads=8 if seed % 2 else 4, hidden=64, side=6)
    plan = random_plan(config, seed, side=6)
    own = converted(model, plan)
    inputs = tiny_inputs(config, (3, 5))
    text_model = own.model.language_model
    embeds = torch.zeros(1, inputs["input_ids"].shape[1], 64)
    visual = inputs["input_ids"] == config.image_token_id
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        text_model(inputs_embeds=embeds, visual_mask=visual, images=own.model.images)
    with FlopCounterMode(display=False) as rotary:  # a product of matrices in some versions
        text_model.rotary_emb(embeds, torch.arange(embeds.shape[1])[None])
    counts = counter.get_flop_counts()["Global"]
    linear = sum(flops for operator, flops in counts.items() if "bmm" not in str(operator))
    attention = sum(flops for operator, flops in counts.items() if "bmm" in str(operator)) - rotary.get_total_flops()
    assert linear == linear_flops(plan, 8)
    assert attention == attention_flops(plan, 8, leading=3)
    assert linear - linear_flops(plan, 0) == linear_flops(dense_plan(plan.sizes, plan.grids), 8) - linear_flops(
        dense_plan(plan.sizes, plan.grids), 0
    )


def test_running_leaves_the_saved_weights_alone(tmp_path: Any) -> None:
    model, config = tiny_llava(layers=3, heads=8, kv_heads=2, hidden=64, attention_bias=True)
    own = converted(model, random_plan(config, 5))
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    inputs = tiny_inputs(config, (3, 5))
    with torch.inference_mode():
        expected = own(**inputs).logits
    assert own.state_dict().keys() == before.keys()
    assert all(tensor.equal(before[name]) for name, tensor in own.state_dict().items())
    own.save_pretrained(tmp_path)
    again, info = YopoLlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.inference_mode():
        assert again(**inputs).logits.equal(expected)


def test_text_only_logits_are_the_dense_models() -> None:
    model, config = tiny_llava(layers=3, heads=8, hidden=64)
    sizes = sizes_of(config)
    everything = tuple(range(8))
    frozen = Plan(sizes, (LayerPlan(everything, (), ()),) * 3, (Grid(4, 4),))
    inputs = tiny_inputs(config, (3, 9), images=0)
    with torch.inference_mode():
        expected = model(**inputs).logits
        assert converted(model, frozen)(**inputs).logits.equal(expected)  # nothing is permuted
        for seed in range(5):
            logits = converted(model, random_plan(config, seed))(**inputs).logits
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


def test_what_cannot_be_given_is_refused() -> None:
    model, config = tiny_llava()
    own = converted(model, random_plan(config, 1))
    inputs = tiny_inputs(config, (3, 5))
    with pytest.raises(ValueError, match="output_attentions is not available"):
        own(**inputs, output_attentions=True)
    with pytest.raises(ValueError, match="plain DynamicCache, not in a StaticCache"):
        own(**inputs, **{CACHE: StaticCache(config=config.text_config, max_cache_len=64)})
    filled = DynamicCache()
    model(**inputs, **{CACHE: filled})
    with pytest.raises(ValueError, match="filled by another model"):
        own(**inputs, **{CACHE: filled})
    with pytest.raises(ValueError, match="no multiple of the 16"):
        images_of_one_grid([16, 10], Grid(4, 4))
    with pytest.raises(ValueError, match=r"attention_mask of \[batch, length\]"):
        own(**{**inputs, "attention_mask": torch.ones(1, 1, 24, 24)})


def test_another_attention_is_said_to_be_ignored_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    model, config = tiny_llava()
    own = converted(model, random_plan(config, 1))
    own.set_attn_implementation("eager")
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        for _ in range(2):
            own(**tiny_inputs(config, (3, 5)))
    said = [record.message for record in caplog.records if "attn_implementation" in record.message]
    assert [message.split(":")[0] for message in said] == ["attn_implementation='eager' holds for the vision tower and the dense side"]


def test_report_names_the_path() -> None:
    model, config = tiny_llava()
    own = converted(model, dense_plan(sizes_of(config), (Grid(4, 4),)))
    assert own.path_report().startswith("pruned: visual tokens leave after layer 2 of 2 and are updated in 1")
    with own.dense():
        assert own.path_report() == "dense: the plan is switched off"


def test_video_frames_and_unequal_grids() -> None:
    """Windows over frames, offsets that start one further in each frame, a batch of different grids."""
    model, config = tiny_llava(layers=3, heads=8, hidden=64)
    for seed, grids in enumerate([[[Grid(2, 4, 3)], [Grid(3, 5), Grid(4, 2)]], [[Grid(5, 3)], [Grid(1, 1), Grid(2, 2, 2)]]]):
        plan = random_plan(config, seed + 40)
        own = converted(model, plan)
        counts = [sum(grid.tokens for grid in images) for images in grids]
        width = max(counts) + 8
        ids = torch.zeros(2, width, dtype=torch.long)
        mask = torch.zeros(2, width, dtype=torch.long)
        for sample, count in enumerate(counts):
            row = torch.cat([torch.arange(4, 7), torch.full((count,), config.image_token_id), torch.arange(7, 12)])
            ids[sample, -len(row) :], mask[sample, -len(row) :] = row, 1
        torch.manual_seed(seed)
        embeds = torch.randn(2, width, 64)
        visual = ids == config.image_token_id

        def images(_: Any, positions: Any, rows: Any, grids: Any = grids) -> tuple[Image, ...]:
            starts = [[sum(grid.tokens for grid in row[:place]) for place in range(len(row))] for row in grids]
            return tuple(Image(sample, starts[sample][place], grid) for sample, row in enumerate(grids) for place, grid in enumerate(row))

        with torch.inference_mode():
            text_model = own.model.language_model
            rows = text_model(inputs_embeds=embeds, attention_mask=mask, visual_mask=visual, images=images).last_hidden_state
            given = {"input_ids": ids, "attention_mask": mask}
            model.get_input_embeddings().forward = lambda _, embeds=embeds: embeds  # the same rows for both
            expected = masked_logits(model, given, plan, grids)
            torch.testing.assert_close(own.lm_head(rows)[mask.bool() & ~visual], expected[mask.bool() & ~visual], atol=1e-4, rtol=0)
