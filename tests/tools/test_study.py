"""The study's records: outcomes by question, paired intervals, and what is left to do."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from support.tiny import tiny_inputs, tiny_llava

from benchmarks import heal
from benchmarks.study import Setting, Subject, cells, known, packed
from benchmarks.study_ablations import ABLATIONS, gradients, text_too
from benchmarks.study_report import read, summary, table, unpacked
from converters.calibration.statistics import calibrate
from converters.checkpoint.reader import open_converted
from converters.data.samples import read_samples
from converters.families import family_of
from converters.loading import Dtype, load
from converters.planning.cost import cost
from converters.runtime.plan import LayerPlan, Plan

SETTING = Setting("demo", "demo", 200, 96, (0.25, 0.12), Path("none"))


def record(file: Path, **accuracies: list[bool]) -> Path:
    """A record of one budget, a line for each method and, by its number, seed."""
    facts: dict[str, Any] = {"model": "demo", "questions_from": "demo", "questions": 200, "samples": 96}
    lines = [facts | {"method": "dense", "budget": None, "seed": None, "accuracy": 1.0, "reached": 1.0, "right": packed([True] * 200)}]
    for name, right in accuracies.items():
        method, seed = name.rsplit("_", 1)
        accuracy = sum(right) / len(right)
        lines.append(
            facts | {"method": method, "budget": 0.12, "seed": int(seed), "accuracy": accuracy, "reached": 0.12, "right": packed(right)}
        )
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_outcomes_are_packed_whole() -> None:
    right = [False, False, True, False, True, True, False]
    assert unpacked(packed(right)).tolist() == right
    assert unpacked(packed([False] * 9)).tolist() == [0] * 9


def test_means_over_seeds_and_intervals_of_questions(tmp_path: Path) -> None:
    """The normal interval of a share of 200, and of a paired difference in 20 of them."""
    ours = [True] * 180 + [False] * 20
    found = read([record(tmp_path / "r.jsonl", auto_0=ours, auto_1=[True] * 200, yopo_0=[True] * 160 + [False] * 40)])[0]
    value, low, high = found.retention("auto", 0.12)
    assert value == pytest.approx(0.95)
    half = 1.96 * np.std([1.0] * 180 + [0.5] * 20) / 200**0.5
    assert (low, high) == pytest.approx((0.95 - half, 0.95 + half), abs=0.005)
    lead, least, most = found.lead("yopo", 0.12)
    assert lead == pytest.approx(0.15)
    assert 0.09 < least < lead < most < 0.21
    text = "\n".join(table(found))
    assert "| auto | 2 | 95.0 (" in text
    assert "[**+15.0**] |" in text


def test_the_summary_has_the_best_of_the_others(tmp_path: Path) -> None:
    outcomes = {"auto_0": 190, "yopo_0": 120, "vica_0": 150, "auto: not refined_0": 180}
    rights = {name: [True] * count + [False] * (200 - count) for name, count in outcomes.items()}
    lines = summary(read([record(tmp_path / "r.jsonl", **rights)]))
    assert lines[2:4] == ["| demo, `demo` | auto | **95.0** |", "| | best other | 75.0 vica |"]


def test_a_record_is_gone_on_with(tmp_path: Path) -> None:
    assert known(tmp_path / "none", SETTING) == set()
    file = record(tmp_path / "r.jsonl", auto_0=[True])
    assert known(file, SETTING) == {("dense", None, None), ("auto", 0.12, 0)}
    assert known(file, Setting("demo", "harder", 200, 96, (0.12,), file)) == set()


def test_token_pruners_are_asked_once_and_first_seeds_first() -> None:
    found = list(cells(SETTING, ["auto", "fastv", "random"], (0, 1)))
    assert found[:4] == [("dense", None, None), ("auto", 0.25, 0), ("fastv", 0.25, None), ("random", 0.25, 0)]
    assert len(found) == 1 + 2 * (2 * 2 + 1)
    assert found[-1] == ("random", 0.12, 1)


def test_the_last_record_of_a_cell_counts(tmp_path: Path) -> None:
    file, again = record(tmp_path / "r.jsonl", auto_0=[True] * 200), record(tmp_path / "a.jsonl", auto_0=[False] * 200)
    found = read([file, again])[0]
    assert found.outcomes["auto", 0.12].tolist() == [0.0] * 200
    assert found.seeds["auto", 0.12] == 1


def test_what_healing_gained(tmp_path: Path) -> None:
    worse, better = [True] * 180 + [False] * 20, [True] * 190 + [False] * 10
    found = read([record(tmp_path / "r.jsonl", auto_0=worse, healed_0=better)])[0]
    line = heal.table(found)[-2]
    assert line.startswith("| healed | 0.12 | 1 | 90.0 (85.")
    assert "| 95.0 (92." in line
    assert "| +5.00 (+2." in line


def test_a_folder_is_asked_as_a_plan_is(converted_demo: Path, tmp_path: Path) -> None:
    subject = Subject(Setting("demo", "demo", 24, 8, (0.12,), tmp_path / "r.jsonl"))
    assert heal.model_right(subject.model, subject.processor, subject.exam) == subject.plan_right(subject.dense)
    loaded = load(converted_demo, "cpu", Dtype.FLOAT32)
    found = heal.model_right(loaded.model, loaded.processor, subject.exam)
    assert found == subject.plan_right(open_converted(converted_demo).plan)


def test_lessons_are_a_file_of_questions(tmp_path: Path) -> None:
    file = heal.lessons(SETTING, 0, 3, tmp_path)
    assert [sample.answer for sample in read_samples(file)] == [None] * 3
    assert heal.lessons(SETTING, 0, 3, tmp_path) == file


def test_gradient_scores() -> None:
    """A head without values moves nothing; query heads of a group share what their KV head moves."""
    model, config = tiny_llava(heads=4, kv_heads=2)
    inputs = tiny_inputs(config, (2, 3), (4, 2))
    for layer in model.model.language_model.layers:
        layer.self_attn.v_proj.weight.data[: layer.self_attn.head_dim] = 0
    statistics = calibrate(model, [inputs], fingerprint="tiny")
    scores = gradients(model, lambda: [inputs], statistics)
    assert scores.shape == (2, 4)
    assert scores[:, :2].eq(0).all()
    assert scores[:, 2].gt(0).all()
    assert scores[:, 2].equal(scores[:, 3])


def test_heads_of_text_go_with_those_of_visual_tokens_and_come_back() -> None:
    model, config = tiny_llava(layers=3)
    sizes = family_of(config.to_dict()).sizes(config.to_dict())
    read = (LayerPlan((0, 2), (0,), ()), LayerPlan((1,), (), ()), LayerPlan((), (), ()))
    plan = Plan(sizes, read, (family_of(config.to_dict()).grid(config.to_dict()),))
    weights = [layer.self_attn.o_proj.weight for layer in model.model.language_model.layers]
    before = [weight.clone() for weight in weights]
    with text_too(model, plan):
        kept = [weight.unflatten(1, (4, -1)).ne(0).any(2).any(0).tolist() for weight in weights]
    assert kept == [[True, False, True, False], [False, True, False, False], [True] * 4]
    assert all(map(torch.equal, weights, before))


@pytest.mark.parametrize("name", [name for name in ABLATIONS if name.startswith("yopo")])
def test_ablations_keep_to_the_budget(name: str) -> None:
    model, config = tiny_llava(layers=4)
    inputs = tiny_inputs(config, (2, 3))
    statistics = calibrate(model, [inputs], fingerprint="tiny")
    sizes = family_of(config.to_dict()).sizes(config.to_dict())
    plan = ABLATIONS[name].plan(model, lambda: [inputs], statistics, sizes, statistics.grids, 0.3)
    assert 0.29 < cost(plan).share <= 0.3
