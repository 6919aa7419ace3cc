"""Two processes on this machine (gloo): the statistics, plans, scores and losses of one."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from converters.calibration.statistics import Statistics
from converters.healing.answers import write_whole
from converters.planning.frontier import Frontier
from converters.processes import Processes

SCRIPT = Path(__file__).parent.parent / "support" / "two_processes.py"
ALONE = [sys.executable]
BOTH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def done(launcher: list[str], folder: Path, converted: Path) -> dict[str, Any]:
    """The tasks' scores as printed, by the first process alone."""
    folder.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    words = [*launcher, str(SCRIPT), str(folder), str(converted)]
    shown = subprocess.run(words, check=False, capture_output=True, text=True, env=environment, timeout=600)
    assert shown.returncode == 0, shown.stderr  # of both processes: what went wrong is said by one of them
    data: dict[str, Any] = json.JSONDecoder().raw_decode(shown.stdout[shown.stdout.index("{\n") :])[0]
    assert shown.stdout.count('"tasks"') == 1
    return data


def curve(folder: Path, name: str) -> torch.Tensor:
    """One number a step from TensorBoard's log."""
    events = EventAccumulator(str(folder / "healed.healing" / "tensorboard"))
    events.Reload()
    return torch.tensor([event.value for event in events.Scalars(f"train/{name}")])


def healed_projector(folder: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / "model.safetensors")
    return {name: tensor.float() for name, tensor in tensors.items() if "multi_modal_projector" in name}


def check_plans(folder: Path) -> None:
    """The same frontiers by price tables and by measuring, and the same projections refitted."""
    for name in ("frontier.json", "measured.json"):
        one, two = (Frontier.load(folder / many / name) for many in ("alone", "both"))
        assert (two.samples, two.data, two.forwards) == (one.samples, one.data, one.forwards)
        for mine, other in zip((*one.asked, *one.path), (*two.asked, *two.path), strict=True):
            assert (other.plan, other.origin) == (mine.plan, mine.origin)
            assert other.logit_drift == pytest.approx(mine.logit_drift, rel=1e-5, abs=1e-6)
    one, two = (load_file(folder / many / "pruned" / "model.safetensors") for many in ("alone", "both"))
    assert any("visual_k_proj" in name for name in one)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name].float(), tensor.float(), rtol=1e-2, atol=1e-5)  # a bit of bfloat16


def test_two_processes_do_what_one_does(tmp_path: Path, converted_demo: Path) -> None:
    alone = done(ALONE, tmp_path / "alone", converted_demo)
    both = done(BOTH, tmp_path / "both", converted_demo)
    assert both["tasks"] == alone["tasks"]

    one, two = (Statistics.load(tmp_path / name / "statistics") for name in ("alone", "both"))
    assert two.samples == one.samples == 9
    assert (two.data, two.layouts, two.read_rows, two.visual_rows) == (one.data, one.layouts, one.read_rows, one.visual_rows)
    assert two.ratios.equal(one.ratios)
    for name in ("read_sum", "self_sum", "neuron_sum"):
        torch.testing.assert_close(getattr(two, name), getattr(one, name), rtol=1e-6, atol=0.0)

    check_plans(tmp_path)
    for name in ("loss", "grad_norm"):  # the first gradients tell whether the processes share them
        expected = curve(tmp_path / "alone", name)
        assert len(expected) == 12
        torch.testing.assert_close(curve(tmp_path / "both", name), expected, rtol=1e-4, atol=1e-8)
    one, two = (healed_projector(tmp_path / name / "healed") for name in ("alone", "both"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0.01, atol=1e-5)


def write_often(file: Path) -> None:
    for _ in range(500):
        write_whole(file, b"{}")


def test_a_small_file_is_written_by_two_at_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.map(write_often, [tmp_path / "run.json"] * 2)
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def test_batches_are_dealt_out_in_turns() -> None:
    assert [list(Processes(rank, 3).share("abcdefg")) for rank in range(3)] == [list("adg"), list("be"), list("cf")]
    assert Processes().gathered("a") == ["a"]
