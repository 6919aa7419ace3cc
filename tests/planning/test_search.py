"""The measured search: exact budgets, no worse than recipes, the same again, and the same when it was interrupted."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.tiny import tiny_inputs, tiny_llava
from support.tiny_runtime import sizes_of
from support.tiny_search import ANSWER_TOKENS, BUDGETS, EFFORT, searched, subject
from support.toy_trials import ToyTrials

from converters.calibration.statistics import calibrate
from converters.errors import YopoError
from converters.planning.cost import cost
from converters.planning.fill_budget import is_filled
from converters.planning.importance import importance_order
from converters.planning.measure.answers import answered
from converters.planning.measure.trials import Trials
from converters.planning.recipes import make_plan
from converters.planning.search.descent import DescentOptions, SearchStep, descend
from converters.planning.search.moves import Move, moved, moves_up, moves_worth, notches, rank_notches, visual_flops
from converters.planning.search.refine import ascend, refine
from converters.planning.search.search import SURE_RECIPES, Effort, SearchReport, auto_plan, recipe_plans, search
from converters.runtime.plan import Grid, LayerPlan, Plan, Sizes, dense_plan, factored, from_json, normalise, to_json


def rising_prices(plan: Plan, question: int) -> float:
    """A drift without a model: every layer's knobs cost more the less they keep, so that prices only rise."""
    sizes = plan.sizes
    total = 0.0
    for index, layer in enumerate(plan.layers):
        parts = (len(layer.read_heads) / sizes.num_attention_heads / layer.read_stride, len(layer.neurons) / sizes.intermediate_size)
        parts += (len(layer.self_heads) / sizes.num_attention_heads,)
        total += sum((index + weight) * (1 - part) ** 3 for part, weight in zip(parts, (5, 2, 1), strict=True))
    return total


def toy(plan: Plan, uncertain: float = 0.0) -> ToyTrials:
    return ToyTrials(plan, rising_prices, uncertain=uncertain)


def exhaustive(toy: ToyTrials, step: SearchStep, limit: int, order: Any) -> list[Move]:
    """Every move measured at every step, for what it saves above the limit."""
    taken = []
    while step.flops > limit:
        priced = []
        for index in range(len(step.plan.layers)):
            for move, plan in moves_worth(step.plan, (index,), order, 0.02):
                saved = step.flops - visual_flops(plan)
                priced.append(((toy.logit_drift(plan) - step.logit_drift) / saved * max(1.0, saved / (step.flops - limit)), move, plan))
        _, move, plan = min(priced, key=lambda one: one[:2])
        taken.append(move)
        step = SearchStep(plan, toy.logit_drift(plan), visual_flops(plan), move)
    return taken


def test_lazy_descent_is_the_exhaustive_one() -> None:
    _, config = tiny_llava(layers=2)
    order = importance_order(None, sizes_of(config))
    start = normalise(dense_plan(sizes_of(config), (Grid(8, 8),)))
    lazy, eager = toy(start), toy(start)
    step, limit = SearchStep(start, eager.logit_drift(start), visual_flops(start)), visual_flops(start) // 16
    steps = list(descend(lazy.some(1), step, limit, order, DescentOptions(grain=0.02), {}))
    assert [one.move for one in steps] == exhaustive(eager, step, limit, order)
    assert len(steps) > 10
    assert lazy.forwards < eager.forwards / 2


def toy_start(layers: int, read: int, self_heads: int, neurons: int, share: float) -> tuple[Any, SearchStep, int]:
    """Ranks, a plan whose layers all keep so many units, and a share of the dense model's FLOPs."""
    _, config = tiny_llava(layers=layers)
    sizes = sizes_of(config)
    dense = normalise(dense_plan(sizes, (Grid(8, 8),)))
    layer = LayerPlan(tuple(range(read)), tuple(range(self_heads)), tuple(range(neurons)))
    plan = normalise(replace(dense, layers=(layer,) * layers))
    return (
        importance_order(None, sizes),
        SearchStep(plan, toy(plan).logit_drift(plan), visual_flops(plan)),
        int(visual_flops(dense) * share),
    )


def test_up_it_goes_by_the_best_of_all_moves() -> None:
    """Against every move measured at every step; in this toy gains only fall, so that none that was measured early is missed."""
    order, start, limit = toy_start(3, 1, 0, 2, 0.5)
    lazy, eager, taken = toy(start.plan), toy(start.plan), []
    steps = list(ascend(lazy.some(1), start, limit, order, DescentOptions(grain=0.02), {}))
    step = start
    while True:
        raised = [
            ((step.logit_drift - eager.logit_drift(plan)) / (visual_flops(plan) - step.flops), move, plan)
            for index in range(3)
            for move in moves_up(step.plan, (index,))
            if step.flops + 0.02 * limit < visual_flops(plan := moved(step.plan, move, order)) <= limit
        ]
        if not raised or max(raised, key=lambda one: one[:2])[0] <= 0:
            break
        _, move, plan = max(raised, key=lambda one: one[:2])
        taken.append(move)
        step = SearchStep(plan, eager.logit_drift(plan), visual_flops(plan), move)
    assert [one.move for one in steps] == taken
    assert len(steps) > 5
    assert lazy.forwards < eager.forwards
    assert all(before.flops < after.flops <= limit for before, after in zip([start, *steps], steps, strict=False))


def refined(trials: ToyTrials, start: SearchStep, order: Any, forwards: float = 1e9) -> SearchStep:
    """A plan refined within its own cost; a rank would cost the toy nothing."""
    return refine(trials.some(1), start, start.flops, order, DescentOptions(grain=0.02, without=("rank",)), forwards, 1e9, {})


def test_what_is_used_badly_is_used_where_it_gains() -> None:
    """Neurons and hardly a head that reads: the toy wants the contrary. Little more than half of the drift, no more than a descent from the
    dense model leaves; and there is nothing to gain twice."""
    order, start, _ = toy_start(3, 1, 2, 16, 1.0)
    dense = normalise(dense_plan(start.plan.sizes, start.plan.grids))
    trials, options = toy(start.plan), DescentOptions(grain=0.02, without=("rank",))
    better = refined(trials, start, order)
    *_, down = descend(trials.some(1), SearchStep(dense, 0.0, visual_flops(dense)), start.flops, order, options, {})
    assert better.flops == visual_flops(better.plan)
    assert is_filled(better.plan, start.flops)
    assert better.logit_drift == trials.logit_drift(better.plan) < start.logit_drift * 0.6
    assert better.logit_drift <= down.logit_drift
    assert refined(trials, better, order) is better


def test_refinement_needs_forward_passes() -> None:
    order, start, _ = toy_start(3, 1, 2, 16, 1.0)
    trials = toy(start.plan)
    assert refined(trials, start, order, forwards=3.0) is start
    assert trials.forwards == 0


def test_what_may_be_chance_is_no_gain() -> None:
    """The plan of above, of about half of the drift, against what is uncertain."""
    order, start, _ = toy_start(3, 1, 2, 16, 1.0)
    assert refined(toy(start.plan, start.logit_drift * 0.9), start, order) is start
    assert refined(toy(start.plan, start.logit_drift * 0.3), start, order).logit_drift < start.logit_drift * 0.7


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_budgets_are_met_from_below(kv_heads: int) -> None:
    frontier = searched(kv_heads)
    neuron = 2 * 3 * 32 * 16 / cost(frontier.asked[0].plan).visual_dense
    for budget in (*BUDGETS, 0.11, 0.33):
        point = frontier.at(budget)
        assert point.asked == budget
        assert budget - neuron < point.share <= budget
        assert from_json(to_json(point.plan)) == normalise(point.plan) == point.plan


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_never_worse_than_a_recipe(kv_heads: int) -> None:
    model, config, batches, statistics = subject(kv_heads)
    dense = dense_plan(sizes_of(config), statistics.grids)
    trials = Trials(model, [answered(model, batch, ANSWER_TOKENS) for batch in batches], dense, fitting=True)
    for point in searched(kv_heads).asked:
        assert trials.logit_drift(point.plan) == pytest.approx(point.logit_drift, abs=1e-6)
        assert point.asked is not None
        for recipe in SURE_RECIPES:
            assert point.logit_drift <= trials.logit_drift(make_plan(recipe, statistics, dense.sizes, dense.grids, point.asked)) + 1e-6


def test_the_effort_is_kept() -> None:
    """With so few forwards but for the end of the last descent, which has to reach its budget."""
    assert searched().forwards < EFFORT.forwards * 1.05


class InterruptedSearchError(Exception):
    pass


@pytest.mark.parametrize(("last", "stage"), [(4, "dense"), (20, "from dense")])
def test_an_interrupted_search_goes_on_where_it_was(last: int, stage: str, tmp_path: Path) -> None:
    """Also while the first step measures all moves: every measurement is told and kept."""
    model, _, batches, statistics = subject()
    state = tmp_path / "state.json"
    reports: list[SearchReport] = []

    def interrupt(report: SearchReport) -> None:
        reports.append(report)
        if len(reports) == last:
            raise InterruptedSearchError

    with pytest.raises(InterruptedSearchError):
        search(model, batches, statistics, BUDGETS, max_answer_tokens=ANSWER_TOKENS, effort=EFFORT, state=state, progress=interrupt)
    assert reports[-1].forwards > reports[0].forwards
    assert reports[-1].stage == stage
    assert len({key.split(":")[0] for key in json.loads(state.read_text())["prices"]}) >= last // 2
    assert search(model, batches, statistics, BUDGETS, max_answer_tokens=ANSWER_TOKENS, effort=EFFORT, state=state) == searched()
    with pytest.raises(YopoError, match="is of another search: budgets differ"):
        search(model, batches, statistics, (0.5,), max_answer_tokens=ANSWER_TOKENS, effort=EFFORT, state=state)
    state.write_text("{")
    with pytest.raises(YopoError, match="is not JSON"):
        search(model, batches, statistics, BUDGETS, max_answer_tokens=ANSWER_TOKENS, effort=EFFORT, state=state)


def test_one_budget() -> None:
    model, _, batches, statistics = subject()
    plan = auto_plan(model, batches, statistics, 0.25, max_answer_tokens=ANSWER_TOKENS, effort=Effort(10.0))
    assert 0.24 < cost(plan).share <= 0.25


def test_blocks_of_layers() -> None:
    model, _, batches, statistics = subject()
    frontier = search(model, batches, statistics, (0.3,), max_answer_tokens=ANSWER_TOKENS, effort=Effort(15.0, block=2))
    assert 0.29 < frontier.at(0.3).share <= 0.3


@pytest.mark.parametrize("budgets", [(1.5,), (0.0,), (1e-6,)])
def test_impossible_budgets(budgets: tuple[float, ...]) -> None:
    model, _, batches, statistics = subject()
    with pytest.raises(YopoError, match="budget"):
        search(model, batches, statistics, budgets)


def test_no_samples() -> None:
    model, _, _, statistics = subject()
    with pytest.raises(YopoError, match="no calibration sample"):
        search(model, (), statistics, (0.5,))


def test_notches() -> None:
    assert notches(8) == (8, 6, 4, 3, 2, 1, 0)
    assert notches(32) == (32, 24, 16, 12, 8, 6, 4, 2, 0)
    assert notches(1) == (1, 0)


def test_ranks_that_are_worth_it() -> None:
    """K and V of 8 heads of 8: 64 x 128 numbers, or 64 + 128 for each dimension: below 42.7 of them."""
    assert rank_notches(Sizes(64, 8, 1, 8, 8, 8)) == (24, 16, 8, 4, 2)
    assert rank_notches(Sizes(64, 8, 1, 8, 2, 8)) == (16, 8, 4, 2)  # below 21.3


def test_ranks_need_compensation() -> None:
    model, _, batches, statistics = subject()
    for compensated in (True, False):
        effort = Effort(25.0, grain=0.05, compensated=compensated)
        plan = auto_plan(model, batches, statistics, 0.15, max_answer_tokens=ANSWER_TOKENS, effort=effort)
        assert bool(factored(plan)) == compensated
        assert 0.146 < cost(plan).share <= 0.15  # a neuron is 0.003


def test_knobs_that_are_left_alone() -> None:
    model, _, batches, statistics = subject()
    effort = Effort(15.0, grain=0.05, without=("stride", "window"))
    found = search(model, batches, statistics, (0.3,), max_answer_tokens=ANSWER_TOKENS, effort=effort)
    own = [point.plan for point in found.path if point.origin == "dense"]
    assert len(own) > 3
    assert {(layer.read_stride, layer.window) for plan in own for layer in plan.layers} == {(1, None)}


def test_without_windows_recipes_have_none() -> None:
    _, config, _, statistics = subject()
    dense = dense_plan(sizes_of(config), statistics.grids)
    found = {windows: recipe_plans(statistics, dense, 0.5, windows=windows) for windows in (True, False)}
    windowed = {
        windows: {name for name, plan in plans.items() if any(layer.window for layer in plan.layers)} for windows, plans in found.items()
    }
    assert windowed == {True: {"interlaced", "yopo"}, False: set()}
    assert "interlaced" in found[False]
    assert cost(found[False]["interlaced"]).share <= 0.5
    with pytest.raises(YopoError, match="The recipe yopo gives visual tokens a window"):
        make_plan("yopo", statistics, dense.sizes, dense.grids, 0.5, windows=False)


@pytest.mark.parametrize("refines", [True, False])
def test_plans_are_refined_unless_told_otherwise(refines: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, batches, statistics = subject()
    tried: list[Plan] = []
    monkeypatch.setattr("converters.planning.search.search.NEGLIGIBLE", 0.0)
    monkeypatch.setattr("converters.planning.search.search.refine", lambda few, step, *rest: (tried.append(step.plan), step)[1])
    auto_plan(model, batches, statistics, 0.3, max_answer_tokens=ANSWER_TOKENS, effort=Effort(30.0, grain=0.05, refines=refines))
    assert bool(tried) == refines


def test_same_seed_same_plan() -> None:
    model, _, batches, statistics = subject()
    options: dict[str, Any] = {"max_answer_tokens": ANSWER_TOKENS, "effort": Effort(20.0, grain=0.05)}
    first, second = (search(model, batches, statistics, (0.3, 0.1), **options) for _ in range(2))
    assert first == second


def test_budgets_of_every_size_are_used_up() -> None:
    """Within half a percent, where a neuron is small enough; layers move in blocks, and there are more stops than forwards."""
    model, config = tiny_llava(layers=8, heads=2, hidden=8, intermediate=2000)
    batches = (tiny_inputs(config, (3, 5), (1, 4)),)
    budgets = (0.85, 0.5, 0.12, 0.03)
    effort = Effort(20.0, block=4, grain=0.2)
    statistics = calibrate(model, batches, fingerprint="tiny")
    for point in search(model, batches, statistics, budgets, max_answer_tokens=1, effort=effort).asked:
        assert point.asked is not None
        assert 0.995 * point.asked < point.share <= point.asked


def test_grouped_kv_heads_are_given_up_whole() -> None:
    """The first self head of a group pays for the group's K and V: two of one group cost less than one of each of two."""
    sizes = Sizes(64, 48, 3, 8, 2, 8)
    layers = (LayerPlan(tuple(range(8)), tuple(range(8)), tuple(range(48))),) * 3
    plan = normalise(Plan(sizes, layers, (Grid(4, 4),)))
    order = importance_order(None, sizes)
    mixed = replace(order, self_heads=((0, 4, 1, 5, 2, 6, 3, 7),) * 3)
    assert moved(plan, Move((0,), "self", 4), mixed).layers[0].self_heads in ((0, 1, 2, 3), (4, 5, 6, 7))
    assert moved(plan, Move((0,), "read", 1), order).layers[0].read_heads == (0, 1, 2, 3)
