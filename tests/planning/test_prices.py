"""Prices against gates on single units of the masked reference, in one graph over the whole model; and against measured moves."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.random_plans import random_plan, ranked
from support.tiny import tiny_llava
from support.tiny_families import internvl_inputs, qwen_inputs, tiny_internvl, tiny_qwen
from support.tiny_questions import ANSWER_TOKENS, GRIDS, questions
from support.tiny_runtime import sizes_of
from torch import Tensor

from converters.evaluation.reference import masked_logits
from converters.planning.compensation import LinearCompensation
from converters.planning.measure.answers import answered
from converters.planning.measure.drift import moves_over_margin
from converters.planning.measure.open_layer import OpenLayer, open_rows
from converters.planning.measure.prices import ROOT_FLOOR, Knobs, Pricing
from converters.planning.measure.trials import Trials
from converters.planning.search.chosen import Choice
from converters.runtime.plan import LayerPlan, Plan, dense_plan, normalise

KNOBS = Knobs((1, 2), (0, 5, 3), (None,))


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen3_vl", "phi3", "qwen3"])
def test_an_open_layer_is_the_runtimes(name: str) -> None:
    """Layer by layer, what it makes of what trials give a layer; every kind of family, random plans, ranks too."""
    if name == "llava":
        model, config = tiny_llava(layers=3, heads=8, kv_heads=2, hidden=64)
        batch = questions(config)[0]
    else:
        model = tiny_qwen(kind=name) if name.endswith("vl") else tiny_internvl(name)
        batch = qwen_inputs([(1, 3, 4)], [(1, 2, 2), (1, 4, 3)])[0] if name.endswith("vl") else internvl_inputs(1, 2)
    fitting = name in ("llava", "qwen3")
    trials = Trials(model, [answered(model, batch, 2)], dense_plan(sizes_of(model.config), GRIDS), fitting=fitting)
    for seed in range(4):
        plan = random_plan(trials.plan.sizes, seed, GRIDS)
        plan = normalise(ranked(plan, seed) if fitting else plan)
        trials.stand_at(plan, [0])
        pricing = Pricing(trials, [0], 1, KNOBS)
        for index in range(plan.visual_depth - 1):
            state, after = trials.cache.get(index, 0), trials.cache.get(index + 1, 0)
            compensation = pricing.compensations(plan, index)[plan.layers[index].kv_rank]
            rows = open_rows(trials.questions[0], state, range(1, 17), slice(0, None))
            done = OpenLayer(trials.adapter, index, plan, compensation).run(rows)
            text, visual = (_real(*pair) for pair in ((done.text, rows.text_slots), (done.visual, rows.visual_slots)))
            if index < len(trials.questions[0].call.deepstack):
                visual = visual + _real(trials.questions[0].call.deepstack[index].view_as(done.visual), rows.visual_slots)
            assert torch.allclose(text, _real(after.text.view_as(done.text), rows.text_slots), atol=2e-4)
            assert torch.allclose(visual, _real(after.visual.view_as(done.visual), rows.visual_slots), atol=2e-4)


def _real(rows: Tensor, slots: Tensor) -> Tensor:
    return rows[slots >= 0]


def subject(kv_heads: int = 4, intermediate: int = 48) -> tuple[Any, list[Any], list[Any], Trials]:
    model, config = tiny_llava(layers=3, heads=4, kv_heads=kv_heads, intermediate=intermediate)
    batches = questions(config)
    answers = [answered(model, batch, ANSWER_TOKENS) for batch in batches]
    return model, batches, answers, Trials(model, answers, dense_plan(sizes_of(config), GRIDS))


@contextmanager
def gated(model: Any, index: int, visual: Tensor, kept: Sequence[int], gates: dict[str, Tensor]) -> Iterator[None]:
    """Neurons `[questions, neurons]` of visual rows, and heads `[questions, heads]` of visual rows, by gates that are 1 where units are
    whole; neurons that the plan leaves out by gates that are 0 where they are left out."""
    layer, seen = model.model.language_model.layers[index], {}
    rows = visual[..., None].float()

    def neurons(_: Any, inputs: tuple[Tensor]) -> Tensor:
        every = layer.mlp.act_fn(seen["gate"]) * seen["up"]
        whole = torch.zeros(every.shape[-1])
        whole[list(kept)] = 1
        return inputs[0] + rows * every * (gates["neurons"][:, None] - whole)

    def heads(_: Any, inputs: tuple[Tensor]) -> Tensor:
        factors = gates["heads"][:, None].repeat_interleave(inputs[0].shape[-1] // gates["heads"].shape[-1], -1)
        return inputs[0] * (1 + rows * (factors - 1))

    handles = [
        getattr(layer.mlp, f"{name}_proj").register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
        for name in ("gate", "up")
    ]
    handles += [layer.mlp.down_proj.register_forward_pre_hook(neurons), layer.self_attn.o_proj.register_forward_pre_hook(heads)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def weighted_drift(model: Any, inputs: Any, answer: Any, plan: Plan, dense: Tensor) -> Tensor:
    """The squared move of the answers' tokens, times the slope of the drift there, which is held fast."""
    top = dense.topk(5).indices
    moved = (masked_logits(model, inputs, plan)[answer.predicts] - dense).gather(1, top)
    spread = (moved - moved.mean(1, keepdim=True)).square().mean(1)
    best = dense.gather(1, top[:, :2])
    squared = spread / (best[:, 0] - best[:, 1]).clamp(min=0.1).square()
    root = (squared.detach() + ROOT_FLOOR).sqrt()
    return (squared * torch.exp(-root) / (2 * root)).sum()


def test_the_first_gradient_is_that_of_gates() -> None:
    """Of every neuron, kept or not, and every self head that is kept, question by question."""
    model, batches, answers, trials = subject()
    heads, neurons = trials.plan.sizes.num_attention_heads, trials.plan.sizes.intermediate_size
    layers = [replace(layer, read_heads=(0, 1, 3), self_heads=(0, 2, 3), neurons=tuple(range(0, 48, 2))) for layer in trials.plan.layers]
    plan = normalise(replace(trials.plan, layers=tuple(layers)))
    prices = Pricing(trials, trials.batches, 1, KNOBS).of(plan)
    for index in (0, 1):
        expected: dict[str, list[Tensor]] = {"neurons": [], "heads": []}
        for batch, answer in zip(batches, answers, strict=True):
            inputs, dense = asked(model, batch, answer)
            gates = {"neurons": torch.zeros(len(answer.mask), neurons), "heads": torch.ones(len(answer.mask), heads)}
            gates["neurons"][:, ::2] = 1
            gates = {name: gate.requires_grad_() for name, gate in gates.items()}
            with gated(model, index, answer.visual, plan.layers[index].neurons, gates):
                weighted_drift(model, inputs, answer, plan, dense).backward()
            for name, gate in gates.items():
                assert gate.grad is not None
                expected[name].append(gate.grad)
        for name, found, units in (
            ("neurons", prices.layers[index].neurons, range(neurons)),
            ("heads", prices.layers[index].self_heads[0], (0, 2, 3)),
        ):
            wanted = torch.cat(expected[name]).T.numpy()[list(units)]
            assert np.abs(wanted).max() > 1e-3
            np.testing.assert_allclose(2 * prices.moved * found[list(units), 0], wanted, atol=2e-4 * np.abs(wanted).max())


def asked(model: Any, batch: Any, answer: Any) -> tuple[Any, Tensor]:
    """A batch with its answer, and the dense model's logits of that."""
    suppressed = [model.config.image_token_id]
    whole = model.generate(**batch, max_new_tokens=ANSWER_TOKENS, do_sample=False, suppress_tokens=suppressed)
    inputs = {**batch, "input_ids": whole, "attention_mask": answer.mask.long()}
    with torch.no_grad():
        return inputs, model(**inputs).logits[answer.predicts]


def slopes_towards(model: Any, batch: Any, answer: Any, plan: Plan, other: LayerPlan, index: int) -> Tensor:
    """By question and head: how fast the weighted move rises when what a layer's heads see goes over to what they see under another
    layer plan."""
    inputs, dense = asked(model, batch, answer)
    output, seen = model.model.language_model.layers[index].self_attn.o_proj, []
    changed = replace(plan, layers=(*plan.layers[:index], other, *plan.layers[index + 1 :]))
    handle = output.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        masked_logits(model, inputs, changed)
    handle.remove()
    heads = plan.sizes.num_attention_heads
    gates = torch.zeros(len(answer.mask), heads, requires_grad=True)
    factors = gates[:, None].repeat_interleave(seen[0].shape[-1] // heads, -1)
    handle = output.register_forward_pre_hook(lambda _, given: given[0] + factors * (seen[0] - given[0].detach()))
    weighted_drift(model, inputs, answer, plan, dense).backward()
    handle.remove()
    assert gates.grad is not None
    return gates.grad


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_windows_strides_and_reading_are_slopes_too(kv_heads: int) -> None:
    """Of layers that read with a stride beside self heads, which need some KV heads whole."""
    model, batches, answers, trials = subject(kv_heads)
    layers = [replace(layer, self_heads=(0, 1), neurons=(1, 2), read_stride=2) for layer in trials.plan.layers]
    plan, index = normalise(replace(trials.plan, layers=tuple(layers))), 1
    made = Pricing(trials, trials.batches, 1, KNOBS).of(plan)
    one = made.layers[index]
    held, group = 2 * kv_heads // 4, 4 // kv_heads
    only = range(held, kv_heads)
    cases = (
        ({"window": 3}, one.self_heads[3][:2] - one.self_heads[0][:2], lambda slopes: slopes[:, :2]),
        ({"read_stride": 1}, one.read[1][only] - one.read[2][only], lambda slopes: by_group(slopes, group)[:, held:]),
        ({"read_heads": ()}, -np.concatenate([one.read[1][:held], one.read[2][only]]), lambda slopes: by_group(slopes, group)),
    )
    for change, vectors, chosen in cases:
        other = replace(plan.layers[index], **change)
        wanted = torch.cat([slopes_towards(model, *pair, plan, other, index) for pair in zip(batches, answers, strict=True)])
        expected = chosen(wanted).T.numpy()
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(2 * made.moved * vectors[:, 0], expected, atol=2e-4 * np.abs(expected).max())


def by_group(slopes: Tensor, group: int) -> Tensor:
    return slopes.unflatten(1, (-1, group)).sum(-1)


def test_all_gradients_together_give_the_whole_squared_move() -> None:
    """Of the neuron that moves a question's logits the most along the way that they have gone: what lies along it is not counted twice."""
    model, batches, answers, trials = subject()
    layers = [replace(layer, self_heads=(0, 2), neurons=tuple(range(0, 48, 2))) for layer in trials.plan.layers]
    plan = normalise(replace(trials.plan, layers=tuple(layers)))
    vectors = Pricing(trials, [0], 200, KNOBS).of(plan).layers[1].neurons[::2]
    squares, along = (vectors**2).sum(1), vectors[:, 0] ** 2
    neuron, question = np.unravel_index((along / squares).argmax(), along.shape)
    assert along[neuron, question] > 0.25 * squares[neuron, question]
    answer = answers[0]
    inputs, dense = asked(model, batches[0], answer)
    gates = {"neurons": torch.zeros(len(answer.mask), 48), "heads": torch.ones(len(answer.mask), 4)}
    gates["neurons"][:, ::2] = 1
    moves = []
    for change in (0.0, 1e-2):
        gates["neurons"][question, 2 * neuron] = 1 + change
        with torch.no_grad(), gated(model, 1, answer.visual, plan.layers[1].neurons, gates):
            moves.append(moves_over_margin(masked_logits(model, inputs, plan)[answer.predicts], dense))
    root = (moves[0].square().sum(-1) + ROOT_FLOOR).sqrt()
    change = ((moves[1] - moves[0]) / 1e-2).square().sum(-1) * torch.exp(-root) / (2 * root)
    assert squares[neuron, question] == pytest.approx(float(change.sum()), rel=0.15)


def rises(trials: Trials, plan: Plan, probes: int, knobs: Knobs = KNOBS) -> tuple[list[float], list[float]]:
    """Of the settings below and above those of each layer: the predicted and the measured rise of the squared move."""
    choice = Choice(plan, Pricing(trials, trials.batches, probes, knobs).of(plan), knobs, ())
    before = trials.logit_drift(plan)
    predicted, measured = [], []
    for index, table in enumerate(choice.tables):
        for up in (False, True):
            found = choice.candidates(index, up)
            for setting, rise in zip(found.settings, choice.rises(found), strict=True):
                layers = [*choice.plan.layers[:index], table.layer(setting), *choice.plan.layers[index + 1 :]]
                predicted.append(float(rise))
                measured.append(trials.logit_drift(normalise(replace(plan, layers=tuple(layers)))) - before)
    return predicted, measured


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    first, second = (np.argsort(np.argsort(values)) for values in (one, other))
    return float(np.corrcoef(first, second)[0, 1])


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_order_of_prices_is_that_of_measured_moves(kv_heads: int) -> None:
    _, _, _, trials = subject(kv_heads)
    assert rank_correlation(*rises(trials, trials.plan, 8)) > 0.8


def test_the_price_of_a_rank_is_the_slope_towards_it() -> None:
    """Of all KV heads together, from the whole map to that of a rank, by finite differences of the pruned model itself; what visual rows
    become goes through a rank in the layer above."""
    model, config = tiny_llava(layers=3, heads=4, kv_heads=2)
    answers = [answered(model, batch, ANSWER_TOKENS) for batch in questions(config)]
    dense = dense_plan(sizes_of(config), GRIDS)
    trials, plain = Trials(model, answers, dense, fitting=True), Trials(model, answers, dense)
    layers = [replace(layer, self_heads=(1, 3), neurons=tuple(range(24))) for layer in dense.layers]
    layers[2] = replace(layers[2], kv_rank=4)
    plan, knobs = normalise(replace(dense, layers=tuple(layers))), Knobs((1,), (0,), (None, 4))
    pricing = Pricing(trials, trials.batches, 1, knobs)
    made = pricing.of(plan)
    found = {index: pricing.compensations(plan, index) for index in range(3)}
    own = {1: found[1][None], 2: found[2][4]}
    rank = found[1][4]
    assert rank is not None
    assert rank.inner is not None
    whole = LinearCompensation(rank.matrix @ rank.inner[0], rank.offset + rank.matrix @ rank.inner[1])
    mixed = [_weighted(plain, plan, {**own, 1: _between(own[1], whole, share)}, own) for share in (1e-3, -1e-3)]
    predicted = float((2 * made.moved * made.layers[1].rank[4].sum(0)[0]).sum())
    assert predicted == pytest.approx((mixed[0] - mixed[1]) / 2e-3, rel=0.02)
    assert abs(predicted) > 1e-3


def _between(one: Any, other: LinearCompensation, share: float) -> LinearCompensation:
    return LinearCompensation(one.matrix + share * (other.matrix - one.matrix), one.offset + share * (other.offset - one.offset))


def _weighted(trials: Trials, plan: Plan, compensations: Any, around: Any) -> float:
    """The squared move of all answers' tokens, times the slope of the drift with other compensations."""
    total = 0.0
    for (_, moved, dense), (_, before, _) in zip(trials.logits(plan, compensations), trials.logits(plan, around), strict=True):
        squared = moves_over_margin(moved, dense).double().square().sum(-1)
        root = (moves_over_margin(before, dense).double().square().sum(-1) + ROOT_FLOOR).sqrt()
        total += float((squared * torch.exp(-root) / (2 * root)).sum())
    return total
