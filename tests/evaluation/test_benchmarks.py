"""Benchmarks end to end on the demo model: from the Hub and its cache, interrupted, with token pruners and other plans beside."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.benchmarks import data_sets, repository, write_hub_folder
from support.hub_server import Hub, Repository, hub
from typer.testing import CliRunner

from converters.bench.models import native
from converters.data.demo.sets import samples
from converters.data.prompts import encode, prompt
from converters.errors import YopoError
from converters.evaluation.benchmarks import EvaluationRequest, evaluate_benchmarks, names_of
from converters.evaluation.planned import planned
from converters.evaluation.tasks import TASKS
from converters.loading import Dtype, demo_folder, load
from converters.model import load as load_model
from converters.progress import Event, Listener, Progress, unheard
from converters.runtime.plan import from_json
from yopo_cli.app import app


def run(folder: Path, request: EvaluationRequest, progress: Listener = unheard) -> dict[str, Any]:
    return evaluate_benchmarks(load_model(folder, device="cpu", dtype="float32"), request, progress)


@pytest.fixture(scope="module")
def found(converted_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    save = tmp_path_factory.mktemp("answers") / "answers.jsonl"
    request = EvaluationRequest(
        ("demo",), samples=24, batch_size=8, max_new_tokens=4, against=("fastv", "downsample"), recipes=("shortv", "yopo"), save=save,
        calibration_samples=8,
    )  # fmt: skip
    return run(converted_demo, request), save


class TestAgainst:
    def test_all_sides_are_within_the_same_budget(self, found: tuple[dict[str, Any], Path]) -> None:
        executed = dict(found[0]["executed"])
        assert list(executed) == ["dense", "pruned", "fastv", "downsample", "shortv", "yopo"]
        assert executed["pruned"]["visual_share"] == found[0]["budget"]
        assert executed.pop("shortv") == {"left_out": "The budget 0.119949 is below the smallest that the recipe shortv can reach."}
        assert all(0.09 < facts["visual_share"] <= 0.12 for side, facts in executed.items() if side != "dense")
        assert executed["downsample"]["tokens_by_layer"] == [16] * 8

    def test_the_file_of_answers_gives_the_table(self, found: tuple[dict[str, Any], Path]) -> None:
        whole = [json.loads(line) for line in found[1].read_text().splitlines()]
        assert [line["results"] for line in whole if "results" in line] == [found[0]]
        lines = [line for line in whole if "answers" in line]
        assert len(lines) == 24
        for side, one in found[0]["tasks"]["demo"]["sides"].items():
            right = [line["answers"][side] == line["accepted"][0] for line in lines]
            assert one["figures"]["accuracy"]["value"] == pytest.approx(100 * sum(right) / 24)
            if side != "dense":
                assert one["lost"] == sum(line["changed"][side] == "lost" for line in lines)
                assert one["won"] == sum(line["changed"][side] == "won" for line in lines)

    def test_the_pruned_answers_are_those_without_other_sides(self, found: tuple[dict[str, Any], Path], converted_demo: Path) -> None:
        asked = ["eval", str(converted_demo), "--samples", "24", "--batch-size", "8", "--max-new-tokens", "4", "--json"]
        shown = json.loads(CliRunner().invoke(app, asked).stdout)["tasks"]["demo"]["sides"]
        assert {name: found[0]["tasks"]["demo"]["sides"][name] for name in ("dense", "pruned")} == shown


def test_a_plan_in_memory_is_what_convert_writes(converted_demo: Path) -> None:
    pruned, dense = load(converted_demo, "cpu", Dtype.FLOAT32), load(demo_folder(), "cpu", Dtype.FLOAT32)
    made = planned(dense.model, from_json(json.loads((converted_demo / "config.json").read_text())["yopo"]["plan"]))
    found = list(samples("demo", 2, 0, "eval"))
    inputs = encode(pruned.processor, [prompt(pruned.processor, one.question, 1) for one in found], [one.image for one in found])
    with torch.inference_mode():
        assert torch.equal(made(**inputs).logits, pruned.model(**inputs).logits)
        plain = dense.model(**inputs).logits
        assert not torch.allclose(made(**inputs).logits, plain, atol=1e-2)
        assert torch.allclose(native(pruned.model)(**inputs).logits, plain, atol=1e-4)


class TestInterrupted:
    def test_the_same_table(self, converted_demo: Path, tmp_path: Path) -> None:
        pytest.importorskip("pyarrow")
        names = tuple(f"{name}={write_hub_folder(tmp_path / data, data)}" for name, data in (("pope", "POPE"), ("mme", "MME")))
        request = EvaluationRequest(names, batch_size=2, max_new_tokens=2, save=tmp_path / "answers.jsonl")
        whole = run(converted_demo, replace(request, save=None))

        def stop(event: Event) -> None:
            if isinstance(event, Progress) and event.done == 14:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(converted_demo, request, stop)
        assert not (tmp_path / "answers.jsonl").exists()
        part = tmp_path / "answers.jsonl.part-0"
        assert len(part.read_text().splitlines()) == 1 + 2 + 14  # settings, two sides, questions
        part.write_text(part.read_text() + '{"task": "pope", "id": "torn')
        again = run(converted_demo, request)
        assert again["tasks"] == whole["tasks"]
        assert not part.exists()
        once_more = run(converted_demo, request)
        assert once_more == again
        assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 4 + 12 + 8  # settings, sides, results

    def test_answers_of_another_run_are_refused(self, converted_demo: Path, tmp_path: Path) -> None:
        request = EvaluationRequest(("demo",), samples=2, max_new_tokens=2, save=tmp_path / "answers.jsonl")
        run(converted_demo, request)
        with pytest.raises(YopoError, match="has the answers of another run: batch_size, max_new_tokens differ"):
            run(converted_demo, replace(request, batch_size=1, max_new_tokens=3))
        (tmp_path / "answers.jsonl").write_text("hello\n")
        with pytest.raises(YopoError, match="is not a file of answers"):
            run(converted_demo, request)


def yopo(*arguments: object, home: Path, server: Hub | None = None, code: int = 0) -> Any:
    """What `yopo ...` in a process of its own prints, with this Hub, or offline."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith("HF_") and "proxy" not in name.lower()}
    hub_words = {"HF_ENDPOINT": server.address} if server else {"HF_HUB_OFFLINE": "1"}
    environment = keep | hub_words | {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-m", "yopo_cli", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if code == 0 else done.stderr


def test_every_task_from_the_hub_and_from_its_cache(converted_demo: Path, tmp_path: Path) -> None:
    """Some of them under the name that they had before they moved."""
    pytest.importorskip("pyarrow")
    files, old = data_sets(), ("POPE", "GQA", "MME")
    served = {f"datasets/{repository(name, 'lmms-lab' if name in old else 'lmms-lab-encoder')}": Repository({"main": data})
              for name, data in files.items()}  # fmt: skip
    asked = ("eval", converted_demo, "--task", ",".join(TASKS), "--max-new-tokens", 2, "--json")
    with hub(served) as server:
        online = yopo(*asked, home=tmp_path, server=server)
    commit = Repository({"main": {}}).commit("main")
    assert online["tasks"].keys() == TASKS.keys()
    assert all(task["origin"]["revision"] == commit for task in online["tasks"].values())
    assert online["tasks"]["pope"]["origin"]["repository"] == "lmms-lab/POPE"
    assert online["tasks"]["vqav2"]["origin"]["repository"] == "lmms-lab-encoder/VQAv2"
    assert all(task["sides"].keys() == {"dense", "pruned"} for task in online["tasks"].values())
    assert yopo(*asked, home=tmp_path)["tasks"] == online["tasks"]
    (cached,) = tmp_path.glob("hub/datasets--lmms-lab--POPE/snapshots/*/data/test-00000-of-00002.parquet")
    cached.unlink()
    told = yopo("eval", converted_demo, "--task", "pope", home=tmp_path, code=1)
    assert "lmms-lab-encoder/POPE is not in the cache, or not all of it, and offline mode is on. Nor is there lmms-lab/POPE." in told


def test_lists_of_tasks() -> None:
    assert names_of("gqa,pope@main,mme=/data/a") == ("gqa", "pope@main", "mme=/data/a")
    assert names_of("a,b.jsonl") == ("a,b.jsonl",)
    assert names_of("pope=/data/a,b") == ("pope=/data/a,b",)
