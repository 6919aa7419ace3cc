"""Frontiers as files."""

import json
from pathlib import Path

import pytest
from planning.test_search import BUDGETS, found

from converters.errors import YopoError
from converters.planning.frontier import Frontier
from converters.planning.search.moves import visual_flops


def test_a_saved_frontier_is_the_same(tmp_path: Path) -> None:
    file = tmp_path / "frontier.json"
    found().save(file)
    assert Frontier.load(file) == found()
    assert [path.name for path in tmp_path.iterdir()] == ["frontier.json"]


def test_the_path_falls() -> None:
    frontier = found()
    assert [point.asked for point in frontier.asked] == sorted(BUDGETS, reverse=True)
    assert frontier.path[0].logit_drift == pytest.approx(0, abs=1e-5)
    assert visual_flops(frontier.path[0].plan) > visual_flops(frontier.path[-1].plan)


def test_a_budget_below_the_frontier() -> None:
    with pytest.raises(YopoError, match="is below the frontier, which ends at"):
        found().at(1e-6)


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 9}', '{"schema": 1, "path": []}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "frontier.json"
    file.write_text(text)
    with pytest.raises(YopoError, match="frontier"):
        Frontier.load(file)
    with pytest.raises(YopoError, match="cannot be read"):
        Frontier.load(tmp_path / "absent.json")


def test_a_damaged_plan_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "frontier.json"
    data = found().to_json()
    data["asked"][0]["plan"]["unknown"] = 1
    file.write_text(json.dumps(data))
    with pytest.raises(YopoError, match="unknown key"):
        Frontier.load(file)


def test_the_frontiers_of_the_study_are_read() -> None:
    files = sorted((Path(__file__).parents[2] / "benchmarks" / "study" / "frontiers").glob("*-auto-0.json"))
    assert len(files) == 5
    for file in files:
        frontier = Frontier.load(file)
        assert frontier.questions_from in file.name or frontier.questions_from == "demo"
        assert frontier.samples == 128
        assert [point.asked for point in frontier.asked] == [0.5, 0.25, 0.12, 0.06, 0.04, 0.03]
        drifts = [point.logit_drift for point in frontier.asked]
        assert drifts == sorted(drifts)  # a larger budget is never worse
