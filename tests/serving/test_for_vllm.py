"""Plans for vLLM, from the command line: none has a window."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from converters.api import plan
from converters.errors import YopoError
from yopo_cli.app import app

USUAL = ["--samples", "8", "--dry-run", "--json"]


def test_plans_for_vllm_have_no_window(tmp_path: Path) -> None:
    statistics = ["--statistics", str(tmp_path / "demo.statistics")]
    windows = {}
    for options in ([], ["--for", "vllm"]):
        asked = ["convert", "demo", "--budget", "0.5", "--recipe", "interlaced", *USUAL, *statistics, *options]
        result = CliRunner().invoke(app, asked)
        assert result.exit_code == 0, result.stderr
        found = json.loads(result.stdout)
        assert 0.495 < found["budget"]["reached"] <= 0.5
        windows[bool(options)] = {layer["window"] for layer in found["plan"]["layers"]}
    assert windows == {False: {5, None}, True: {None}}


def test_a_plan_that_vllm_does_not_serve(tmp_path: Path) -> None:
    asked = ["convert", "demo", "--budget", "0.5", "--recipe", "yopo", *USUAL, "--for", "vllm"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 1
    assert "The recipe yopo gives visual tokens a window" in result.stderr
    made = CliRunner().invoke(app, ["convert", "demo", "--budget", "0.5", "--recipe", "yopo", *USUAL])
    (tmp_path / "plan.json").write_text(made.stdout)
    given = ["convert", "demo", "--plan", str(tmp_path / "plan.json"), "--dry-run", "--for", "vllm"]
    refused = CliRunner().invoke(app, given)
    assert refused.exit_code == 1
    assert "vLLM does not serve a window of visual tokens: the plan's window is 5 in layers 0-" in refused.stderr.replace("\n", " ")


def test_an_engine_that_nobody_knows() -> None:
    with pytest.raises(YopoError, match="No plans are made for 'sglang'"):
        plan("demo", "demo", served_by="sglang")


@pytest.mark.parametrize("command", [["convert", "--budget", "0.5"], ["plan", "--budgets", "0.5"]])
def test_a_family_that_vllm_does_not_serve(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converters.serving.checks.SERVED", {})
    refused = CliRunner().invoke(app, [command[0], "demo", *command[1:], "-o", str(tmp_path / "out"), "--for", "vllm"])
    assert refused.exit_code == 1
    assert "vLLM's plugin does not serve LLaVA-1.5" in refused.stderr
