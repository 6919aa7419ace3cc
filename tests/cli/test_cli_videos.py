"""Questions about videos through the commands, of every family that takes them: planned on, evaluated, healed."""

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from PIL import Image
from support.published import LAYOUTS
from typer.testing import CliRunner

from converters.healing.answers import by_placeholder
from converters.loading import demo_folder
from yopo_cli.app import app


def run(*words: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.stderr + str(result.exception)
    return result


def write_videos(folder: Path) -> Path:
    """Two videos, a picture, and a video of frames beside a picture."""
    random = Random(0)
    for name in ("a", "b"):
        frames = [Image.frombytes("RGB", (32, 32), random.randbytes(3 * 32 * 32)) for _ in range(4)]
        frames[0].save(folder / f"{name}.gif", save_all=True, append_images=frames[1:])
        frames[1].save(folder / f"{name}.png")
    said = [{"from": "human", "value": "<video>\nhello w8"}, {"from": "gpt", "value": "w10"}]
    lines = [
        {"video": "a.gif", "conversations": said},
        {"image": "a.png", "question": "hello w9", "answer": "w11"},
        {"video": "b.gif", "question": "hello w8", "answer": "w12"},
        {"image": "b.png", "video": ["a.png", "b.png"] * 4, "question": "hello w8", "answer": "w12"},
    ]
    file = folder / "videos.json"
    file.write_text(json.dumps(lines))
    return file


@pytest.mark.parametrize("layout", ["Qwen2-VL", "Qwen2.5-VL", "Qwen3-VL", "InternVL native", "LLaVA-OneVision"])
def test_planned_on_and_asked(layout: str, tmp_path: Path) -> None:
    base, out, videos = tmp_path / "base", tmp_path / "out", write_videos(tmp_path)
    LAYOUTS[layout](base)
    asked = ("--budget", 0.5, "--recipe", "interlaced", "--calibration", videos, "-o", out, "--json")
    assert json.loads(run("convert", base, *asked).stdout)["calibration"]["samples"] == 4
    assert json.loads(run("verify", out, "--json").stdout)["passed"]
    words = ("--max-new-tokens", 2, "--json")
    at_once, one_by_one = (
        json.loads(run("eval", out, "--task", videos, "--batch-size", size, *words).stdout)["tasks"]["videos"] for size in (4, 1)
    )
    assert at_once["sides"] == one_by_one["sides"]
    assert at_once["sides"]["pruned"]["questions"] == 4
    assert at_once["pictures"] == 4


def test_searched_and_healed(tmp_path: Path) -> None:
    base, out, videos = tmp_path / "base", tmp_path / "out", write_videos(tmp_path)
    LAYOUTS["Qwen2-VL"](base)
    run("convert", base, "--budget", 0.3, "--samples", 3, "--calibration", videos, "-o", out)
    file = tmp_path / "more.json"
    file.write_text(json.dumps(json.loads(videos.read_text()) * 5))
    healed = run("heal", out, "--data", file, "--steps", 2, "--batch-size", 4, "-o", tmp_path / "healed", "--json")
    assert json.loads(healed.stdout)["samples"] == 16


def test_what_the_projector_saw_goes_to_its_tokens() -> None:
    """Of pictures (7) first, then of videos (8)."""
    rows = torch.tensor([1, 2, 3, 4])[by_placeholder(torch.tensor([8, 7, 8, 7]), (7, 8))]
    assert rows.tolist() == [3, 1, 4, 2]


def test_a_model_without_videos_says_so(tmp_path: Path) -> None:
    videos = write_videos(tmp_path)
    for words in (("eval", demo_folder(), "--task", videos), ("convert", demo_folder(), "-b", 0.5, "--calibration", videos, "--dry-run")):
        told = " ".join(run(*words, code=1).stderr.split())
        assert "videos.json, entry 1 has a video, and this model takes none. Hint: Give its frames as pictures" in told


def test_what_is_compared_on_videos(tmp_path: Path) -> None:
    base, videos = tmp_path / "base", write_videos(tmp_path)
    LAYOUTS["Qwen2-VL"](base)
    asked = ("eval", base, "--task", videos, "--budget", 0.5, "--max-new-tokens", 2)
    found = json.loads(run(*asked, "--against", "divprune,fastv", "--batch-size", 3, "--json").stdout)
    assert list(found["tasks"]["videos"]["sides"]) == ["dense", "divprune", "fastv"]
    told = " ".join(run(*asked, "--against", "downsample", code=1).stderr.split())
    assert "downsample makes pictures smaller, and there are questions about videos" in told
