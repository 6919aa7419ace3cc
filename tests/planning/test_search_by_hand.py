"""The search on five layers of one neuron each, so that which of them should go can be worked out by hand.

Neurons cost the same in every layer. A plan is written as the layers A, B, C, D that lack theirs, and tables say how much that changes the
answers; anything else that is changed makes them wrong. The neuron of the fifth layer is never computed: nothing would read its outcome.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from support.toy_trials import ToyTrials

from converters.planning.cost import dense_visual_flops
from converters.planning.frontier import Frontier, Point
from converters.planning.importance import ranks
from converters.planning.measure.trial import first_difference
from converters.planning.search.journal import Journal
from converters.planning.search.moves import visual_flops
from converters.planning.search.search import Effort, Search, search_trials
from converters.runtime.plan import Grid, Plan, Sizes, dense_plan, normalise

SIZES = Sizes(hidden_size=8, intermediate_size=1, num_hidden_layers=5, num_attention_heads=2, num_key_value_heads=2, head_dim=4)
NEURON = 2 * 3 * 8 * 4  # gate, up and down of eight dimensions, for four tokens
DENSE = normalise(dense_plan(SIZES, (Grid(2, 2),)))
ORDER = ranks(None, SIZES)
ONLY_NEURONS = ("read", "self", "window", "stride", "rank", "freeze")
EFFORT = Effort(1e6, slack=0.0, fading=1.0, grain=0.0, without=ONLY_NEURONS, refines=False)
Table = Mapping[str, float]


def without(letters: str) -> Plan:
    """The plan whose layers of these letters have no neuron."""
    layers = [replace(layer, neurons=()) if "ABCDE"[index] in letters else layer for index, layer in enumerate(DENSE.layers)]
    return normalise(replace(DENSE, layers=tuple(layers)))


def windowed(plan: Plan) -> Plan:
    """The same with a window of 3 in every layer."""
    return normalise(replace(plan, layers=tuple(replace(layer, window=3) for layer in plan.layers)))


def lacking(plan: Plan) -> str:
    return "".join(letter for letter, layer in zip("ABCD", plan.layers, strict=False) if not layer.neurons)


def toy(*tables: Table) -> ToyTrials:
    """Trials with a table for each question: the drift by what a plan lacks; 1 for plans that differ in more."""

    def drift(plan: Plan, question: int) -> float:
        return tables[question].get(lacking(plan), 1.0) if plan == without(lacking(plan)) else 1.0

    return ToyTrials(DENSE, drift, len(tables))


def budget_of(plan: Plan) -> float:
    """The smallest budget that allows the plan."""
    return (visual_flops(plan) + 0.5) / dense_visual_flops(SIZES, DENSE.grids)


def found(trials: ToyTrials, *counts: int, effort: Effort = EFFORT) -> list[str]:
    """What the plans lack that the search finds for budgets that so many neurons have to go for."""
    budgets = [budget_of(DENSE) - count * NEURON / dense_visual_flops(SIZES, DENSE.grids) for count in counts]
    points, _ = search_trials(trials, {budget: {} for budget in budgets}, ORDER, effort)  # type: ignore[arg-type]
    return [lacking(point.plan) for point in points]


def additive(**drifts: float) -> dict[str, float]:
    """The table in which every missing neuron adds its own drift."""
    table = {"": 0.0}
    for letter, drift in sorted(drifts.items()):
        table |= {lacked + letter: value + drift for lacked, value in table.items()}
    return table


def test_what_changes_the_answers_least_goes_first() -> None:
    assert found(toy(additive(A=0.03, B=0.01, C=0.02, D=0.04)), 1, 2, 3) == ["B", "BC", "ABC"]


def test_prices_that_fell_are_found_at_the_next_budget() -> None:
    """B was dear before A went; then it is the cheapest of all."""
    table = {"": 0.0, "A": 0.01, "B": 0.04, "C": 0.03, "D": 0.09, "AB": 0.03, "AC": 0.04, "AD": 0.10}
    assert found(toy(table), 1, 2) == ["A", "AB"]


def test_prices_that_fell_are_found_on_the_way() -> None:
    """C is measured at the second step, and taken; B and D, which were dearer, are believed to be cheaper by half at every step."""
    table = {"": 0.0, "A": 0.01, "B": 0.04, "C": 0.02, "D": 0.03, "AC": 0.03, "AB": 0.05, "AD": 0.04, "ACD": 0.06, "ABC": 0.035}
    assert found(toy(table), 3, effort=replace(EFFORT, fading=0.5)) == ["ABC"]
    assert found(toy(table), 3) == ["ACD"]


def test_a_move_is_looked_at_on_few_questions_and_taken_on_all() -> None:
    """The first question does not tell that the second one needs B."""
    first, second = additive(A=0.02, B=0.01, C=0.03, D=0.03), additive(A=0.02, B=0.09, C=0.03, D=0.03)
    assert found(toy(first, second), 1, effort=replace(EFFORT, few=1)) == ["A"]


def test_what_is_near_the_next_price_is_taken_within_the_slack() -> None:
    """At the second step D costs 0.0195 on the first question and 0.021 on both: within 10 % of 0.02, what B cost at the first step, and
    B is not measured again, which costs 0.001 now."""
    first = {"": 0.0, "A": 0.01, "B": 0.02, "C": 0.09, "D": 0.019, "AB": 0.011, "AC": 0.10, "AD": 0.0295}
    second = first | {"AD": 0.0325}
    assert found(toy(first, second), 2, effort=replace(EFFORT, few=1)) == ["AB"]
    assert found(toy(first, second), 2, effort=replace(EFFORT, few=1, slack=0.1)) == ["AD"]


def test_a_plan_that_uses_the_budget_up_is_taken_before_one_that_cannot() -> None:
    """A window saves four neurons, and nothing could be added to it; the budget is one neuron below the dense model."""
    budget = budget_of(without("A"))
    assert visual_flops(windowed(DENSE)) == visual_flops(DENSE) - 4 * NEURON
    trials = ToyTrials(DENSE, lambda plan, _: {"": 0.0, "A": 0.01}.get(lacking(plan), 0.1))
    (point,), _ = search_trials(trials, {budget: {"windowed": windowed(DENSE)}}, ORDER, EFFORT)  # type: ignore[arg-type]
    assert point.plan == without("A")


def test_the_plan_of_a_recipe_is_taken_where_it_is_better() -> None:
    """C and D are not missed together, which no first step tells."""
    trials = toy(additive(A=0.01, B=0.02, C=0.03, D=0.04) | {"CD": 0.001})
    (point,), _ = search_trials(trials, {budget_of(without("CD")): {"shortv": without("CD")}}, ORDER, EFFORT)  # type: ignore[arg-type]
    assert (point.plan, point.origin) == (without("CD"), "shortv")


def looked_back(smaller: Plan, larger: Plan, drifts: Mapping[Plan, float], forwards: float = 1e6) -> Plan:
    """The larger budget's plan after a look back from the smaller budget, each having just what its plan costs."""
    trials = ToyTrials(DENSE, lambda plan, _: drifts[plan])
    search: Any = Search(trials, ORDER, Effort(forwards), Journal(None, {}), lambda report: None)  # type: ignore[arg-type]
    points = [Point(plan, drifts[plan], "dense", budget_of(plan)) for plan in (larger, smaller)]
    after, last = search.back(points)
    assert (last, after.asked, after.shift) == (points[1], points[0].asked, drifts[after.plan])
    return after.plan  # type: ignore[no-any-return]


def test_a_smaller_budgets_plan_with_more_takes_the_place_of_a_worse_one() -> None:
    """D was found for the larger budget; BC with a neuron more is C, since of layers that lack as much the first one is filled first."""
    drifts = {DENSE: 0.0, without("BC"): 0.02, without("C"): 0.01, without("D"): 0.03}
    assert looked_back(without("BC"), without("D"), drifts) == without("C")


def test_a_larger_budgets_plan_is_never_worse_than_a_smaller_ones() -> None:
    """Where neither it nor the smaller plan with more is as good as the smaller plan, or nothing may be measured any more."""
    drifts = {DENSE: 0.0, without("BC"): 0.02, without("C"): 0.025, without("D"): 0.03}
    assert looked_back(without("BC"), without("D"), drifts) == without("BC")
    assert looked_back(without("BC"), without("D"), drifts | {without("C"): 0.0}, forwards=1.0) == without("BC")


def test_a_larger_budgets_plan_is_kept_from_a_cheaper_one() -> None:
    """A window, to which but one neuron can be added, is no use of a budget that leaves out but one neuron."""
    drifts = {DENSE: 0.0, windowed(without("B")): 0.02, windowed(DENSE): 0.005, without("A"): 0.01}
    assert looked_back(windowed(without("B")), without("A"), drifts) == without("A")


def frontier(asked: dict[str, float], path: dict[str, float]) -> Frontier:
    """A frontier of plans by what they lack, with their drifts."""
    points = [Point(without(letters), drift, "dense", budget_of(without(letters))) for letters, drift in asked.items()]
    way = [Point(without(letters), drift, "dense") for letters, drift in path.items()]
    return Frontier(tuple(points), tuple(way), ORDER, 10.0, 1, 0, "model", "data", "questions")


def test_between_budgets_the_best_plan_below_is_filled_where_the_next_one_has_more() -> None:
    """Two neurons have to go. BCD is better than BD, and a neuron fits beside it: that of C, which the next larger plan of the path has."""
    made = frontier({"A": 0.01, "ABCD": 0.05}, {"": 0.0, "A": 0.01, "BD": 0.045, "BCD": 0.03, "ABCD": 0.05})
    two = budget_of(without("AB"))
    assert budget_of(without("BD")) == two
    point = made.at(two)
    assert (point.plan, point.shift, point.asked) == (without("BD"), 0.03, two)
    assert made.at(budget_of(without("A"))) == made.asked[0]


def test_plans_differ_where_a_window_shows_other_tokens() -> None:
    """Causal windows in the layers 2 and 4 of five, or symmetric ones; without windows the two words mean the same."""
    layers = [replace(layer, window=3 if index in (2, 3) else None) for index, layer in enumerate(DENSE.layers)]
    plan = replace(DENSE, layers=tuple(layers))
    assert first_difference(plan, replace(plan, locality="symmetric")) == 2
    assert first_difference(DENSE, replace(DENSE, locality="symmetric")) == 5
    assert first_difference(plan, plan) == 5
    assert first_difference(without("BC"), without("C")) == 1
