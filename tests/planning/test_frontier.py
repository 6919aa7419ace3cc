"""Frontiers as files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.tiny_search import BUDGETS, searched

from converters.errors import YopoError
from converters.planning.frontier import Frontier
from converters.planning.search.moves import visual_flops


def test_a_saved_frontier_is_the_same(tmp_path: Path) -> None:
    file = tmp_path / "frontier.json"
    searched().save(file)
    assert Frontier.load(file) == searched()
    assert [path.name for path in tmp_path.iterdir()] == ["frontier.json"]


def test_the_path_falls() -> None:
    frontier = searched()
    assert [point.asked for point in frontier.asked] == sorted(BUDGETS, reverse=True)
    assert frontier.path[0].logit_drift == pytest.approx(0, abs=1e-5)
    assert visual_flops(frontier.path[0].plan) > visual_flops(frontier.path[-1].plan)


def test_a_budget_below_the_frontier() -> None:
    with pytest.raises(YopoError, match="is below the frontier, which ends at"):
        searched().at(1e-6)


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 9}', '{"schema": 1, "path": []}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "frontier.json"
    file.write_text(text)
    with pytest.raises(YopoError, match="frontier"):
        Frontier.load(file)
    with pytest.raises(YopoError, match="does not exist"):
        Frontier.load(tmp_path / "absent.json")


def test_a_damaged_plan_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "frontier.json"
    data = searched().to_json()
    data["asked"][0]["plan"]["unknown"] = 1
    file.write_text(json.dumps(data))
    with pytest.raises(YopoError, match="unknown key"):
        Frontier.load(file)


def test_the_frontiers_of_the_study_are_read() -> None:
    files = sorted((Path(__file__).parents[2] / "benchmarks" / "study" / "frontiers").glob("*-auto-0.json"))
    assert len(files) == 6
    for file in files:
        frontier = Frontier.load(file)
        assert frontier.questions_from in file.name or frontier.questions_from == "demo"
        assert frontier.samples == 128
        assert [point.asked for point in frontier.asked] in ([0.5, 0.25, 0.12, 0.06, 0.04, 0.03], [0.25, 0.12])
        drifts = [point.logit_drift for point in frontier.asked]
        assert drifts == sorted(drifts)  # a larger budget is never worse


EDITS: dict[str, tuple[Callable[[Any], object], str]] = {
    "a plan that costs more than was asked": (lambda data: data["asked"][-1].update(plan=data["asked"][0]["plan"]), "reaches"),
    "and says so": (
        lambda data: data["asked"][-1].update(plan=data["asked"][0]["plan"], reached=data["asked"][0]["reached"]),
        "the plan for the budget .* costs",
    ),
    "budgets that do not fall": (lambda data: data["asked"].reverse(), "its budgets do not fall"),
    "a plan of another model": (lambda data: data["asked"][-1]["plan"]["sizes"].update(hidden_size=96), "different models or grids"),
    "a plan on another grid": (lambda data: data["asked"][-1]["plan"].update(grids=[[2, 2, 1]]), "different models or grids"),
    "an order of fewer layers": (lambda data: data["importance_order"]["neurons"].pop(), "order of neurons is not one"),
    "an order with one twice": (lambda data: data["importance_order"]["self_heads"][0].append(0), "order of self_heads is not one"),
    "ratios of other heads": (lambda data: data["importance_order"]["ratios"][0].append(0.0), "ratios are not one for each head"),
    "a ratio that is text": (lambda data: data["importance_order"]["ratios"][0].append("1"), "importance_order.ratios.0.* is '1', but"),
    "a layer that is not there": (lambda data: data["path"][-1]["layers"].update({"99": {}}), "it changes layer 99"),
    "a negative drift": (lambda data: data["asked"][0].update(logit_drift=-1.0), "asked.0.logit_drift is -1.0, but"),
    "a key of another version": (lambda data: data.update(colour=1), "has an unknown key: colour"),
    "a missing key": (lambda data: data.pop("samples"), "lacks samples"),
    "no samples": (lambda data: data.update(samples=0), "samples is 0, but"),
    "a float for a seed": (lambda data: data.update(seed=0.5), "seed is 0.5, but"),
}


@pytest.mark.parametrize("case", EDITS)
def test_parts_that_do_not_go_together(case: str, tmp_path: Path) -> None:
    edit, sentence = EDITS[case]
    file, data = tmp_path / "frontier.json", json.loads(json.dumps(searched().to_json()))
    edit(data)
    file.write_text(json.dumps(data))
    with pytest.raises(YopoError, match=sentence):
        Frontier.load(file)
