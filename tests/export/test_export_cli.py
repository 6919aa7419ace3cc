"""`yopo export`, and its graphs in `yopo eval` and `yopo bench`."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from yopo_cli.app import app


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.mark.slow
def test_an_export_answers_the_demos_questions_as_pytorch_does(converted_demo: Path, tmp_path: Path) -> None:
    """Accuracy through both runtimes, dense and pruned; then what an export refuses."""
    out = tmp_path / "demo"
    shutil.copytree(converted_demo, out)
    written = run("export", out, "--no-parity", "--json")
    assert written.exit_code == 0, written.stderr
    report = json.loads(written.stdout)
    assert report["checkpoint_bytes"] > 10 * report["added_bytes"] > 0
    assert report["copied_bytes"] == 0
    assert "not compared with PyTorch" in report["notes"]
    answers = {}
    for runtime in ("torch", "onnx"):
        found = run("eval", out, "--samples", "24", "--runtime", runtime, "--device", "cpu", "--json")
        assert found.exit_code == 0, found.stderr
        answers[runtime] = json.loads(found.stdout)["tasks"]
    assert answers["onnx"] == answers["torch"]
    timed = run("bench", out, "--runtime", "onnx", "--rounds", "1", "--steps", "1", "--threads", "1", "--device", "cpu", "--json")
    assert timed.exit_code == 0, timed.stderr
    assert {one["side"] for one in json.loads(timed.stdout)["sides"]} == {"dense", "pruned", "PyTorch dense", "PyTorch pruned"}
    again = run("export", out, "--no-parity")
    assert again.exit_code == 1
    assert "holds an export already" in again.stderr
    assert run("bench", out, "--runtime", "onnx", "--budget", "0.3").exit_code == 2
    dtype = run("eval", out, "--runtime", "onnx", "--dtype", "float16")
    assert dtype.exit_code == 1
    assert "--dtype float16 would do nothing" in dtype.stderr
    config = json.loads((out / "config.json").read_text())
    config["yopo"]["base_projector"] = True  # as of a healed model, whose export has no other projector
    (out / "config.json").write_text(json.dumps(config))
    healed = run("eval", out, "--samples", "4", "--runtime", "onnx", "--device", "cpu", "--json")
    assert "an export has the healed projector alone" in healed.stderr
    assert json.loads(healed.stdout)["tasks"]["demo"]["sides"].keys() == {"pruned"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("demo",), "demo is not a folder of yours to write to."),
        (("demo", "-o", "out", "--dtype", "bfloat16"), "onnxruntime has no bfloat16 products on a CPU."),
        (("demo", "-o", "missing/out", "--no-parity"), "missing does not exist."),
    ],
)
def test_what_is_refused(arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("export", *arguments)
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())


def test_a_comparison_without_onnxruntime_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = run("export", "demo", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: onnxruntime cannot be imported")
    assert "pip install 'yopo[onnx-cpu]'" in result.stderr


def test_one_rounding_at_a_time() -> None:
    assert run("export", "demo", "--int4", "--int8").exit_code == 2


def test_eval_without_an_export(converted_demo: Path) -> None:
    result = run("eval", converted_demo, "--runtime", "onnx", "--device", "cpu")
    assert result.exit_code == 1
    assert "holds no export for onnxruntime" in result.stderr
