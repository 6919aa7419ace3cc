"""Answers on disk, by several processes."""

from pathlib import Path

from converters.evaluation.record import LEFT_OUT, Record

SETTINGS = {"sides": ["dense", "pruned", "vica"], "seed": 0}


def test_parts_of_several_processes(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    first, second = (Record.open(file, SETTINGS, rank) for rank in (0, 1))
    first.note("dense", {"visual_share": 1.0})
    first.add({("gqa", "1"): {"dense": "yes"}})
    second.add({("gqa", "2"): {"dense": "no"}, ("pope", "1"): {"dense": "né"}})
    second.add({("gqa", "2"): {"pruned": "yes"}})
    both = Record.open(file, SETTINGS)
    assert both.answers == {("gqa", "1"): {"dense": "yes"}, ("gqa", "2"): {"dense": "no", "pruned": "yes"}, ("pope", "1"): {"dense": "né"}}
    assert not both.lacks([("gqa", "2")], ["dense", "pruned"])
    assert both.lacks([("gqa", "1"), ("gqa", "2")], ["dense", "pruned"])
    both.finish([{"task": "gqa", "id": "1", "answers": {"dense": "yes"}}], {"tasks": {}})
    assert [path.name for path in tmp_path.iterdir()] == ["answers.jsonl"]
    assert Record.open(file, SETTINGS).answers == {("gqa", "1"): {"dense": "yes"}}


def test_sides_that_are_left_out(tmp_path: Path) -> None:
    record = Record.open(None, SETTINGS)
    for side, facts in (("dense", {}), ("vica", {LEFT_OUT: "too small"}), ("pruned", {})):
        record.note(side, facts)
    assert record.sides == ["dense", "pruned"]
    assert list(tmp_path.iterdir()) == []
