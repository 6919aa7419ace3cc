"""Changes chosen together by price tables, on prices made up so that the choice can be worked out by hand."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from converters.planning.measure.prices import Knobs, LayerPrices, PlanPrices
from converters.planning.search.chosen import Choice, LayerSetting, higher, lower
from converters.planning.search.moves import visual_flops
from converters.runtime.plan import Grid, LayerPlan, Plan, Sizes, dense_plan, normalise

SIZES = Sizes(16, 8, 3, 4, 2, 4)
KNOBS = Knobs((1, 2, 4), (0, 5, 3), (None, 4, 2))
DENSE = normalise(dense_plan(SIZES, (Grid(4, 4),)))


def prices(seed: int = 0, questions: int = 3, plan: Plan = DENSE, moved: float = 0.0) -> PlanPrices:
    """Random contributions under two probes; what nobody reads adds nothing."""
    random = np.random.default_rng(seed)

    def some(units: int) -> np.ndarray:
        return random.normal(size=(units, 3, questions)).astype(np.float32)

    layers = []
    for index in range(SIZES.num_hidden_layers):
        updates = index < plan.visual_depth - 1
        own = plan.layers[index].kv_rank
        rank = {one: some(2) * (one != own) for one in KNOBS.ranks}
        queries = {one: some(4 * updates) * (one != own) for one in KNOBS.ranks}
        heads, neurons = {window: some(4 * updates) for window in KNOBS.windows}, some(8 * updates)
        layers.append(LayerPrices({stride: some(2) for stride in KNOBS.strides}, heads, neurons, rank, queries))
    return PlanPrices(tuple(layers), np.full(questions, moved, np.float32))


def only_neurons(contributions: Sequence[Sequence[float]], moved: float = 0.0) -> PlanPrices:
    """Prices of the neurons of layer 0, `[along the move, across it]` each, of one question; all else adds nothing."""
    nothing = prices(questions=1)
    quiet = [
        LayerPrices(*(
            {key: vectors * 0 for key, vectors in getattr(layer, name).items()} if name != "neurons" else layer.neurons * 0
            for name in ("read", "self_heads", "neurons", "rank", "queries")
        ))
        for layer in nothing.layers
    ]  # fmt: skip
    neurons = np.zeros((8, 3, 1), np.float32)
    neurons[:, :2, 0] = contributions
    return PlanPrices((replace(quiet[0], neurons=neurons), *quiet[1:]), np.full(1, moved, np.float32))


def with_setting(choice: Choice, index: int, setting: LayerSetting) -> Plan:
    layers = [table.layer(one) for table, one in zip(choice.tables, choice.settings, strict=True)]
    layers[index] = choice.tables[index].layer(setting)
    return normalise(replace(DENSE, layers=tuple(layers)))


@pytest.mark.parametrize("seed", range(3))
def test_what_is_chosen_costs_what_is_said(seed: int) -> None:
    """On the way down and up again, also where deeper layers lose their last reader, and what it is all for."""
    choice = Choice(DENSE, prices(seed), KNOBS, ())
    assert choice.flops == visual_flops(DENSE)
    depths = {choice.depth}
    for share in (0.7, 0.4, 0.1, 0.02):
        limit = int(visual_flops(DENSE) * share)
        choice.down(limit)
        assert choice.flops == visual_flops(choice.result()) <= limit
        depths.add(choice.depth)
        low = choice.flops
        choice.up(int(limit * 1.1))
        assert low <= choice.flops == visual_flops(choice.result()) <= limit * 1.1
        for index, up in product(range(3), (False, True)):
            found = choice.candidates(index, up)
            for setting, added in zip(found.settings, choice.added(index, found), strict=True):
                assert visual_flops(with_setting(choice, index, setting)) - choice.flops == added
    assert len(depths) > 1


def test_the_predicted_move_is_that_of_all_changes_together() -> None:
    """Against contributions added up unit by unit."""
    start = normalise(replace(DENSE, layers=(LayerPlan((0, 1), (0, 1, 2), (0, 1, 2, 3, 4), 5, 2, 4), *DENSE.layers[1:])))
    made = prices(1, plan=start, moved=0.5)
    choice = Choice(start, made, KNOBS, ())
    choice.down(int(choice.flops * 0.6))
    assert choice.depth == 3  # else updates that nobody reads any more are gone too
    total = np.zeros((3, 3))
    for index, (before, after) in enumerate(zip(start.layers, choice.result().layers, strict=True)):
        for sign, layer in ((-1, before), (1, after)):
            one, held = made.layers[index], {head // 2 for head in layer.self_heads}
            read = {head // 2 for head in layer.read_heads}
            total += sign * sum(one.read[1 if head in held else layer.read_stride][head] for head in read)
            total += sign * sum(one.rank[layer.kv_rank][head] for head in read | held)
            if index < 2:
                total += sign * sum(one.self_heads[layer.window or 0][head] + one.queries[layer.kv_rank][head] for head in layer.self_heads)
                total += sign * sum(one.neurons[neuron] for neuron in layer.neurons)
    total[0] += 0.5
    assert choice.predicted == pytest.approx(float((total**2).sum()), rel=1e-4)


def test_neurons_go_by_what_each_is_worth() -> None:
    """The one whose loss takes the logits back along the way that they have moved is the first to go, though it adds the most."""
    across = [[0.0, 1.0 + index] for index in range(8)]
    order = Choice(DENSE, only_neurons(across), KNOBS, ()).tables[0].order
    assert order == (7, 6, 5, 4, 3, 2, 1, 0)
    along = [[0.1, 0.1]] * 7 + [[3.0, 0.1]]
    assert Choice(DENSE, only_neurons(along, moved=5.0), KNOBS, ()).tables[0].order[-1] == 7
    assert Choice(DENSE, only_neurons(along, moved=0.0), KNOBS, ()).tables[0].order[0] == 7


def test_settings_around_one() -> None:
    table = Choice(DENSE, prices(), KNOBS, ()).tables[0]
    start = table.start
    assert start == LayerSetting(frozenset({0, 1}), frozenset({0, 1, 2, 3}), 8)
    below = set(lower(table, start, KNOBS, ("window",)))
    assert replace(start, self_heads=frozenset(), neurons=0) in below
    assert replace(start, rank=4) in below
    assert not any(setting.window for setting in below)
    assert all(setting.rank is None or setting.rank in (4, 2) for setting in below)
    least = LayerSetting(frozenset(), frozenset(), 0)
    assert {setting.read for setting in higher(table, least, KNOBS, (), dead=True)} == {frozenset({0}), frozenset({1})}
    assert any(setting.neurons for setting in higher(table, least, KNOBS, (), dead=False))
