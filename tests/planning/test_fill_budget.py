"""What is left of a budget: spent to the last neuron, and below one by exchanges."""

from dataclasses import replace
from itertools import pairwise

import pytest

from converters.planning.cost import dense_visual_flops
from converters.planning.fill_budget import is_spent, limit_of, spent
from converters.planning.importance import ranks
from converters.planning.search.moves import visual_flops
from converters.runtime.plan import Grid, LayerPlan, Plan, Sizes, normalise

SIZES = Sizes(hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=8, head_dim=16)
ALL = tuple(range(8))
NEURON = 2 * 3 * 128 * 144
RANK = 2 * 144 * (128 + 2 * 8 * 16)  # of all heads' K and V
QUERIES = 2 * 144 * 16  # more for each head that computes


def plan_of(*layers: LayerPlan, sizes: Sizes = SIZES) -> Plan:
    return normalise(Plan(sizes, layers, (Grid(12, 12),)))


def computing(neurons: int, first: int, second: int) -> Plan:
    """Three heads of the second layer compute; all layers are read, through few dimensions: so many in the first two, then 16."""
    reading = LayerPlan(ALL, (), (), kv_rank=16)
    layer = LayerPlan(ALL, (0, 1, 2), (), kv_rank=second)
    return plan_of(replace(reading, neurons=tuple(range(neurons)), kv_rank=first), layer, reading, reading)


@pytest.mark.parametrize(
    ("plan", "exchanged"),
    [(computing(2, 16, 16), computing(1, 16, 17)), (computing(0, 16, 16), computing(0, 15, 17))],
    ids=["neuron", "rank"],
)
def test_a_rank_is_exchanged_for_what_costs_less(plan: Plan, exchanged: Plan) -> None:
    """A rank costs as much as a neuron where nothing computes, and three heads' queries more where three do."""
    assert RANK == NEURON
    assert visual_flops(exchanged) - visual_flops(plan) == 3 * QUERIES
    limit = round(visual_flops(plan) / 0.994)
    assert 3 * QUERIES < limit - visual_flops(plan) < NEURON
    assert spent(plan, limit, ranks(None, SIZES), ()) == exchanged


def test_where_a_neuron_does_not_fit_a_rank_may() -> None:
    """Half as many KV heads: a rank costs two thirds of a neuron."""
    sizes = replace(SIZES, num_key_value_heads=4)
    reading = LayerPlan(ALL, (), (), kv_rank=16)
    plan, more = (plan_of(replace(reading, neurons=(0,), kv_rank=rank), *[reading] * 3, sizes=sizes) for rank in (16, 17))
    assert visual_flops(more) - visual_flops(plan) == NEURON * 2 // 3
    assert spent(plan, visual_flops(plan) + NEURON - 1, ranks(None, sizes), ()) == more


def test_what_is_close_is_left_alone() -> None:
    """200 neurons are enough for what is less than one of them to be less than half a percent."""
    order, plan = ranks(None, SIZES), computing(200, 16, 16)
    assert spent(plan, visual_flops(plan) + NEURON - 1, order, ()) == plan


def test_nothing_is_exchanged_that_uses_no_more() -> None:
    """All units cost the same."""
    reading = LayerPlan(ALL, (), (), kv_rank=16)
    order, plan = ranks(None, SIZES), plan_of(replace(reading, neurons=(0,)), *[reading] * 3)
    assert spent(plan, visual_flops(plan) + NEURON - 1, order, ()) == plan


def test_no_head_is_exchanged_for_most_neurons() -> None:
    """A self head costs 22 neurons and a part of one; the 23 that are there would pay for it."""
    sizes = replace(SIZES, num_hidden_layers=2)
    plan = plan_of(LayerPlan(ALL, (), tuple(range(23))), LayerPlan(ALL, (), ()), sizes=sizes)
    head = visual_flops(plan_of(LayerPlan(ALL, (0,), ()), LayerPlan(ALL, (), ()), sizes=sizes)) - visual_flops(plan) + 23 * NEURON
    assert 22 * NEURON < head < 23 * NEURON
    limit = visual_flops(plan) + NEURON - 1
    assert visual_flops(plan) < 0.995 * limit
    assert spent(plan, limit, ranks(None, sizes), ()) == plan


@pytest.mark.parametrize(
    ("start", "share"),
    [
        (computing(0, 16, 4), 0.995),
        (plan_of(*[LayerPlan(ALL, (), (), read_stride=16)] * 4), 0.995),
        (plan_of(*[LayerPlan((0,), (0,), (), window=5)] * 4), 0.994),
    ],
    ids=["ranks", "stride", "neither"],
)
def test_every_budget_is_used_up_but_for_half_a_percent(start: Plan, share: float) -> None:
    """Or, where nothing is small enough to be exchanged, for less than a neuron."""
    order = ranks(None, SIZES)
    budgets = [number / 1000 for number in range(60, 240, 4)]
    plans = [spent(start, limit_of(budget, start), order, ()) for budget in budgets]
    for budget, plan in zip(budgets, plans, strict=True):
        assert plan == normalise(plan)
        assert share * budget <= visual_flops(plan) / dense_visual_flops(SIZES, plan.grids) <= budget
        assert is_spent(plan, limit_of(budget, plan))
    assert all(visual_flops(less) < visual_flops(more) for less, more in pairwise(plans))


def test_a_plan_beyond_the_limit_is_left_alone() -> None:
    order, plan = ranks(None, SIZES), computing(2, 16, 16)
    assert spent(plan, visual_flops(plan) - 1, order, ()) == plan
