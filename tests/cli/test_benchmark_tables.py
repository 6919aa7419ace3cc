"""What `yopo eval` prints of benchmarks, from figures made by hand."""

from typing import Any

from support.report_inputs import EVALUATION, KEPT, TASK, side

from converters.evaluation.benchmarks import Evaluation
from yopo_cli.ui.benchmarks import benchmark_tables, executed_lines


def test_tables() -> None:
    first, kinds = benchmark_tables(EVALUATION)
    assert first[0] == ("gqa", "accuracy", "95 %", "kept", "95 %", "lost/won", "p", "changed")
    assert first[1] == [
        ("dense", "100.00", "100.0-100.0", "-", "-", "-", "-", "-"),
        ("pruned", "50.00", "0.0-100.0", "50.0%", "25.0-100.0", "2/0", "0.5", "50.0%"),
        ("fastv", "25.00", "-", "50.0%", "25.0-100.0", "2/0", "0.5", "50.0%"),
    ]
    assert kinds[0] == ("gqa by kind", "questions", "dense", "pruned", "fastv")
    assert kinds[1] == [("query", "4", "100.00", "0.00", "12.50"), ("verify", "4", "100.00", "50.00", "25.00")]


def test_many_sides_stand_in_several_tables() -> None:
    names = ["dense", *"abcdef"]
    sides = {name: side(50, 40, 60) for name in names}
    task = TASK | {"sides": sides, "kinds": {"x": sides, "y": sides}}
    columns = [columns for columns, _ in benchmark_tables(EVALUATION | {"tasks": {"pope": task}})]
    assert columns[1:] == [("pope by kind", "questions", "dense", *"abcd"), ("pope by kind", "questions", "dense", *"ef")]


def test_other_figures_and_those_that_are_none() -> None:
    figures: dict[str, Any] = {"f1": {"value": 80.0, "low": None, "high": None}, "precision": {"value": None, "low": None, "high": None}}
    task = TASK | {"sides": {"dense": {"questions": 3, "figures": figures}}, "kinds": {}}
    _, others = benchmark_tables(EVALUATION | {"tasks": {"pope": task}})
    assert others == (("pope", "precision"), [("dense", "-")])


def test_what_was_executed() -> None:
    assert list(executed_lines(EVALUATION)) == [
        "protocol llava; greedy, 16 questions at a time, float32 on cpu",
        "dense: 100.00 % of the dense visual FLOPs",
        "pruned: 12.00 % of the dense visual FLOPs",
        "fastv: 11.00 % of the dense visual FLOPs; visual tokens by layer 576 x 2, 61 x 1; as published",
        "vica: left out. x",
        "gqa: 4 of 12 questions about 4 pictures; lmms-lab/GQA@0123456789ab",
        "gqa: 100.00 dense here, 62 published for demo (protocol llava)",
    ]
    assert Evaluation.of("gqa", TASK).retention == KEPT["retention"]["value"]
    assert Evaluation.of("gqa", TASK | {"sides": {}}).retention is None
