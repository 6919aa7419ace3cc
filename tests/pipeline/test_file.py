"""The file of a pipeline: what it may say, and the sentence for everything else."""

from pathlib import Path

import pytest

from converters.errors import YopoError
from converters.pipeline.file import MAX_BYTES, Pipeline, read_pipeline

LEAST = "model: demo\nbudgets: [0.25]\ncalibration: {data: demo}\n"


def read(folder: Path, text: str | bytes) -> Pipeline:
    file = folder / "ours.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_pipeline(file)


def test_what_is_not_said(tmp_path: Path) -> None:
    found = read(tmp_path, LEAST)
    assert found.parts.budgets == [0.25]
    assert (found.parts.seed, found.parts.calibration.samples, found.parts.plan.recipe) == (0, 128, "auto")
    assert (found.model, found.command) == ("demo", "yopo run ours.yaml")
    assert found.output == tmp_path / "ours"


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "questions.jsonl").touch()
    (tmp_path / "model").mkdir()
    found = read(tmp_path, LEAST)
    assert found.data("questions.jsonl") == str(tmp_path / "questions.jsonl")
    assert [found.data(name) for name in ("demo", "hub:a/b/c.parquet")] == ["demo", "hub:a/b/c.parquet"]
    assert [found.task(name) for name in ("pope", "pope@main", "pope=data")] == ["pope", "pope@main", f"pope={tmp_path / 'data'}"]
    monkeypatch.chdir(tmp_path)  # below the working folder they are as short as can be: the same on every machine
    assert found.data("questions.jsonl") == "questions.jsonl"
    assert read(tmp_path, LEAST.replace("model: demo", "model: model")).model == "model"
    assert read(tmp_path, LEAST + "revision: v1\n").model == "demo@v1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LEAST + "budget: 0.1\n", "has an unknown key: budget"),
        (LEAST.replace("data: demo", "data: demo, sample: 3"), "has an unknown key: calibration.sample"),
        (LEAST + "exports: [{target: onnxruntime, bit: 4}]\n", "has an unknown key: exports.0.bit"),
        (LEAST + "evaluation: {tasks: [{task: demo, min_retention: high}]}\n", "evaluation.tasks.0.min_retention is 'high', but"),
        (LEAST + "healing: {data: demo, steps: 0}\n", "healing.steps is 0, but"),
        (LEAST.replace("0.25", "1.5"), "budgets.0 is 1.5, but"),
        (LEAST + "plan: {grid: 24}\n", "plan.grid is 24, but"),
        ("budgets: [0.25]\n", "lacks model"),
        ("- model\n", "is not a mapping of keys"),
        ("model: demo\ncalibration: {data: demo}\n", "budgets is missing"),
        ("model: demo\nbudgets: [0.25]\n", "calibration is missing"),
        ("model: demo\nbudgets: [0.25]\nplan: {file: plan.json}\n", "plan.file is complete, budgets would do nothing"),
        ("model: demo\nplan: {file: plan.json, depth: 3}\n", "plan.depth goes with a head mask"),
        (LEAST + "plan: {recipe: yopo, effort: 3}\n", "plan.effort is for the measured search, not for yopo"),
        (LEAST + "plan: {frontier: f.json, recipe: yopo}\n", "recipe, effort and grid would do nothing"),
        (LEAST + "exports: [{bits: 4}, {bits: 8}]\n", "exports has a target twice"),
        (LEAST.replace("[0.25]", "[0.25, 0.25]"), "budgets has one twice"),
        (LEAST.replace("[0.25]", "[0.25, 0.5]") + "push: {repository: a/b}\n", "put {budget} into push.repository"),
        (LEAST + "push: {repository: 'a/b-{share}'}\n", "push knows {budget} alone in braces"),
        (LEAST.replace("model: demo", "model: a/b@v1") + "revision: v2\n", "model has a revision of its own"),
        (LEAST + "model: other\n", "the key 'model' is there twice at line 4, column 1"),
        ("a: &a [1]\nb: [*a, *a]\n", "aliases are not used here at line 2"),
        ("[" * 100 + "]" * 100, "nested deeper than 64 levels"),
        ("model: !!python/object/apply:os.system ['true']\n", "could not determine a constructor for the tag"),
        ("model: [demo\n", "is not the YAML of a pipeline"),
        (b"model: \xff\n", "is not UTF-8"),
        (b"model: a\x00b\n", "is not YAML"),
        ("model: 2026-13-45\n" + LEAST.partition("\n")[2], "is not YAML"),
        (b"#" * (MAX_BYTES + 1), "is larger than 1,000,000 bytes"),
    ],
)
def test_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(YopoError) as caught:
        read(tmp_path, text)
    assert message in caught.value.message
    assert str(tmp_path / "ours.yaml") in caught.value.message
    assert caught.value.hint


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(YopoError, match="does not exist"):
        read_pipeline(tmp_path / "none.yaml")
