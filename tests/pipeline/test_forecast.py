"""What a run would do, told without doing it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import yopo
from converters.planning.cost import REFERENCE_TEXT_TOKENS, dense_flops
from yopo_cli.app import app

PIPELINE = """
model: demo
calibration: {data: demo, samples: 4}
budgets: [0.5, 0.25]
plan: {recipe: interlaced}
healing: {data: demo, steps: 10, samples: 20, batch_size: 4}
exports: [{bits: 8}]
evaluation: {tasks: [{task: demo}], samples: 8}
push: {repository: 'someone/demo-{budget}'}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "ours.yaml"
    path.write_text(PIPELINE)
    return path


def test_steps_in_order_with_what_they_write_and_compute(file: Path) -> None:
    steps = yopo.forecast(file)
    each = ["convert", "heal", "export", "evaluate"]
    assert [step.name.partition(" ")[0] for step in steps] == ["calibrate", *each, *each, "push", "push"]
    assert [step.name for step in steps if step.name.startswith("push")] == [
        "push demo-yopo-0.5 to someone/demo-0.5",
        "push demo-yopo-0.25 to someone/demo-0.25",
    ]
    assert not any(step.finished for step in steps)
    assert not (file.parent / "ours").exists()
    forward = dense_flops(yopo.load("demo").checkpoint.sizes, 144 + REFERENCE_TEXT_TOKENS)
    flops = {step.name: step.flops for step in steps}
    assert flops["calibrate"] == 4 * forward
    assert flops["evaluate demo-yopo-0.5"] == 2 * 8 * forward
    assert flops["heal demo-yopo-0.5"] == (20 + 3 * 10 * 4) * forward
    assert next(step.bytes for step in steps if step.name.startswith("convert")) == yopo.load("demo").checkpoint.bytes


def test_the_command_prints_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converters.pipeline.forecast.machine_rate", lambda _: 1e9)
    result = CliRunner().invoke(app, ["run", str(file), "--dry-run", "--json"])
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["flops_per_second"] == 1e9
    first = told["steps"][0]
    assert first["hours"] == pytest.approx(first["flops"] / 1e9 / 3600)
    assert not (file.parent / "ours").exists()


def test_what_is_wrong_is_told_in_a_sentence(file: Path) -> None:
    file.write_text(PIPELINE + "report: {titel: Ours}\n")
    result = CliRunner().invoke(app, ["run", str(file)])
    assert result.exit_code == 1
    assert "has an unknown key: report.titel" in " ".join(result.stderr.split())
