"""Recipes: any budget met from below to one neuron, for real and tiny sizes, and what each recipe is known for."""

from functools import cache
from itertools import pairwise

import pytest
import torch

from converters.calibration.histogram import BINS, bins_of
from converters.calibration.statistics import Statistics
from converters.errors import YopoError
from converters.planning.cost import cost, dense_visual_flops
from converters.planning.recipes import RECIPES, make_plan, smallest_plan
from converters.runtime.plan import Grid, Sizes, dense_plan, from_json, normalise, to_json

MODELS = {
    "llava-7b": (Sizes(4096, 11008, 32, 32, 32, 128), (Grid(24, 24),)),
    "qwen2-vl-7b": (Sizes(3584, 18944, 28, 28, 4, 128), (Grid(26, 36),)),
    "demo": (Sizes(128, 352, 8, 8, 8, 16), (Grid(12, 12),)),
    "tiny": (Sizes(32, 48, 2, 4, 4, 8), (Grid(4, 4),)),
    "tiny-grouped": (Sizes(32, 48, 4, 8, 2, 4), (Grid(6, 6), Grid(3, 5))),
}
REAL = ("llava-7b", "qwen2-vl-7b")
DEMO, DEMO_GRIDS = MODELS["demo"]


@cache
def statistics(sizes: Sizes, seed: int = 0) -> Statistics:
    """Random scores for a model of these sizes, ten samples."""
    generator = torch.Generator().manual_seed(seed)
    heads = (sizes.num_hidden_layers, sizes.num_attention_heads)
    bins = bins_of(torch.rand(*heads, 10, generator=generator))
    return Statistics(
        ratios=torch.zeros(*heads, BINS, dtype=torch.int32).scatter_add_(2, bins, torch.ones_like(bins, dtype=torch.int32)),
        read_sum=torch.rand(heads, generator=generator).double(),
        self_sum=torch.rand(heads, generator=generator).double(),
        neuron_sum=torch.rand(sizes.num_hidden_layers, sizes.intermediate_size, generator=generator).double(),
        read_rows=1,
        visual_rows=1,
        samples=10,
        layouts=(((Grid(12, 12),), 10),),
        model="model",
        data="data",
    )


def assert_met(recipe: str, name: str, budget: float, measured: bool = True) -> None:
    sizes, grids = MODELS[name]
    plan = make_plan(recipe, statistics(sizes) if measured else None, sizes, grids, budget)
    assert plan == normalise(plan)
    assert plan == from_json(to_json(plan))
    assert cost(plan).share <= budget
    one_neuron = 6 * sizes.hidden_size * plan.visual_tokens / dense_visual_flops(sizes, grids)
    assert cost(plan).share + one_neuron > min(budget, cost(dense_plan(sizes, grids)).share)


@pytest.mark.parametrize("budget", [0.5, 0.25, 0.12, 0.04])
@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("recipe", RECIPES)
def test_budgets_are_met_at_real_size(recipe: str, name: str, budget: float) -> None:
    assert_met(recipe, name, budget, measured=False)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in REAL])
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("measured", [True, False])
def test_any_budget_is_met(recipe: str, name: str, measured: bool) -> None:
    least = {"interlaced": 0.004, "yopo": 0.03}[recipe]
    for step in range(20):
        assert_met(recipe, name, least + (0.999 - least) * step / 20, measured)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_budget_above_the_dense_cost_gives_the_dense_plan(recipe: str) -> None:
    dense = normalise(dense_plan(DEMO, DEMO_GRIDS))
    assert make_plan(recipe, None, DEMO, DEMO_GRIDS, cost(dense).share) == dense
    assert make_plan(recipe, None, DEMO, DEMO_GRIDS, 0.999) == dense
    assert make_plan(recipe, None, DEMO, DEMO_GRIDS, cost(dense).share - 1e-6) != dense


def test_the_smallest_plan_by_hand() -> None:
    """K and V of one head for 9 of 144 tokens, in 128 columns of 16: 2 * 2 * 9 * 128 * 16 FLOPs."""
    assert cost(smallest_plan(DEMO, DEMO_GRIDS)).visual == 2 * 2 * 9 * 128 * 16


@pytest.mark.parametrize("name", ["demo", "tiny-grouped"])
def test_below_the_smallest_plan_the_hint_names_a_budget_that_works(name: str) -> None:
    sizes, grids = MODELS[name]
    with pytest.raises(YopoError, match="below the smallest that a plan can reach") as caught:
        make_plan("interlaced", None, sizes, grids, 1e-6)
    smallest = float(caught.value.hint.split()[-1].rstrip("."))
    assert cost(make_plan("interlaced", None, sizes, grids, smallest)).visual == cost(smallest_plan(sizes, grids)).visual


def test_the_paper_cannot_read_less_than_one_head_of_every_token() -> None:
    with pytest.raises(YopoError, match="below the smallest that the recipe yopo can reach") as caught:
        make_plan("yopo", None, DEMO, DEMO_GRIDS, 0.001)
    plan = make_plan("yopo", None, DEMO, DEMO_GRIDS, float(caught.value.hint.split()[-1].rstrip(".")))
    assert sum(len(layer.read_heads) for layer in plan.layers) == 1


@pytest.mark.parametrize("budget", [0.0, 1.0, -0.1, float("nan"), 12])
def test_a_budget_out_of_range_is_refused(budget: float) -> None:
    with pytest.raises(YopoError, match="not between 0 and 1"):
        make_plan("interlaced", None, DEMO, DEMO_GRIDS, budget)


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(YopoError, match="no recipe 'best'") as caught:
        make_plan("best", None, DEMO, DEMO_GRIDS, 0.5)
    assert "interlaced, yopo" in caught.value.hint


def test_statistics_of_other_sizes_are_refused() -> None:
    with pytest.raises(YopoError, match=r"\(4, 8, 48\).*\(8, 8, 352\)"):
        make_plan("interlaced", statistics(MODELS["tiny-grouped"][0]), DEMO, DEMO_GRIDS, 0.5)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_same_input_gives_the_same_plan(recipe: str) -> None:
    first, again = (make_plan(recipe, statistics(DEMO), DEMO, DEMO_GRIDS, 0.2) for _ in range(2))
    assert first == again


def test_interlaced_reads_everywhere_with_later_layers_sparser() -> None:
    plan = make_plan("interlaced", statistics(DEMO), DEMO, DEMO_GRIDS, 0.06)
    stride = [layer.read_stride for layer in plan.layers]
    assert all(len(layer.read_heads) == 8 and not layer.self_heads for layer in plan.layers)
    assert stride == sorted(stride)
    assert stride[-1] - stride[0] <= 1


def test_interlaced_updates_with_what_reading_leaves() -> None:
    plan = make_plan("interlaced", statistics(DEMO), DEMO, DEMO_GRIDS, 0.4)
    assert {layer.read_stride for layer in plan.layers} == {1}
    assert all(layer.self_heads and layer.neurons and layer.window == 5 for layer in plan.layers[:-1])
    assert plan.locality == "causal"


def test_interlaced_keeps_the_best_units_of_each_layer() -> None:
    measured = statistics(DEMO)
    layer = make_plan("interlaced", measured, DEMO, DEMO_GRIDS, 0.4).layers[2]
    assert set(layer.neurons) == set(measured.neurons[2].topk(len(layer.neurons)).indices.tolist())
    assert set(layer.self_heads) == set(measured.self_[2].topk(len(layer.self_heads)).indices.tolist())


def test_below_a_stride_of_sixteen_the_best_kv_heads_of_each_layer_read() -> None:
    sizes, grids = MODELS["tiny-grouped"]
    measured = statistics(sizes)
    plan = make_plan("interlaced", measured, sizes, grids, 0.002)
    assert [len(layer.read_heads) for layer in plan.layers] == [0, 4, 4, 4]
    for layer, scores in zip(plan.layers[1:], measured.read.unflatten(1, (2, 4)).sum(-1)[1:], strict=True):
        assert layer.read_heads[0] // 4 == int(scores.argmax())
        assert layer.read_stride == 16


def test_the_paper_as_published() -> None:
    measured = statistics(DEMO)
    plan = make_plan("yopo", measured, DEMO, DEMO_GRIDS, 0.3)
    assert plan.locality == "symmetric"
    assert plan.visual_depth == 4
    assert all(len(layer.read_heads) == 8 for layer in plan.layers[:2])
    for layer in plan.layers[:3]:
        assert layer.read_heads == layer.self_heads
        assert layer.neurons == tuple(range(len(layer.neurons)))
        assert (layer.window, layer.read_stride) == (5, 1)
    kept = [(index, head) for index in (2, 3) for head in plan.layers[index].read_heads]
    ratios = measured.ratio_quantile(0.4)
    lost = [(index, head) for index in (2, 3) for head in range(8) if (index, head) not in kept]
    assert kept
    assert lost
    assert min(ratios[unit] for unit in kept) >= max(ratios[unit] for unit in lost)


def test_shares_of_heads_and_neurons_fall_together() -> None:
    plans = [make_plan("yopo", statistics(DEMO), DEMO, DEMO_GRIDS, budget) for budget in (0.3, 0.2, 0.12)]
    heads = [sum(len(layer.read_heads) for layer in plan.layers[2:4]) for plan in plans]
    neurons = [sum(len(layer.neurons) for layer in plan.layers) for plan in plans]
    assert all(more > less for counts in (heads, neurons) for more, less in pairwise(counts))


def test_a_budget_beyond_half_of_the_layers_goes_deeper() -> None:
    assert make_plan("yopo", None, DEMO, DEMO_GRIDS, 0.6).visual_depth > 4


def test_layers_0_and_1_are_exempt_only_while_they_fit() -> None:
    plan = make_plan("yopo", statistics(DEMO), DEMO, DEMO_GRIDS, 0.03)
    assert len(plan.layers[0].read_heads) < 8


def test_the_ten_sample_vote() -> None:
    """A head whose ratio exceeds alpha in more than 4 of 10 samples has its quantile above alpha."""
    measured = statistics(DEMO, seed=3)
    generator = torch.Generator().manual_seed(3)
    ratios = torch.rand(8, 8, 10, generator=generator)
    alpha = 2.0**-1.5  # on the edge of a bin
    votes = (ratios > alpha).sum(-1)
    assert torch.equal(measured.ratio_quantile(0.4) > alpha, votes > 4)
