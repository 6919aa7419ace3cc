"""Trials against the masked reference: the same plan, the same questions, the obvious way."""

from dataclasses import replace
from math import exp, inf, sqrt
from statistics import stdev
from typing import Any

import pytest
import torch
from support.random_plans import random_plan
from support.tiny import tiny_inputs, tiny_llava
from support.tiny_families import internvl_inputs, next_inputs, qwen_inputs, smol_inputs, tiny_internvl, tiny_next, tiny_qwen, tiny_smol
from support.tiny_questions import ANSWER_TOKENS, GRIDS, questions
from support.tiny_runtime import sizes_of
from torch import Tensor

from converters.errors import YopoError
from converters.evaluation.reference import masked_logits
from converters.planning.measure.answers import Answered, answered, placeholders_of
from converters.planning.measure.drift import logit_drift
from converters.planning.measure.plan_keys import first_difference, plan_key
from converters.planning.measure.trials import OPENING_FORWARDS, Trials
from converters.runtime.plan import Grid, Plan, dense_plan, normalise


def drifts(model: Any, batch: Any, answer: Answered, plan: Plan, *grids: Any) -> Tensor:
    """How far the masked reference moves the answer's tokens."""
    suppressed = list(placeholders_of(model))
    whole = model.generate(**batch, max_new_tokens=ANSWER_TOKENS, do_sample=False, suppress_tokens=suppressed)
    inputs = {**batch, "input_ids": whole, "attention_mask": answer.mask.long()}
    if "mm_token_type_ids" in batch:
        inputs["mm_token_type_ids"] = torch.nn.functional.pad(batch["mm_token_type_ids"], (0, whole.shape[1] - batch["input_ids"].shape[1]))
    pruned = masked_logits(model, inputs, plan, *grids)[answer.predicts].log_softmax(-1)
    dense = model(**inputs).logits[answer.predicts].log_softmax(-1)
    return torch.tensor([moved(*pair) for pair in zip(pruned, dense, strict=True)])


def moved(pruned: Tensor, dense: Tensor) -> float:
    """The logit drift of one token, written out."""
    likeliest = sorted(range(len(dense)), key=lambda token: -dense[token])[:5]
    changes = [float(pruned[token] - dense[token]) for token in likeliest]
    mean = sum(changes) / 5
    spread = sqrt(sum((change - mean) ** 2 for change in changes) / 5)
    margin = max(0.1, float(dense[likeliest[0]] - dense[likeliest[1]]))
    return 1 - exp(-spread / margin)


@pytest.mark.parametrize("memory_bytes", [10**9, 0, 30_000])
@pytest.mark.parametrize("kv_heads", [8, 2])
def test_trials_are_the_masked_reference(kv_heads: int, memory_bytes: int) -> None:
    """Whatever plan the trials stand at, and wherever states are kept; a plan that reads deeper again included."""
    model, config = tiny_llava(layers=3, heads=8, kv_heads=kv_heads, hidden=64)
    batches = questions(config)
    answers = [answered(model, batch, ANSWER_TOKENS) for batch in batches]
    trials = Trials(model, answers, dense_plan(sizes_of(config), GRIDS), memory_bytes=memory_bytes)
    assert trials.logit_drift(trials.plan) == pytest.approx(0, abs=1e-5)
    for seed in range(4):
        plan = random_plan(sizes_of(config), seed, GRIDS)
        with torch.inference_mode():
            expected = torch.cat([drifts(model, *pair, plan) for pair in zip(batches, answers, strict=True)]).mean()
        assert trials.logit_drift(plan) == pytest.approx(float(expected), abs=1e-3)
        if seed % 2:
            trials.settle(plan)
    assert (trials.cache.disk_bytes > 0) == (memory_bytes < 10**9)
    assert trials.cache.used_bytes <= memory_bytes


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "phi3", "qwen3", "onevision", "smolvlm"])
def test_other_families(name: str) -> None:
    """Multimodal positions and any grid; features added between layers; tiles, fused projections; norms of heads; ends of rows; names."""
    tiles = [[Grid(4, 4)], [Grid(4, 4)] * 2]
    if name.endswith("vl"):
        model, (batch, grids) = tiny_qwen(kind=name), qwen_inputs([(1, 3, 4)], [(1, 2, 2), (1, 4, 3)])
    elif name == "onevision":
        model, (batch, grids) = tiny_next("qwen2"), next_inputs([(48, 48)], [(16, 16), (48, 16), 2], counted=True)
    elif name == "smolvlm":
        model, (batch, grids) = tiny_smol(), (smol_inputs(1, 2), tiles)
    else:
        model, (batch, grids) = tiny_internvl(name), (internvl_inputs(1, 2), tiles)
    answer = answered(model, batch, ANSWER_TOKENS)
    trials = Trials(model, [answer], dense_plan(sizes_of(model.config), GRIDS))
    for seed in range(3):
        plan = random_plan(trials.plan.sizes, seed, GRIDS)
        with torch.inference_mode():
            expected = drifts(model, batch, answer, plan, grids).mean()
        assert trials.logit_drift(plan) == pytest.approx(float(expected), abs=1e-3)
    assert trials.changed(trials.plan) == 0
    assert 0 <= trials.changed(plan) <= 1


def test_forwards_are_the_layers_behind_the_first_change() -> None:
    model, config = tiny_llava(layers=4)
    trials = Trials(model, [answered(model, questions(config)[0], 2)], dense_plan(sizes_of(config), GRIDS))
    dense = trials.plan
    frozen = dense.layers[:1] + tuple(type(layer)(layer.read_heads, (), ()) for layer in dense.layers[1:])
    changed = normalise(Plan(dense.sizes, frozen, dense.grids))
    assert first_difference(dense, changed) == 1
    trials.logit_drift(changed)
    assert trials.forwards == OPENING_FORWARDS + 0.75
    trials.logit_drift(changed)  # known
    trials.settle(changed)  # at hand
    later = normalise(Plan(dense.sizes, (*changed.layers[:3], replace(changed.layers[3], read_stride=2)), dense.grids))
    trials.logit_drift(later)
    assert trials.forwards == OPENING_FORWARDS + 0.75 + 0.25
    trials.settle(dense)
    trials.logit_drift(later)  # known
    assert trials.forwards == OPENING_FORWARDS + 1
    trials.logit_drift(normalise(Plan(dense.sizes, dense.layers[:2] + changed.layers[2:], dense.grids)))
    assert trials.forwards == OPENING_FORWARDS + 1 + 0.75 + 0.5  # the dense states again, then the change


def test_some_batches_count_for_what_they_are() -> None:
    model, config = tiny_llava(layers=4)
    answers = [answered(model, batch, 2) for batch in questions(config)]
    trials = Trials(model, answers, dense_plan(sizes_of(config), GRIDS))
    plans = [random_plan(trials.plan.sizes, seed, GRIDS) for seed in range(4)]
    assert all(first_difference(trials.plan, normalise(plan)) == 0 for plan in plans)
    first = trials.logit_drift(plans[0], [0])
    assert trials.forwards == OPENING_FORWARDS + 0.5
    whole, second = trials.logit_drift(plans[0]), trials.logit_drift(plans[0], [1])
    assert trials.forwards == OPENING_FORWARDS + 1
    tokens = [sum(batch.lengths) for batch in trials.facts]
    assert whole == pytest.approx((first * tokens[0] + second * tokens[1]) / sum(tokens))
    good, bad = sorted(plans, key=lambda plan: trials.logit_drift(plan, [0]))[:: len(plans) - 1]
    trials.logit_drift(good)
    assert trials.race(bad, good, slack=0) == inf
    assert trials.race(good, bad, slack=0) == trials.logit_drift(good)


def test_the_error_of_a_difference() -> None:
    """Of batches of as many tokens each that of a mean; none is known of a single batch."""
    model, config = tiny_llava(layers=3)
    answers = [answered(model, tiny_inputs(config, (3, 5), (1, 2), seed=seed), 2) for seed in range(3)]
    trials = Trials(model, answers, dense_plan(sizes_of(config), GRIDS))
    assert {sum(batch.lengths) for batch in trials.facts} == {4}
    one, other = (random_plan(trials.plan.sizes, seed, GRIDS) for seed in range(2))
    assert trials.logit_drift(one) != trials.logit_drift(other)
    differences = [trials.logit_drift(one, [batch]) - trials.logit_drift(other, [batch]) for batch in range(3)]
    assert trials.error(one, other) == trials.error(other, one) == pytest.approx(stdev(differences) / sqrt(3))
    assert trials.error(one, one) == 0
    single = Trials(model, answers[:1], trials.plan)
    assert single.logit_drift(one) != single.logit_drift(other)
    assert single.error(one, other) == 0


def test_logit_drift_by_hand() -> None:
    """The first of five logits rises by 0.1: 0.08 from the mean, the others -0.02, so 0.04 in the root mean square; over the margin between
    the first two, which counts as 0.1 at least. What all logits have in common changes no answer."""
    moved = torch.tensor([0.1, 0.0, 0.0, 0.0, 0.0])
    for margin, relative in ((2.0, 0.02), (0.0, 0.4), (-2.0, 0.02)):
        dense = torch.tensor([margin, 0.0, -9.0, -9.0, -9.0])
        for common in (0.0, 3.0):
            assert float(logit_drift((dense + moved + common)[None], dense[None])) == pytest.approx(1 - exp(-relative), abs=1e-5)


def test_equal_functions_have_one_key() -> None:
    _, config = tiny_llava(layers=3)
    keys = {plan_key(normalise(random_plan(sizes_of(config), seed, GRIDS))) for seed in range(20)}
    assert len(keys) == len({normalise(random_plan(sizes_of(config), seed, GRIDS)) for seed in range(20)})


def test_a_question_without_an_image_is_refused() -> None:
    model, config = tiny_llava()
    with pytest.raises(YopoError, match="sample has no image"):
        answered(model, tiny_inputs(config, (3, 5), images=0))


def test_answers_end_with_the_end_token_and_hold_no_image() -> None:
    model, config = tiny_llava()
    batch = tiny_inputs(config, (3, 5), (1, 2))
    model.generation_config.eos_token_id = int(model.generate(**batch, max_new_tokens=3, do_sample=False)[0, -2])
    answer = answered(model, batch, 4)
    prompt = batch["input_ids"].shape[1]
    assert answer.mask[0, prompt:].tolist()[:3] == [True, True, False]
    assert answer.predicts.sum(1).tolist() == answer.mask[:, prompt:].sum(1).tolist()
    assert answer.visual.sum(1).tolist() == [16, 16]
    assert answer.dense.shape == (int(answer.predicts.sum()), 32)
