"""Every family and layout through the commands: calibrated on pictures of different sizes, pruned, verified, asked, evaluated, timed."""

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image
from support.published import LAYOUTS
from typer.testing import CliRunner

from converters.bench.ceiling import Ceiling
from yopo_cli.app import app

SIZES = ((32, 32), (64, 32), (24, 72), (40, 56), (64, 64))  # width, height
# The median picture's: Qwen's 64 x 32 in squares of 8 pixels; InternVL's two to four tiles of it, thumbnail included; LLaVA-NeXT's 24 x 72.
MEDIANS = (
    {"Qwen2-VL": [[4, 8, 1]], "Qwen2.5-VL": [[4, 8, 1]], "Qwen3-VL": [[4, 8, 1]], "InternVL native": [[4, 4, 1]] * 3}
    | {
        "LLaVA-NeXT": [[4, 4, 1], [12, 5, 1]],
        "LLaVA-OneVision": [[4, 4, 1], [8, 9, 1]],
        "Idefics3": [[4, 4, 1]] * 5,
    }
    | {layout: [[4, 4, 1]] * 4 for layout in ("InternVL2, InternLM2", "InternVL2, Phi-3", "InternVL3.5, Qwen3")}
)


def run(*words: object) -> Any:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.stderr + str(result.exception)
    return result


def write_samples(folder: Path) -> Path:
    lines = []
    for index, size in enumerate(SIZES):
        Image.frombytes("RGB", size, Random(index).randbytes(3 * size[0] * size[1])).save(folder / f"{index}.png")
        lines.append({"image": f"{index}.png", "question": "hello w8 w9", "answer": f"w{10 + index}"})
    file = folder / "samples.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.mark.parametrize("layout", LAYOUTS)
def test_from_the_published_folder_to_answers(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converters.bench.benchmark.measure_ceiling", lambda *sizes: Ceiling(1e9, 1e9))
    base, out, samples = tmp_path / "base", tmp_path / "out", write_samples(tmp_path)
    LAYOUTS[layout](base)
    made = json.loads(
        run("convert", base, "--budget", "0.5", "--recipe", "interlaced", "--calibration", samples, "-o", out, "--json").stdout
    )
    assert 0.3 < made["budget"]["reached"] <= 0.5
    assert made["calibration"]["samples"] == len(SIZES)
    assert made["plan"]["grids"] == MEDIANS.get(layout, [[4, 4, 1]])
    assert json.loads(run("verify", out, "--json").stdout)["passed"]
    picture = ("--image", tmp_path / "0.png", "--image", tmp_path / "2.png")
    answer = json.loads(run("ask", out, "hello w8", *picture, "--max-new-tokens", "3", "--json").stdout)
    assert answer["path"].startswith("pruned")
    assert answer["answer"]
    asked = ("eval", out, "--task", samples, "--max-new-tokens", "2", "--batch-size", "3", "--json")
    against = ("--against", "divprune,downsample") if layout != "Qwen3-VL" else ()
    scores = json.loads(run(*asked, *against).stdout)
    assert scores["sides"] == ["dense", "pruned", *(("divprune", "downsample") if against else ())]
    assert all(one["questions"] == len(SIZES) for one in scores["tasks"]["samples"]["sides"].values())
    if not against:
        told = CliRunner().invoke(app, [*map(str, asked), "--against", "random"]).stderr
        assert "Token pruners do not know visual features that are added between layers." in " ".join(told.split())
    timed = run(
        "bench", out, "--rounds", "1", "--steps", "1", "--text-tokens", "4", *(("--against", "random") if against else ()), "--json"
    ).stdout
    dense, plan, *others = json.loads(timed.splitlines()[-1])["runs"][0]["sides"]
    assert [one["name"] for one in others] == (["random"] if against else [])
    assert dense["visual_share"] == 1
    assert plan["kv_bytes"] == plan["kv_bytes_predicted"]
