"""The documents say what is so: their commands run, their code runs, their figures are the records', their links lead somewhere."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from benchmarks import study_report
from converters.data.demo.shapes import samples
from converters.runtime.plan import from_json, normalise
from tools.docs.blocks import DOCUMENTS, RECORDED, ROOT, code, commands, output
from tools.docs.commands import PAGE, reference
from yopo_cli.app import app

MARKDOWN = [*DOCUMENTS, ROOT / "CHANGELOG.md", *sorted((ROOT / "benchmarks").glob("**/*.md"))]
PERCENT = 8.0  # another processor may answer two questions otherwise, of the 28 or 29 of a kind
NEEDING = re.compile(r"<!-- needs (?P<needs>[^>]*) -->\n(?P<block>```python\n.*?^```\n)", re.DOTALL | re.MULTILINE)
OTHERS = {"--num_processes", "--nproc-per-node", "--index-url", "--rm"}  # accelerate's, torchrun's, pip's, docker's
OTHERS |= {
    "--enforce-eager", "--disable-hybrid-kv-cache-manager", "--backend", "--endpoint", "--dataset-name", "--request-rate", "--ignore-eos",
    "--random-mm-limit-mm-per-prompt", "--random-mm-bucket-config",
}  # vLLM's  # fmt: skip
OTHERS |= {"--model_args", "--tasks", "--batch_size"}  # lmms-eval's
OTHERS |= {"--model", "--set", "--record", "--plot", "--state", "--scratch", "--answer"}  # the studies'
SERVICES = re.compile(r"(?m)^(?:import|from) (?:openai|vllm)\b")  # what a block talks to is not running here
PRUNERS = {
    "fastv": "FastV",
    "pyramiddrop": "PyramidDrop",
    "sparsevlm": "SparseVLM",
    "visionzip": "VisionZip",
    "divprune": "DivPrune",
    "downsample": "downsampling",
    "random": "random",
}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def readings(text: str) -> tuple[str, list[float]]:
    """A table's words, and its percentages apart from them."""
    percent = re.compile(r"(\d+\.\d\d) %")
    return " ".join(percent.sub("%", text).split()), [float(found) for found in percent.findall(text)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    """A folder in which the recorded blocks of all documents have run, in order, and printed what the documents show."""
    place = tmp_path_factory.mktemp("documents")
    next(samples(1, 0, "eval")).image.save(place / "photo.jpg")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for document in DOCUMENTS:
            for found in RECORDED.finditer(document.read_text(encoding="utf-8")):
                shown = found[0].partition("\n```console\n")[2].partition("\n```\n")[0]
                assert shown.startswith(f"$ {found['command']}\n"), f"{named(document)}: make docs"
                (words, numbers), (printed, measured) = readings(shown), readings(f"$ {found['command']}\n{output(found['command'])}")
                assert words == printed, named(document)
                assert numbers == pytest.approx(measured, abs=PERCENT), named(document)
        yield place


def test_recorded_blocks_are_what_the_commands_print(folder):
    assert (folder / "demo-pruned/config.json").exists()


def installed(needs: str) -> bool:
    """Whether all modules are here that a mark `<!-- needs onnx, onnxruntime -->` names. What is no module is not here."""
    return all(importlib.util.find_spec(name.strip().replace("-", "_")) for name in needs.split(","))


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_python_blocks_run(document, folder, monkeypatch):
    monkeypatch.chdir(folder)
    text = NEEDING.sub(lambda found: found["block"] if installed(found["needs"]) else "", document.read_text(encoding="utf-8"))
    names: dict[str, object] = {}
    for block in code(text, "python"):
        program = compile(block, named(document), "exec")
        if not SERVICES.search(block):
            exec(program, names)


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_python_blocks_that_need_more_than_is_installed_are_python(document):
    for found in NEEDING.finditer(document.read_text(encoding="utf-8")):
        for block in code(found["block"], "python"):
            compile(block, named(document), "exec")


@pytest.mark.parametrize("document", MARKDOWN, ids=named)
def test_commands_are_understood(document):
    """Every `yopo ...` that is shown has a command, arguments and options that there are, of types that fit."""
    group = typing.cast(typing.Any, typer.main.get_command(app))
    for words in commands(document.read_text(encoding="utf-8")):
        if "COMMAND" in words[1] or words[1:] in (["--version"], ["--help"]) or words[1].startswith(("[", "{")):
            continue
        if document == PAGE:  # the page shows usage, not commands
            assert words[1] in group.commands
            continue
        assert words[1] in group.commands, shlex.join(words)
        with group.commands[words[1]].make_context(words[1], words[2:]):
            pass


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_options_that_the_text_names_exist(document):
    group = typing.cast(typing.Any, typer.main.get_command(app))
    parameters = [parameter for command in (group, *group.commands.values()) for parameter in command.params]
    known = {option for parameter in parameters for option in parameter.opts + parameter.secondary_opts}
    text = document.read_text(encoding="utf-8")
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", re.sub(r"https?://\S+|<!--|-->", "", text)))
    assert mentioned - known - OTHERS - {"--help"} <= set(), "an option that no command has"


@pytest.mark.parametrize("document", MARKDOWN, ids=named)
def test_links_lead_to_files_and_headings(document):
    for target in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", document.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        file = document.parent / path if path else document
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"(?m)^#+ (.+)$", file.read_text(encoding="utf-8"))
            assert anchor in {re.sub(r"[^\w\s-]", "", heading).strip().lower().replace(" ", "-") for heading in headings}, target


def test_the_command_reference_is_what_the_commands_say():
    assert PAGE.read_text(encoding="utf-8") == reference(), "make docs"


def test_make_has_the_targets_that_are_shown():
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
    shown = re.compile(r"(?:^ {4}|`)make ([a-z-]+)", re.MULTILINE)
    assert {name for document in DOCUMENTS for name in shown.findall(document.read_text(encoding="utf-8"))} <= targets


def test_the_plan_that_the_format_shows_is_one():
    (block,) = code((ROOT / "docs/plan-format.md").read_text(encoding="utf-8"), "json")
    plan = from_json(json.loads(block))
    assert normalise(plan) == plan
    assert plan.visual_depth == 3


@pytest.mark.parametrize(
    ("document", "head"), [("README.md", "| share of the visual FLOPs |"), ("docs/results.md", "| model, questions |")]
)
def test_the_demos_figures_are_those_of_the_record(document, head):
    """The first three rows: the measured search, the best token pruner, the paper's recipe."""
    (cells,) = study_report.read([ROOT / "benchmarks/study/demo.jsonl"])

    def kept(method: str, budget: float) -> str:
        return f"{100 * (cells.outcomes[method, budget].mean() / cells.outcomes['dense', None].mean()):.1f}"

    def best(budget: float) -> str:
        asked = [name for name in PRUNERS if (name, budget) in cells.outcomes]
        name = max(asked, key=lambda name: cells.outcomes[name, budget].mean())
        return f"{kept(name, budget)} {PRUNERS[name]}"

    first, _, *rows = (ROOT / document).read_text(encoding="utf-8").partition(head)[2].splitlines()
    budgets = [float(entry) for entry in first.split("|") if "0." in entry]
    shown = [[entry.strip(" *") for entry in row.strip("| ").split("|")[-len(budgets) :]] for row in rows[:3]]
    assert shown[0] == [kept("auto", budget) for budget in budgets]
    assert shown[1] == [best(budget) if entry != "-" else "-" for budget, entry in zip(budgets, shown[1], strict=True)]
    assert shown[2] == [kept("yopo", budget) if entry != "-" else "-" for budget, entry in zip(budgets, shown[2], strict=True)]


@pytest.mark.parametrize(
    ("section", "command"),
    [
        ("convert, inspect", "convert demo --budget 0.12 --recipe interlaced --samples 2 --dry-run --json"),
        ("convert, inspect", "inspect demo-pruned --json"),
        ("convert, inspect", "inspect demo --json"),
        ("eval", "eval demo-pruned --task demo --samples 2 --json"),
        ("ask", "ask demo-pruned 'What color is the circle?' --image photo.jpg --json"),
        ("verify", "verify demo-pruned --json"),
        ("models", "models --json"),
    ],
    ids=lambda value: value.split()[0].strip(","),
)
def test_fields_of_json_are_told(section, command, folder, monkeypatch):
    monkeypatch.chdir(folder)
    text = (ROOT / "docs/json.md").read_text(encoding="utf-8").partition(f"## {section}\n")[2].partition("\n## ")[0]
    told = {name.partition(".")[0] for name in re.findall(r"`([\w.]+)`", text)}
    assert set(json.loads(output(f"yopo {command}"))) <= told


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "index.html").exists()
    assert (tmp_path / "benchmarks/study/plot-demo-demo.png").exists()
