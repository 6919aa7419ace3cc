"""The search by price tables: exact budgets, within its passes, the same again, and the same when it was interrupted."""

from dataclasses import replace
from functools import cache
from math import log
from pathlib import Path
from typing import Any

import pytest
from support.tiny_runtime import sizes_of
from support.tiny_search import ANSWER_TOKENS, BUDGETS, subject

from converters.errors import YopoError
from converters.planning.cost import cost
from converters.planning.frontier import Frontier
from converters.planning.measure.answers import answered
from converters.planning.measure.prices import Pricing
from converters.planning.measure.trials import Trials
from converters.planning.recipes import make_plan
from converters.planning.search.priced import STEPS
from converters.planning.search.search import SearchReport, effort_of, priced_effort, search
from converters.runtime.plan import dense_plan, factored

EFFORT = priced_effort(60.0)


@cache
def searched(kv_heads: int = 4) -> tuple[Frontier, tuple[SearchReport, ...]]:
    model, _, batches, statistics = subject(kv_heads)
    reports: list[SearchReport] = []
    options: dict[str, Any] = {"max_answer_tokens": ANSWER_TOKENS, "effort": EFFORT, "progress": reports.append}
    return search(model, batches, statistics, BUDGETS, **options), tuple(reports)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_budgets_are_met_and_no_recipe_is_better(kv_heads: int) -> None:
    model, config, batches, statistics = subject(kv_heads)
    dense = dense_plan(sizes_of(config), statistics.grids)
    trials = Trials(model, [answered(model, batch, ANSWER_TOKENS) for batch in batches], dense, fitting=True)
    found, _ = searched(kv_heads)
    neuron = 2 * 3 * 32 * 16 / cost(found.asked[0].plan).visual_dense
    for point in found.asked:
        assert point.asked is not None
        assert point.asked - neuron < point.share <= point.asked
        assert trials.logit_drift(point.plan) == pytest.approx(point.logit_drift, abs=1e-6)
        assert point.logit_drift <= trials.logit_drift(make_plan("interlaced", statistics, dense.sizes, dense.grids, point.asked)) + 1e-6
    drifts = [point.logit_drift for point in found.asked]
    assert drifts == sorted(drifts)
    assert any(factored(point.plan) for point in found.asked)


def test_passes_are_those_of_rounds() -> None:
    """Down to 0.06 takes as many rounds at least as their longest step allows, each of seven passes, and few more."""
    found, reports = searched()
    stops = {(report.share, report.logit_drift) for report in reports if report.stage.startswith("from ")}
    assert len(stops) >= log(0.97 / 0.06) / -log(STEPS[0])
    assert found.forwards <= EFFORT.forwards
    assert found.dense_forwards is not None
    assert 0.3 * found.forwards < found.dense_forwards < found.forwards


class InterruptedSearchError(Exception):
    pass


def test_an_interrupted_search_goes_on_without_pricing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, batches, statistics = subject()
    state, reports, priced = tmp_path / "state.json", list[SearchReport](), list[Any]()
    options: dict[str, Any] = {"max_answer_tokens": ANSWER_TOKENS, "effort": EFFORT, "state": state}

    def interrupt(report: SearchReport) -> None:
        reports.append(report)
        if report.share < 0.3:
            raise InterruptedSearchError

    with pytest.raises(InterruptedSearchError):
        search(model, batches, statistics, BUDGETS, **options, progress=interrupt)
    of = Pricing.of
    monkeypatch.setattr(Pricing, "of", lambda self, plan: (priced.append(plan), of(self, plan))[1])
    assert search(model, batches, statistics, BUDGETS, **options) == searched()[0]
    resumed = len(priced)
    assert search(model, batches, statistics, BUDGETS, **options) == searched()[0]
    assert 0 < resumed == len(priced)


def test_knobs_that_are_left_alone() -> None:
    model, _, batches, statistics = subject()
    effort = replace(EFFORT, without=("window", "rank"), compensated=False)
    found = search(model, batches, statistics, (0.3,), max_answer_tokens=ANSWER_TOKENS, effort=effort)
    assert {(layer.window, layer.kv_rank) for point in (*found.asked, *found.path) for layer in point.plan.layers} == {(None, None)}


def test_efforts() -> None:
    usual, quick, thorough = (effort_of(name, 30, 5) for name in ("usual", "quick", "thorough"))
    assert (usual.forwards, effort_of("usual", 30, 1).forwards, quick.forwards) == (40, 20, 20)
    assert (usual.probes > 0, thorough.probes, thorough.forwards, thorough.block) == (True, 0, 800, 4)
    assert effort_of("25", 8, 5) == priced_effort(25.0)
    assert effort_of(200, 8, 5) == replace(effort_of("thorough", 8, 5), forwards=200.0)
    for wrong in ("fast", "-3", "nan"):
        with pytest.raises(YopoError, match=f"There is no effort '{wrong}'"):
            effort_of(wrong, 8, 1)
