"""A whole pipeline on the demo: killed twice on the way it ends with the bytes of an undisturbed run; a gate that fails; what is told."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.checkpoints import listing
from support.hub_server import Hub, hub

NAME = "someone/demo-0.12"
PIPELINE = """
model: demo
device: cpu
dtype: float32
calibration: {data: demo, samples: 4}
budgets: [0.12]
plan: {recipe: interlaced}
healing: {data: demo, steps: 3, samples: 20, batch_size: 4}
exports: [{target: onnxruntime, parity: false}]
evaluation:
  tasks: [{task: demo, min_retention: 0.1}]
  samples: 8
  batch_size: 4
push: {repository: someone/demo-{budget}, private: true}
""".replace("someone/demo-{budget}", "'someone/demo-{budget}'")
ARTEFACTS = {"models", "exports", "evaluations", "report.html", "summary.md", "gates.xml", "SHA256SUMS"}


@contextmanager
def running(file: Path, output: Path, server: Hub, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`yopo run FILE` in a process of its own, which is gone when the block ends."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "GITHUB_")) and "proxy" not in name.lower()}
    own = {
        "HF_ENDPOINT": server.address,
        "HF_TOKEN": "hf_x",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
    }
    own["GITHUB_STEP_SUMMARY"] = str(output.with_suffix(".md"))
    words = [sys.executable, "-m", "yopo_cli", "run", str(file), "-o", str(output), *options]
    process = subprocess.Popen(words, env=keep | own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def run(file: Path, output: Path, server: Hub, *options: str) -> tuple[int, str, str]:
    with running(file, output, server, *options) as process:
        told, noted = process.communicate(timeout=900)
    return process.returncode, told, noted


def kill_when(file: Path, output: Path, server: Hub, line: str, pattern: str) -> None:
    """Start a run, and kill it once it has written this line and there is a file in `work` that fits the pattern."""
    with running(file, output, server) as process:
        assert process.stderr is not None
        for noted in process.stderr:
            if noted.startswith(line):
                break
        while not any((output / "work").glob(pattern)):
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


def artefacts(output: Path) -> dict[str, bytes]:
    return {name: data for name, data in listing(output).items() if not name.startswith("work/") and name != "provenance.json"}


@pytest.mark.slow
def test_killed_twice_it_ends_with_the_same_bytes_and_a_gate_that_fails_keeps_them(tmp_path: Path) -> None:
    file, whole, killed = tmp_path / "ours.yaml", tmp_path / "whole", tmp_path / "killed"
    file.write_text(PIPELINE)
    with hub({}) as server, hub({}) as other:
        code, told, noted = run(file, whole, server, "--json")
        assert code == 0, noted
        assert {path.name for path in whole.iterdir()} >= ARTEFACTS
        (pushed,) = json.loads(told)["pushed"]
        assert (pushed["repository"], pushed["commit"]) == (NAME, server.repositories[NAME].commit("main"))
        assert "## Gates" in whole.with_suffix(".md").read_text()

        kill_when(file, killed, other, "heal", "*/*.healing/checkpoint-1")
        assert not (killed / "models").exists()
        kill_when(file, killed, other, "export", "*/.*new-*/*.onnx")
        assert not (killed / "exports").exists()
        code, told, noted = run(file, killed, other, "--json")
        assert code == 0, noted
        skipped = {step["step"].partition(" ")[0]: step["skipped"] for step in json.loads(told)["steps"]}
        assert skipped == {
            "calibrate": True,
            "convert": True,
            "heal": True,
            "export": False,
            "evaluate": False,
            "push": False,
        }
        assert artefacts(killed) == artefacts(whole)
        for one in (server, other):
            repository = one.repositories[NAME]
            assert repository.private
            assert {**repository.revisions["main"]} == {**listing(whole / "models/demo-yopo-0.12"), ".gitattributes": b""}

        before = len(other.requests)
        file.write_text(PIPELINE.replace("min_retention: 0.1", "min_retention: 100"))
        code, told, noted = run(file, killed, other, "--json")
        assert code == 3
        assert "Gate failed: demo-yopo-0.12, demo: retention is" in noted
        assert all(step["skipped"] for step in json.loads(told)["steps"])
        assert (killed / "gates.xml").read_text().count("<failure") == 1
        assert len(other.requests) == before, "nothing is pushed"
        assert json.loads((killed / "provenance.json").read_text())["gates_passed"] is False
        assert {name for name, data in artefacts(killed).items() if data != artefacts(whole)[name]} == {
            "summary.md",
            "gates.xml",
            "SHA256SUMS",
        }
