"""Every command on the demo model: what it prints, what it leaves, how it ends."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from converters.data.demo.shapes import samples
from converters.data.samples import BUNDLED
from converters.loading import demo_folder
from converters.planning.cost import cost
from converters.planning.recipes import RECIPES
from converters.planning.search.search import Effort
from converters.runtime.plan import from_json
from yopo_cli.app import app
from yopo_cli.commands.convert import Recipe

Run = Callable[..., Any]


QUICK = ("--recipe", "interlaced")


def run(*arguments: object, code: int = 0) -> Any:
    """The result of `yopo ...`, which must exit with `code`."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.stderr
    return result


def fails(*arguments: object) -> str:
    """The error told by `yopo ...`, on one line: a sentence and a hint on stderr, nothing on stdout, exit 1."""
    result = run(*arguments, code=1)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert re.search(r"^Error: .+[.?]\nHint: .+", result.stderr, re.MULTILINE), result.stderr
    return " ".join(result.stderr.split())


def accuracy(side: dict[str, Any]) -> float:
    """The percentage of right answers."""
    return float(side["figures"]["accuracy"]["value"])


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def refitted_demo(converted_demo: Path, folder: Path) -> Path:
    """The demo model under the same plan, layers 1 and 2 refitted."""
    from converters.checkpoint.convert import Provenance, convert
    from converters.checkpoint.reader import open_checkpoint, open_converted
    from converters.checkpoint.source import resolve
    from converters.planning.compensation import LinearCompensation

    checkpoint = open_checkpoint(demo_folder())
    width = checkpoint.sizes.hidden_size
    refits = {index: LinearCompensation(torch.eye(width) * 0.9, torch.full((width,), 0.1)) for index in (1, 2)}
    provenance = Provenance(resolve(str(demo_folder())), "yopo convert demo", refit_samples=8)
    return convert(checkpoint, open_converted(converted_demo).plan, folder / "refitted", provenance, refits=refits)


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """Four of the demo's pictures as a JSONL file."""
    lines = []
    for index, sample in enumerate(samples(4, 0, "eval")):
        sample.image.save(tmp_path / f"{index}.png")
        lines.append({"image": f"{index}.png", "question": sample.question, "answer": sample.answer, "kind": sample.kind})
    file = tmp_path / "shapes.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from yopo_cli.app import COMMANDS, app\n"
        "for words in [[], *([name] for name in COMMANDS)]:\n"
        "    result = CliRunner().invoke(app, [*words, '--help'])\n"
        "    assert result.exit_code == 0 and 'Usage' in result.stdout, result.output\n"
        "assert not {'torch', 'transformers', 'numpy', 'PIL', 'huggingface_hub'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)


def test_looking_at_a_model_imports_nothing_heavy(converted_demo: Path) -> None:
    program = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from yopo_cli.app import app\n"
        f"for model in ('demo', {str(converted_demo)!r}):\n"
        "    result = CliRunner().invoke(app, ['inspect', model])\n"
        "    assert result.exit_code == 0 and 'visual tokens' in result.stdout, result.output\n"
        "assert not {'torch', 'transformers', 'numpy', 'PIL', 'huggingface_hub'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_version_and_module() -> None:
    shown = subprocess.run([sys.executable, "-m", "yopo_cli", "--version"], check=True, capture_output=True, text=True).stdout
    assert re.fullmatch(r"yopo \d+\.\d+\.\d+\S*\n", shown)


def test_recipes_are_those_of_the_planner() -> None:
    assert {recipe.value for recipe in Recipe} == {"auto", *RECIPES}


class TestConvert:
    def test_json_and_default_output(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        shown = json.loads(run("convert", "demo", *QUICK, "--budget", 0.25, "--samples", 4, "--json").stdout)
        assert shown["output"] == "demo-yopo-0.25"
        assert [path.name for path in tmp_path.iterdir()] == ["demo-yopo-0.25"]
        plan = from_json(shown["plan"])
        spent = cost(plan)
        assert shown["flops"] == {
            "visual": spent.visual,
            "visual_dense": spent.visual_dense,
            "total": spent.total,
            "total_dense": spent.total_dense,
        }
        assert shown["budget"] == {"asked": 0.25, "reached": spent.share}
        neuron = 2 * 3 * plan.sizes.hidden_size * plan.visual_tokens / spent.visual_dense
        assert 0.25 - max(0.005 * 0.25, neuron) <= spent.share <= 0.25
        assert shown["calibration"]["samples"] == 4
        assert shown["seconds"] > 0
        assert 10**7 < shown["peak_memory_bytes"] < 10**10

    def test_dry_run_writes_nothing_and_its_plan_gives_the_same_bytes(self, tmp_path: Path) -> None:
        plan = tmp_path / "plan.json"
        shown = run("convert", "demo", *QUICK, "-b", 0.2, "--samples", 4, "--dry-run", "--json", "-o", tmp_path / "x").stdout
        assert json.loads(shown)["output"] is None
        assert list(tmp_path.iterdir()) == []
        plan.write_text(shown)
        first, second = tmp_path / "first", tmp_path / "second"
        for output in (first, second):
            run("convert", "demo", "--plan", plan, "-o", output)
        assert contents(first) == contents(second)
        config = json.loads((first / "config.json").read_text())
        assert config["yopo"]["plan"] == json.loads(shown)["plan"]
        assert config["yopo"]["calibration"] is None

    def test_compensation(self, tmp_path: Path) -> None:
        """By default with the recipes that are ours; with a plan from a file where it is asked for; counted in bytes."""
        asked = ["convert", "demo", "-b", 0.1, "--samples", 4]
        refitted = run(*asked, "--recipe", "interlaced", "--json", "-o", tmp_path / "a").stdout
        tensors = load_file(tmp_path / "a" / "model.safetensors")
        added = sum(tensor.nbytes for name, tensor in tensors.items() if "visual_" in name)
        assert json.loads(refitted)["compensation"] == {"method": "refit", "samples": 4, "bytes": added}
        assert added > 0
        plain = run(*asked, "--recipe", "yopo", "--json", "-o", tmp_path / "b").stdout
        assert json.loads(plain)["compensation"] is None
        plan = tmp_path / "plan.json"
        plan.write_text(refitted)
        again = ["convert", "demo", "--plan", plan, "--compensation", "refit", "--samples", 4, "-o", tmp_path / "c"]
        run(*again)
        kept = load_file(tmp_path / "c" / "model.safetensors")
        assert tensors.keys() == kept.keys()
        assert all(tensor.equal(kept[name]) for name, tensor in tensors.items())
        refused = run("convert", "demo", "-b", 1, "--compensation", "refit", code=2).stderr
        assert "there is nothing to make up for" in " ".join(refused.split())

    def test_dry_run_in_words(self) -> None:
        shown = run("convert", "demo", *QUICK, "-b", 0.2, "--samples", 2, "--dry-run").stdout
        assert shown.count("\n") > 12
        assert "layer" in shown
        assert "multiply-adds" in shown

    def test_same_command_same_bytes(self, tmp_path: Path) -> None:
        for name in ("first", "second"):
            run("convert", "demo", "-b", 0.12, "--samples", 4, "--recipe", "yopo", "-o", tmp_path / name)
        assert contents(tmp_path / "first") == contents(tmp_path / "second")

    def test_statistics_are_written_once_and_serve_every_budget(self, tmp_path: Path) -> None:
        statistics = tmp_path / "statistics"
        asked = ("convert", "demo", *QUICK, "--statistics", statistics, "--samples", 4, "--dry-run", "--json")
        first = json.loads(run(*asked, "-b", 0.12).stdout)
        written = statistics.read_bytes()
        result = run(*asked, "-b", 0.12)
        again = json.loads(result.stdout)
        assert again["plan"] == first["plan"]
        assert "nothing is calibrated" in result.stderr
        assert json.loads(run(*asked, "-b", 0.3).stdout)["budget"]["reached"] > 0.29
        assert statistics.read_bytes() == written

    def test_budget_of_one_migrates(self, tmp_path: Path) -> None:
        shown = json.loads(run("convert", "demo", "--budget", 1, "-o", tmp_path / "demo", "--json").stdout)
        assert shown["budget"] == {"asked": 1.0, "reached": 1.0}
        assert shown["plan"] is None
        config = json.loads((tmp_path / "demo" / "config.json").read_text())
        assert config["model_type"] == "llava"
        assert "yopo" not in config
        dense, migrated = load_file(demo_folder() / "model.safetensors"), load_file(tmp_path / "demo" / "model.safetensors")
        assert sum(tensor.numel() for tensor in dense.values()) == sum(tensor.numel() for tensor in migrated.values())

    def test_grid_is_what_the_budget_is_counted_on(self) -> None:
        shown = json.loads(run("convert", "demo", *QUICK, "-b", 0.2, "--samples", 2, "--grid", "24x20", "--dry-run", "--json").stdout)
        assert shown["plan"]["grids"] == [[24, 20, 1]]
        assert shown["visual_tokens"] == 480

    def test_calibrates_on_a_file(self, tmp_path: Path, task: Path) -> None:
        shown = json.loads(run("convert", "demo", *QUICK, "-b", 0.2, "--calibration", task, "--samples", 3, "--dry-run", "--json").stdout)
        assert shown["calibration"] | {"data": ""} == {"samples": 3, "from": "shapes.jsonl", "seed": 0, "data": ""}

    def test_bundled_shapes_are_not_for_real_models(self, tmp_path: Path) -> None:
        shutil.copytree(demo_folder(), tmp_path / "mine")
        result = run("convert", tmp_path / "mine", *QUICK, "-b", 0.2, "--samples", 2, "--dry-run", "--json")
        assert "Warning" not in result.stderr
        assert "mine is calibrated on the bundled everyday pictures" in result.stderr
        assert json.loads(result.stdout)["calibration"] | {"data": ""} == {"samples": 2, "from": "everyday", "seed": 0, "data": ""}

    def test_interrupted_run_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*arguments: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("converters.checkpoint.convert.write_shard", interrupt)
        result = run("convert", "demo", *QUICK, "-b", 0.2, "--samples", 2, "-o", tmp_path / "out", code=130)
        assert "Interrupted" in result.stderr
        assert list(tmp_path.iterdir()) == []


class TestInspect:
    def test_converted_model(self, converted_demo: Path) -> None:
        shown = run("inspect", converted_demo).stdout
        assert max(map(len, shown.splitlines())) <= 80
        assert "budget asked 0.12" in shown
        assert len(re.findall(r"^ +\d [#rs.]{8} ", shown, re.MULTILINE)) == 8
        data = json.loads(run("inspect", converted_demo, "--json").stdout)
        assert data["plan"] == json.loads((converted_demo / "config.json").read_text())["yopo"]["plan"]
        assert data["budget"]["reached"] == cost(from_json(data["plan"])).share

    def test_refitted_projections(self, converted_demo: Path, tmp_path: Path) -> None:
        out = refitted_demo(converted_demo, tmp_path)
        shown = run("inspect", out).stdout
        bytes_added = sum(tensor.nbytes for name, tensor in load_file(out / "model.safetensors").items() if "visual_" in name)
        assert f"K and V of visual tokens refitted in layers 1-2, {bytes_added / 1e6:.3g} MB\n" in shown
        assert max(map(len, shown.splitlines())) <= 80
        data = json.loads(run("inspect", out, "--json").stdout)
        assert (data["refitted"], data["compensation"]) == ([1, 2], {"method": "refit", "samples": 8, "bytes": bytes_added})
        assert json.loads(run("inspect", converted_demo, "--json").stdout)["refitted"] == []

    def test_plan_file(self, converted_demo: Path, tmp_path: Path) -> None:
        plan = tmp_path / "plan.json"
        plan.write_text(json.dumps(json.loads((converted_demo / "config.json").read_text())["yopo"]["plan"]))
        assert run("inspect", plan).stdout.splitlines()[-6:] == run("inspect", converted_demo).stdout.splitlines()[-6:]

    def test_dense_model_from_its_config_alone(self, tmp_path: Path) -> None:
        shutil.copy(demo_folder() / "config.json", tmp_path)
        shown = run("inspect", tmp_path).stdout
        assert "a dense LLaVA-1.5: 8 layers, 8 heads, 352 neurons; 12x12 visual tokens" in shown
        data = json.loads(run("inspect", tmp_path, "--json").stdout)
        assert data["budget"] == {"asked": None, "reached": 1.0}


class TestAsk:
    def test_answer_on_stdout_and_path_on_stderr(self, converted_demo: Path, task: Path) -> None:
        image = task.parent / "0.png"
        result = run("ask", converted_demo, "--image", image, "What color is the circle?", "--max-new-tokens", 4)
        assert result.stdout.count("\n") == 1
        assert "Path: pruned" in result.stderr
        asked = ("ask", converted_demo, "-i", image, "-i", image, "How many shapes are there?", "--max-new-tokens", 4, "--json")
        assert set(json.loads(run(*asked).stdout)) == {"model", "question", "answer", "path"}

    def test_dense_model_and_text_alone(self, task: Path) -> None:
        result = run("ask", "demo", "How many shapes are there?", "--max-new-tokens", 2)
        assert "Path: dense" in result.stderr


class TestVerify:
    def test_whole_model(self, converted_demo: Path) -> None:
        data = json.loads(run("verify", converted_demo, "--json").stdout)
        assert data["passed"]
        assert [check["name"] for check in data["checks"]] == ["files", "plan", "tensors", "runtime, sample 1", "runtime, sample 2"]
        assert "FAILED" not in run("verify", converted_demo).stdout

    def test_changed_file(self, converted_demo: Path, tmp_path: Path) -> None:
        broken = shutil.copytree(converted_demo, tmp_path / "broken")
        (broken / "generation_config.json").write_text("{}")
        shown = run("verify", broken, code=1).stdout
        assert re.search(r"files +FAILED +changed or missing: generation_config.json", shown)

    def test_plan_of_another_model(self, converted_demo: Path, tmp_path: Path) -> None:
        broken = shutil.copytree(converted_demo, tmp_path / "broken")
        text = (broken / "config.json").read_text()
        config = json.loads(text)
        config["yopo"]["plan"]["layers"][0]["read_heads"] = "0-6"
        (broken / "config.json").write_text(json.dumps(config))
        shown = run("verify", broken, code=1).stdout
        assert re.search(r"plan +FAILED", shown)

    def test_refitted_projections(self, converted_demo: Path, tmp_path: Path) -> None:
        out = refitted_demo(converted_demo, tmp_path)
        checks = {check["name"]: check for check in json.loads(run("verify", out, "--json").stdout)["checks"]}
        assert "and 8 refitted ones of visual tokens" in checks["tensors"]["detail"]
        config = json.loads((out / "config.json").read_text())
        config["yopo"]["compensation"]["bytes"] += 1
        (out / "config.json").write_text(json.dumps(config))
        assert re.search(r"tensors +FAILED compensation.bytes is \d+, the refitted", " ".join(run("verify", out, code=1).stdout.split()))

    def test_runtime_that_differs_from_the_reference(self, converted_demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import converters.evaluation.reference

        honest = converters.evaluation.reference.masked_logits
        monkeypatch.setattr(converters.evaluation.reference, "masked_logits", lambda model, inputs: honest(model, inputs) + torch.nan)
        data = json.loads(run("verify", converted_demo, "--json", code=1).stdout)
        assert [check["passed"] for check in data["checks"]] == [True, True, True, False, False]

    def test_missing_tensor(self, converted_demo: Path, tmp_path: Path) -> None:
        broken = shutil.copytree(converted_demo, tmp_path / "broken")
        tensors = load_file(broken / "model.safetensors")
        del tensors["lm_head.weight"]
        save_file(tensors, broken / "model.safetensors", {"format": "pt"})
        shown = run("verify", broken, code=1).stdout
        assert re.search(r"tensors +FAILED .*lm_head.weight", shown)


class TestEval:
    def test_demo_task(self, converted_demo: Path) -> None:
        data = json.loads(run("eval", converted_demo, "--task", "demo", "--samples", 14, "--json").stdout)
        task = data["tasks"]["demo"]
        dense, pruned = task["sides"]["dense"], task["sides"]["pruned"]
        assert pruned["questions"] == 14
        assert 0 <= accuracy(pruned) <= 100
        assert pruned["retention"]["value"] == pytest.approx(accuracy(pruned) / accuracy(dense))
        assert 0 <= pruned["changed"] <= 1
        assert {kind: result["pruned"]["questions"] for kind, result in task["kinds"].items()} == dict.fromkeys(
            ["color", "shape", "count", "presence", "extreme", "where", "relation"], 2
        )

    def test_file_and_demo_together(self, converted_demo: Path, task: Path) -> None:
        shown = run("eval", converted_demo, "--task", "demo", "--task", task, "--samples", 4, "--batch-size", 3).stdout
        for name in ("demo", "shapes"):
            assert re.search(rf"^{name} +accuracy .*\ndense .*\npruned ", shown, re.MULTILINE)
            assert f"{name}: 4 of 4 questions about 4 pictures" in shown

    def test_a_file_of_the_demo_scores_as_the_demo_does(self, converted_demo: Path, task: Path) -> None:
        data = json.loads(run("eval", converted_demo, "-t", "demo", "-t", task, "--samples", 4, "--json").stdout)
        assert data["tasks"]["demo"]["sides"] == data["tasks"]["shapes"]["sides"]
        assert data["tasks"]["demo"]["kinds"] == data["tasks"]["shapes"]["kinds"]

    def test_dense_model_has_one_side(self) -> None:
        sides = json.loads(run("eval", "demo", "--samples", 7, "--json").stdout)["tasks"]["demo"]["sides"]
        assert list(sides) == ["dense"]
        assert 0 <= accuracy(sides["dense"]) <= 100

    def test_gate(self, converted_demo: Path) -> None:
        result = run("eval", converted_demo, "--samples", 7, "--min-retention", 100, "--json", code=3)
        assert "Gate failed: the retention on demo" in result.stderr
        assert "demo" in json.loads(result.stdout)["tasks"]


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["convert", "nowhere", "-b", "0.2"], "no model 'nowhere'"),
            (["convert", "demo", "-b", "0"], "budget is 0"),
            (["convert", "demo", "-b", "1.5"], "budget is 1.5"),
            (["convert", "demo", "-b", "nan"], "budget is nan"),
            (["convert", "demo", "-b", "0.00001", "--samples", "2"], "below the smallest"),
            (["convert", "demo", "--plan", "nowhere.json"], "nowhere.json does not exist"),
            (["convert", "demo", "-b", "0.2", "--calibration", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
            (["convert", "demo", "-b", "0.2", "--statistics", "nowhere/s"], "does not exist"),
            (["convert", "demo", "-b", "0.2", "--samples", "2", "--device", "cuda:99"], "cannot be used"),
            (["inspect", "nowhere"], "no model 'nowhere'"),
            (["ask", "demo", "What?", "--image", "nowhere.png"], "image nowhere.png cannot be read"),
            (["ask", "demo", "What is <image>?"], "the question holds <image>"),
            (["verify", "demo"], "was not written by yopo"),
            (["eval", "demo", "--min-retention", "0.9"], "is dense"),
            (["eval", "demo", "--task", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        ],
    )
    def test_sentence_and_hint(self, arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert told in fails(*arguments)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("line", "told"),
        [
            ("", "line 2 is empty"),
            ("{", "line 2 is not JSON"),
            ("[]", "line 2: it is []"),
            ('{"image": "0.png"}', "line 2 lacks question"),
            ('{"image": "0.png", "question": 3}', "line 2: question is 3"),
            ('{"image": "9.png", "question": "What?"}', "line 2: there is no image"),
            ('{"image": "0.png", "question": "What?", "anwser": "x"}', "unknown key: anwser"),
            ('{"image": "broken.png", "question": "What?"}', "line 2: the image"),
        ],
    )
    def test_calibration_line(self, line: str, told: str, task: Path) -> None:
        (task.parent / "broken.png").write_bytes((task.parent / "0.png").read_bytes()[:50])
        first = task.read_text().splitlines()[0]
        task.write_text(f"{first}\n{line}\n{first}\n")
        assert told in fails("convert", "demo", "-b", 0.2, "--calibration", task, "-o", task.parent / "out")
        assert not (task.parent / "out").exists()

    def test_task_needs_answers(self, converted_demo: Path, task: Path) -> None:
        task.write_text(json.dumps({"image": "0.png", "question": "What?"}) + "\n")
        assert "line 1 has no answer" in fails("eval", converted_demo, "--task", task)

    def test_existing_output(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        assert "exists already" in fails("convert", "demo", "-b", 0.2, "-o", tmp_path / "out")
        run("convert", "demo", *QUICK, "-b", 0.2, "--samples", 2, "-o", tmp_path / "out", "--force")
        assert (tmp_path / "out" / "config.json").exists()

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"schema": 99}, "schema is 99"),
            ({"colour": "red"}, "unknown key: colour"),
            ({"layers": []}, "0 layers"),
        ],
    )
    def test_plan_that_cannot_be_used(self, change: dict[str, Any], told: str, converted_demo: Path, tmp_path: Path) -> None:
        plan = tmp_path / "plan.json"
        plan.write_text(json.dumps(json.loads((converted_demo / "config.json").read_text())["yopo"]["plan"] | change))
        assert told in fails("convert", "demo", "--plan", plan, "-o", tmp_path / "out")
        assert told in fails("inspect", plan)

    def test_plan_of_another_model(self, converted_demo: Path, tmp_path: Path) -> None:
        data = json.loads((converted_demo / "config.json").read_text())["yopo"]["plan"]
        data["sizes"]["head_dim"] = 32
        (tmp_path / "plan.json").write_text(json.dumps(data))
        assert "head_dim 32 instead of 16" in fails("convert", "demo", "--plan", tmp_path / "plan.json", "-o", tmp_path / "out")

    def test_statistics_of_another_model(self, tmp_path: Path) -> None:
        run("convert", "demo", *QUICK, "-b", 0.2, "--samples", 2, "--statistics", tmp_path / "s", "--dry-run", "--json")
        other = shutil.copytree(demo_folder(), tmp_path / "other")
        tensors = load_file(other / "model.safetensors")
        next(iter(tensors.values())).add_(1)
        save_file(tensors, other / "model.safetensors", {"format": "pt"})
        assert "another model" in fails("convert", other, "-b", 0.2, "--statistics", tmp_path / "s", "--dry-run")

    def test_pruned_model_is_not_pruned_again(self, converted_demo: Path) -> None:
        assert "pruned already" in fails("convert", converted_demo, "-b", 0.1, "--dry-run")

    def test_out_of_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def load(*arguments: Any) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr("converters.model.load_with", load)
        assert "ran out of memory" in fails("ask", "demo", "What?")

    def test_statistics_that_cannot_be_written(self, tmp_path: Path) -> None:
        file = tmp_path / ("s" * 250)  # the private file beside it has a longer name, which no file system takes
        assert "could not be written" in fails("convert", "demo", *QUICK, "-b", 0.2, "--samples", 2, "--statistics", file, "--dry-run")

    @pytest.mark.parametrize(
        "arguments",
        [
            [],
            ["convert"],
            ["convert", "demo"],
            ["convert", "demo", "-b", "half"],
            ["convert", "demo", "--plan", "p.json", "-b", "0.2"],
            ["convert", "demo", "-b", "0.2", "--grid", "24"],
            ["convert", "demo", "-b", "0.2", "--samples", "0"],
            ["ask", "demo"],
            ["nonsense"],
        ],
    )
    def test_usage(self, arguments: list[str]) -> None:
        run(*arguments, code=2)


class TestPlan:
    def test_a_plan_with_questions_is_refitted_by_default(self, converted_demo: Path, task: Path, tmp_path: Path) -> None:
        plan, out = tmp_path / "plan.json", tmp_path / "out"
        plan.write_text(json.dumps(json.loads((converted_demo / "config.json").read_text())["yopo"]["plan"]))
        asked = ("convert", "demo", "--plan", plan, "--samples", 3)
        assert json.loads(run(*asked, "-o", out, "--json").stdout)["compensation"] is None
        shown = json.loads(run(*asked, "--calibration", task, "--force", "-o", out, "--json").stdout)
        assert shown["compensation"]["samples"] == 3
        assert f"--plan {plan} --calibration {task} --samples 3" in (out / "README.md").read_text()
        run(*asked, "--calibration", task, "--compensation", "none", code=2)  # which would do nothing

    @pytest.fixture(scope="class")
    @staticmethod
    def frontier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
        """A cheap frontier of the demo, its plots beside it, and what the command gave."""
        folder = tmp_path_factory.mktemp("frontier")
        plots = ("--plot", folder / "f.png", "--plot", folder / "f.svg")
        asked = ("plan", "demo", "--budgets", "0.3,0.1", "--samples", 4, "--max-drop", 1, "-o", folder / "f.json", *plots, "--json")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("converters.planner.effort_of", lambda *asked: Effort(30.0, grain=0.1))
            patch.setattr("converters.data.split.BUNDLED_UNSEEN", 8)
            return folder, run(*asked)

    def test_json_plots_and_nothing_else(self, frontier: tuple[Path, Any]) -> None:
        folder, result = frontier
        shown = json.loads(result.stdout)
        assert sorted(path.name for path in folder.iterdir()) == ["f.json", "f.png", "f.svg"]
        assert (folder / "f.png").read_bytes().startswith(b"\x89PNG")
        assert "</svg>" in (folder / "f.svg").read_text()
        assert [budget["asked"] for budget in shown["budgets"]] == [0.3, 0.1]
        assert all(0.995 * budget["asked"] < budget["reached"] <= budget["asked"] for budget in shown["budgets"])
        assert all(0 <= budget["answer_changes"] <= 1 for budget in shown["budgets"])
        assert (shown["chosen"], shown["samples"], shown["unseen"]) == (0.1, 4, 8)
        assert 0 < shown["forwards"] < 100

    def test_convert_takes_any_budget_of_it(self, frontier: tuple[Path, Any], tmp_path: Path) -> None:
        file = frontier[0] / "f.json"
        shown = json.loads(run("convert", "demo", "-b", 0.2, "--frontier", file, "-o", tmp_path / "out", "--json").stdout)
        assert 0.199 < shown["budget"]["reached"] <= 0.2
        section = json.loads((tmp_path / "out" / "config.json").read_text())["yopo"]
        assert section["recipe"] == "auto"
        known = {"samples": 4, "from": BUNDLED, "seed": 0, "data": json.loads(file.read_text())["data"]}
        assert section["calibration"] == shown["calibration"] == known  # what the frontier was made from, not the frontier
        assert f"calibrated on 4 samples of {BUNDLED}, drawn with seed 0" in (tmp_path / "out" / "README.md").read_text()
        assert f"calibrated on 4 samples of {BUNDLED}" in run("inspect", tmp_path / "out").stdout
        assert f"yopo convert demo --budget 0.2 --frontier {file}" in (tmp_path / "out" / "README.md").read_text()
        assert "below the frontier" in fails("convert", "demo", "-b", 0.01, "--frontier", file, "--dry-run")
        assert shown["compensation"]["samples"] == 128  # the plans of a frontier were measured with refits
        bare = ("convert", "demo", "-b", 0.12, "--frontier", file, "--compensation", "none", "-o", tmp_path / "bare")
        assert "have a rank, whose factors have to be fitted" in " ".join(run(*bare, code=1).stderr.split())
        assert not (tmp_path / "bare").exists()

    def test_frontier_of_another_model(self, frontier: tuple[Path, Any], tmp_path: Path) -> None:
        data = json.loads((frontier[0] / "f.json").read_text()) | {"model": "other"}
        (tmp_path / "f.json").write_text(json.dumps(data))
        assert "of another model" in fails("convert", "demo", "-b", 0.2, "--frontier", tmp_path / "f.json", "--dry-run")

    def test_convert_searches_by_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("converters.planner.effort_of", lambda *asked: Effort(10.0, grain=0.2))
        result = run("convert", "demo", "-b", 0.5, "--samples", 2, "--dry-run", "--json")
        assert 0.49 < json.loads(result.stdout)["budget"]["reached"] <= 0.5
        assert "forward passes of 2 questions" in result.stderr

    def test_errors(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "neither .png nor .svg" in fails("plan", "demo", "--plot", "frontier.pdf")
        assert "does not exist" in fails("plan", "demo", "--plot", tmp_path / "none" / "frontier.svg")
        assert "does not exist" in fails("plan", "demo", "-o", tmp_path / "none" / "frontier.json")
        run("plan", "demo", "--budgets", "half", code=2)
        run("plan", "demo", "--budgets", "2", code=2)
        run("convert", "demo", "-b", "0.2", "--frontier", "f.json", "--grid", "4x4", code=2)
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        assert "pip install 'yopo[plot]'" in fails("plan", "demo", "--plot", "frontier.svg")


class TestHeal:
    def test_what_is_healed_is_verified_and_evaluated(self, converted_demo: Path, tmp_path: Path) -> None:
        out = tmp_path / "healed"
        asked = ("--data", "demo", "--samples", 20, "--batch-size", 8, "--steps", 2, "--answers", tmp_path / "answers")
        result = run("heal", converted_demo, *asked, "-o", out, "--json")
        data = json.loads(result.stdout)
        assert "Memory: about" in result.stderr
        assert (data["steps"], data["samples"], data["held_out"], data["learning_rate"]) == (2, 16, 4, 1e-3)
        assert data["kept"] == (data["divergence"]["after"] < data["divergence"]["before"])
        section = json.loads((out / "config.json").read_text())["yopo"]
        assert section["base_projector"] == data["kept"]
        assert section["healing"][0]["divergence"] == data["divergence"]
        verified = json.loads(run("verify", out, "--json").stdout)
        assert verified["passed"]
        assert ("base" in [check["name"] for check in verified["checks"]]) == data["kept"]
        assert "healed: projector, 2 steps" in run("inspect", out).stdout
        assert len(list((tmp_path / "answers").glob("*.safetensors"))) == 20
        before, after = (
            json.loads(run("eval", path, "--samples", 6, "--max-new-tokens", 4, "--json").stdout)["tasks"]["demo"]["sides"]["dense"]
            for path in (converted_demo, out)
        )
        assert after == before

    def test_refitted_models_learn_at_a_tenth_of_the_rate(self, converted_demo: Path, tmp_path: Path) -> None:
        refitted = refitted_demo(converted_demo, tmp_path)
        asked = ("heal", refitted, "--data", "demo", "--samples", 10, "--batch-size", 8, "--steps", 1, "--answers", tmp_path / "answers")
        assert json.loads(run(*asked, "-o", tmp_path / "out", "--json").stdout)["learning_rate"] == 1e-4
        told = run(*asked, "--learning-rate", 0.01, "-o", tmp_path / "other", "--json").stdout
        assert json.loads(told)["learning_rate"] == 0.01

    def test_a_healed_language_model_has_no_dense_side(self, converted_demo: Path, tmp_path: Path) -> None:
        out = tmp_path / "healed"
        asked = ("--data", "demo", "--samples", 20, "--batch-size", 8, "--steps", 2, "--tune", "language")
        record = json.loads(run("heal", converted_demo, *asked, "-o", out, "--json").stdout)
        assert record["tune"] == "language"
        assert "--tune language" in json.loads((out / "config.json").read_text())["yopo"]["healing"][0]["command"]
        config = json.loads((out / "config.json").read_text())
        config["yopo"]["healing"][0]["kept"] = True
        (out / "config.json").write_text(json.dumps(config))
        checks = {check["name"]: check["detail"] for check in json.loads(run("verify", out, "--json", code=1).stdout)["checks"]}
        assert checks["base"] == "the language model was healed: the dense side is not demo any more"
        found = run("eval", out, "--samples", 6, "--max-new-tokens", 4, "--json")
        assert "the dense model is not in it any more" in found.stderr
        (side,) = json.loads(found.stdout)["tasks"]["demo"]["sides"].items()
        assert side[0] == "pruned"
        assert not {"retention", "changed"} & side[1].keys()
        assert accuracy(side[1]) >= 0
        assert "Leave --min-retention out" in fails("eval", out, "--samples", 6, "--min-retention", 0.5)
        assert "The language model of" in fails("heal", out, "--data", "demo", "--samples", 20, "-o", tmp_path / "again")

    def test_refused_in_a_sentence(self, converted_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        out = tmp_path / "healed"
        assert "too few to hold a tenth out" in fails("heal", converted_demo, "--data", "demo", "--samples", 8, "-o", out)
        assert "was not written by yopo" in fails("heal", "demo", "--data", "demo", "-o", out)
        monkeypatch.setattr("converters.healing.memory.available", lambda device: 10**8)
        assert "this machine has 0.1 GB free" in fails("heal", converted_demo, "--data", "demo", "-o", out)
        monkeypatch.undo()
        other = shutil.copytree(converted_demo, tmp_path / "other")
        config = json.loads((other / "config.json").read_text())
        config["yopo"]["base"]["fingerprint"] = "0" * 64
        (other / "config.json").write_text(json.dumps(config))
        assert "are not those of demo: the hash is" in fails("heal", other, "--data", "demo", "-o", out)
        config["yopo"]["base"] = {}
        (other / "config.json").write_text(json.dumps(config))
        assert "lacks base.name" in fails("heal", other, "--data", "demo", "-o", out)

    def test_convert_heals_on_its_own_questions(self, tmp_path: Path, task: Path) -> None:
        asked = ("convert", "demo", "-b", 0.06, "--recipe", "interlaced", "--samples", 4, "--calibration", task, "-o", tmp_path / "out")
        assert "too few" in fails(*asked, "--heal", 2)
        run(*asked, "--heal", 2, "--dry-run", code=2)
