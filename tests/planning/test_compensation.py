"""Refits: least squares written out, layer by layer beside the dense model, and the same within a search."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.random_plans import random_plan, ranked
from support.tiny import tiny_llava
from support.tiny_families import qwen_inputs, tiny_qwen
from support.tiny_questions import ANSWER_TOKENS, GRIDS, questions
from support.tiny_runtime import sizes_of

from converters.planning.compensation import RIDGE, LeastSquares, visual_keys
from converters.planning.fitting import fit_compensations
from converters.planning.measure.answers import answered
from converters.planning.measure.drift import logit_drift
from converters.planning.measure.trials import Trials
from converters.runtime.plan import Plan, dense_plan, factored, normalise


def subject(kind: str = "llava") -> tuple[Any, list[Any], Plan]:
    if kind == "qwen3_vl":  # features are added between layers
        model = tiny_qwen(kind=kind)
        batches = [qwen_inputs([(1, 3, 4)], [(1, 2, 2), (1, 4, 3)], seed=seed)[0] for seed in (0, 1)]
        return model, batches, dense_plan(sizes_of(model.config), GRIDS)
    model, config = tiny_llava(layers=4, heads=8, kv_heads=4, hidden=64)
    return model, questions(config), dense_plan(sizes_of(config), GRIDS)


def test_a_linear_relation_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, matrix = torch.randn(400, 6, generator=generator) + 2, torch.randn(6, 6, generator=generator)
    fitting = LeastSquares()
    for part in rows.split(150):
        fitting.add(part, part @ matrix.T + 3)
    found = fitting.solve()
    torch.testing.assert_close(rows @ found.matrix.T + found.offset, rows @ matrix.T + 3, atol=30 * RIDGE, rtol=0)


def test_what_does_not_differ_stays() -> None:
    fitting = LeastSquares()
    rows = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    fitting.add(rows, rows)
    torch.testing.assert_close(fitting.solve().matrix, torch.eye(6))
    torch.testing.assert_close(fitting.solve().offset, torch.zeros(6))


def test_few_rows_change_little_where_they_say_nothing() -> None:
    """Three rows in six dimensions: a direction in which they do not vary is left as it is."""
    fitting = LeastSquares()
    rows = torch.zeros(3, 6)
    rows[:, 0] = torch.tensor([1.0, 2.0, 4.0])
    fitting.add(rows, rows * 2)
    direction = torch.tensor([0.0, 1, 0, 0, 0, 0])
    torch.testing.assert_close(fitting.solve().matrix @ direction, direction)


def test_a_projection_of_refitted_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    fitting = LeastSquares()
    rows = torch.randn(40, 6, generator=generator)
    fitting.add(rows, rows + torch.randn(40, 6, generator=generator))
    compensation, weight, bias = fitting.solve(), torch.randn(4, 6, generator=generator), torch.randn(4, generator=generator)
    made = rows @ compensation.weight(weight).T + compensation.bias(weight, bias)
    torch.testing.assert_close(made, (rows @ compensation.matrix.T + compensation.offset) @ weight.T + bias)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_no_map_of_a_rank_leaves_less_out(rank: int) -> None:
    """Against what the singular values of the outcome say, on rows that the map would turn into the dense model's exactly."""
    generator = torch.Generator().manual_seed(0)
    rows, matrix = (
        torch.randn(500, 6, generator=generator) @ torch.randn(6, 6, generator=generator) + 3,
        torch.randn(6, 6, generator=generator),
    )
    key, value = torch.randn(8, 6, generator=generator), torch.randn(8, 6, generator=generator)
    fitting = LeastSquares()
    fitting.add(rows, rows @ matrix.T + 1)
    whole, found = fitting.solve(), fitting.solve(rank, (key, value))
    assert found.inner is not None
    assert (found.matrix.shape, found.inner[0].shape) == ((6, rank), (rank, 6))
    wanted, made = (torch.cat([compensation(rows) @ weight.T for weight in (key, value)], 1) for compensation in (whole, found))
    scale = torch.cat([part.expand(8) for part in ((wanted - wanted.mean(0))[:, half].norm() for half in (slice(8), slice(8, 16)))])
    left = torch.linalg.svdvals(((wanted - wanted.mean(0)) / scale).double())[rank:].square().sum()
    assert float(((wanted - made) / scale).square().sum()) == pytest.approx(float(left), rel=0.02, abs=1e-4)
    inner = rows @ found.inner[0].T + found.inner[1]
    torch.testing.assert_close(inner.T @ inner / len(rows), torch.eye(rank), atol=2e-2, rtol=0)  # the ridge


def test_a_rank_needs_fitting_in_a_dense_layer_too() -> None:
    model, batches, dense = subject()
    layers = list(dense.layers)
    layers[1] = replace(layers[1], kv_rank=16)
    plan = normalise(replace(dense, layers=tuple(layers)))
    keys = visual_keys(plan, normalise(dense))
    assert [key is not None for key in keys] == [False, True, True, True]  # what layer 1 does to visual rows differs
    found = fit_compensations(model, batches, plan)
    assert [found[index].inner is not None for index in (1, 2, 3)] == [True, False, False]


def test_a_rank_of_what_is_only_read_changes_no_other_layers_refit() -> None:
    _, _, dense = subject()
    frozen = replace(dense, layers=tuple(replace(layer, self_heads=(), neurons=()) for layer in dense.layers))
    ranked = replace(frozen, layers=(frozen.layers[0], replace(frozen.layers[1], kv_rank=16), *frozen.layers[2:]))
    before, after = (visual_keys(normalise(plan), normalise(dense)) for plan in (frozen, ranked))
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False, True, True]


def test_layers_before_the_first_pruned_update_need_none() -> None:
    model, batches, dense = subject()
    layers = list(dense.layers)
    layers[1] = replace(layers[1], read_stride=2, read_heads=(0, 1))
    layers[2] = replace(layers[2], neurons=())
    plan = normalise(replace(dense, layers=tuple(layers)))
    assert [key is not None for key in visual_keys(plan, normalise(dense))] == [False, False, False, True]
    assert list(fit_compensations(model, batches, plan)) == [3]
    assert fit_compensations(model, batches, dense) == {}


@pytest.mark.parametrize(("kind", "memory_bytes"), [("llava", 10**9), ("llava", 0), ("qwen3_vl", 10**9)])
def test_trials_fit_as_a_plan_is_fitted_for_good(kind: str, memory_bytes: int) -> None:
    model, batches, dense = subject(kind)
    answers = [answered(model, batch, ANSWER_TOKENS) for batch in batches]
    trials = Trials(model, answers, dense, fitting=True, memory_bytes=memory_bytes)
    plain = Trials(model, answers, dense)
    assert len(trials.fit) == len(batches)  # 64 rows of 64 numbers are few
    for seed in range(5):
        plan = normalise(random_plan(dense.sizes, seed, GRIDS))
        plan = normalise(ranked(plan, seed)) if seed > 2 else plan
        compensations = fit_compensations(model, batches, plan)
        expected = torch.cat([logit_drift(pruned, whole) for _, pruned, whole in plain.logits(plan, compensations)]).mean()
        assert trials.logit_drift(plan) == pytest.approx(float(expected), abs=2e-3)
        if compensations and not factored(plan):
            assert trials.logit_drift(plan) != pytest.approx(plain.logit_drift(plan), abs=1e-4)
        if seed % 2:
            trials.settle(plan)


def test_refitted_rows_are_nearer_to_the_dense_models() -> None:
    """On the rows that were fitted on, no other map with this ridge would be: the plain rows are one of them."""
    model, batches, dense = subject()
    plan = normalise(replace(dense, layers=tuple(replace(layer, self_heads=(), neurons=()) for layer in dense.layers)))
    rows = {name: _layer_inputs(model, batches, which) for name, which in (("pruned", plan), ("dense", dense))}
    for index, compensation in fit_compensations(model, batches, plan).items():
        pruned, whole = rows["pruned"][index], rows["dense"][index]
        after = compensation(pruned)
        assert (whole - after).square().mean() < 0.7 * (whole - pruned).square().mean()


def _layer_inputs(model: Any, batches: list[Any], plan: Plan) -> dict[int, torch.Tensor]:
    """Normalised visual rows at every layer: where nothing is updated, those that enter the model."""
    image, found = model.config.image_token_id, dict[int, list[torch.Tensor]]()
    frozen = not any(layer.neurons for layer in plan.layers)
    for batch in batches:
        with torch.inference_mode():
            states = model(**batch, output_hidden_states=True).hidden_states
        visual = batch["input_ids"] == image
        for index, layer in enumerate(model.model.language_model.layers):
            with torch.inference_mode():
                found.setdefault(index, []).append(layer.input_layernorm(states[0 if frozen else index][visual]))
    return {index: torch.cat(parts) for index, parts in found.items()}
