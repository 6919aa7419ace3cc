"""What `import yopo` gives: its names, what functions decide from what they are given, and what they refuse in a sentence."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import yopo
from converters.data.demo.shapes import samples as drawn
from converters.data.samples import samples_of

RED = Image.new("RGB", (96, 96), "red")


@pytest.fixture(scope="module")
def model():
    return yopo.load("demo")


@pytest.fixture(scope="module")
def statistics(model):
    return yopo.calibrate(model, "demo", count=4)


@pytest.fixture(scope="module")
def frontier(model, statistics):
    heard = []
    given = [*drawn(6, 0, "eval")]
    frontier = yopo.plan(
        model, given, [0.5], count=4, statistics=statistics, effort=yopo.Effort(6.0, grain=0.3), progress=heard.append
    )  # fmt: skip
    reports = [event for event in heard if isinstance(event, yopo.SearchProgress)]
    assert reports[-1].passes <= frontier.forwards
    assert {report.most_passes for report in reports} == {6.0}
    return frontier


def refused(call, *arguments, **options) -> str:
    with pytest.raises(yopo.YopoError) as caught:
        call(*arguments, **options)
    assert caught.value.hint
    return caught.value.message


def test_every_name_is_there_and_no_other():
    assert all(getattr(yopo, name) is not None for name in yopo.__all__)
    assert set(yopo.__all__) == set(dir(yopo))
    with pytest.raises(AttributeError, match="no attribute 'prune'"):
        yopo.prune  # noqa: B018


def test_importing_is_light():
    program = "import sys, yopo; assert not {'torch', 'transformers', 'numpy', 'PIL', 'huggingface_hub'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


class TestSamples:
    def test_a_list_is_streamed_in_its_order_with_places(self):
        given = [yopo.Sample(RED, "What?", "red"), yopo.Sample(RED, "Where?", "here", place="page 3")]
        found = samples_of(given, answers=True)
        assert (found.count, found.origin) == (2, "memory")
        assert [sample.place for sample in found.stream()] == ["sample 0", "page 3"]
        assert next(found.stream()).picture().size == (96, 96)

    def test_some_are_drawn_by_the_seed_in_their_order(self):
        given = [yopo.Sample(RED, str(number), "x") for number in range(20)]
        first, again, other = (
            [sample.question for sample in samples_of(given, answers=True, count=5, seed=seed).stream()] for seed in (0, 0, 1)
        )
        assert first == again != other
        assert first == sorted(first, key=int)

    def test_what_is_no_sample(self, tmp_path: Path):
        assert refused(samples_of, [], answers=False) == "There are no samples."
        assert refused(samples_of, [("a.png", "What?")], answers=False) == "sample 0 is a tuple, not a yopo.Sample."
        assert "the question is None" in refused(samples_of, [yopo.Sample(RED, None)], answers=False)
        assert "there is no image" in refused(samples_of, [yopo.Sample(tmp_path / "none.png", "What?")], answers=False)
        assert refused(samples_of, [yopo.Sample(RED, "What?")], answers=True) == "sample 0 has no answer to compare with."


class TestModels:
    def test_what_is_wrong_is_said_before_weights_are_read(self, converted_demo: Path, tmp_path: Path):
        assert "There is no model" in refused(yopo.load, "llava-9000")
        assert refused(yopo.load, "demo", dtype="int8") == "There is no number format 'int8'."
        assert refused(yopo.load, "demo", runtime="jax") == "There is no runtime 'jax'."
        assert "pruned already" in refused(yopo.convert, converted_demo, 0.25, tmp_path / "out")
        assert "was not written by yopo" in refused(yopo.verify, "demo")

    def test_weights_are_loaded_once_and_given_back(self):
        model = yopo.load("demo")
        assert "loaded" not in vars(model)
        first = model.torch
        assert model.torch is first
        model.unload()
        assert "loaded" not in vars(model)
        assert model.torch is not first

    def test_plan(self, converted_demo: Path):
        assert yopo.load("demo").plan is None
        assert yopo.load(converted_demo).plan == yopo.inspect(converted_demo).plan


class TestConvert:
    def test_statistics_say_what_they_were_made_from(self, statistics, tmp_path: Path):
        statistics.save(tmp_path / "statistics")
        found = yopo.Statistics.load(tmp_path / "statistics")
        assert (found.questions_from, found.seed, found.samples) == ("demo", 0, 4)

    def test_a_point_of_a_frontier(self, model, frontier, tmp_path: Path):
        """Its plan, what it was made from, and K and V fitted on the same samples."""
        done = yopo.convert(model, frontier.at(0.5), tmp_path / "out")
        assert done.output == tmp_path / "out"
        assert done.plan == frontier.at(0.5).plan
        assert done.calibration == {"samples": 4, "from": "memory", "seed": 0, "data": frontier.data}
        assert done.compensation["samples"] == 4
        assert done.to_json()["budget"] == {"asked": 0.5, "reached": done.costs.flops.share}
        assert json.loads((tmp_path / "out" / "config.json").read_text())["yopo"]["recipe"] == "auto"
        assert refused(yopo.convert, model, frontier.at(0.5), tmp_path / "out").endswith("exists already.")

    def test_a_frontier_knows_its_unseen_samples_while_they_are_at_hand(self, model, frontier, tmp_path: Path):
        changes = yopo.answer_changes(model, frontier)
        assert changes.keys() == {0.5}
        assert changes[0.5] in (0, 0.5, 1)  # of two questions
        frontier.save(tmp_path / "frontier.json")
        saved = yopo.Frontier.load(tmp_path / "frontier.json")
        assert saved == frontier
        assert "not at hand" in refused(yopo.answer_changes, model, saved)

    @pytest.mark.parametrize(("given", "refit", "fitted"), [(False, None, False), (True, None, True), (True, False, False)])
    def test_a_plan_is_refitted_where_samples_come_with_it(self, model, tmp_path: Path, given, refit, fitted):
        plan = yopo.convert(model, 0.5, samples="demo", count=2, recipe="yopo", dry_run=True).plan
        samples = "demo" if given else None
        done = yopo.convert(model, plan, tmp_path / "out", samples=samples, count=2, refit=refit)
        assert (done.compensation is not None) == fitted
        assert done.calibration is None

    def test_refused(self, model, frontier, statistics):
        dry = {"samples": "demo", "dry_run": True}
        assert "not within 0..1" in refused(yopo.convert, model, 1.5, **dry)
        assert "There is no recipe 'magic'" in refused(yopo.convert, model, 0.5, recipe="magic", **dry)
        assert "there are none" in refused(yopo.convert, model, 0.5, dry_run=True)
        assert "nothing is pruned" in refused(yopo.convert, model, 1, refit=True, **dry)
        assert "of no frontier" in refused(yopo.convert, model, frontier.asked[0], **dry)


def test_two_tasks_of_one_name(tmp_path: Path):
    from converters.evaluation.benchmarks import EvaluationRequest, evaluate_benchmarks

    assert refused(evaluate_benchmarks, yopo.load("demo"), EvaluationRequest(("demo", "demo"), samples=2)) == "Two tasks are named demo."


def test_no_export_target_of_that_name():
    assert refused(yopo.export, "demo", target="tflite") == "There is no export target 'tflite'."
