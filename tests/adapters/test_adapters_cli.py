"""`yopo adapt` and `convert --adapter`, on the demo."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from typer.testing import CliRunner

import yopo
from converters.loading import demo_folder
from yopo_cli.app import app

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft asks transformers by an older name


def run(*words: Any) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On the keys and neurons of the demo model, whose weights are not small."""
    folder = tmp_path_factory.mktemp("demo") / "lora"
    torch.manual_seed(0)
    whole = get_peft_model(yopo.load("demo").torch, LoraConfig(r=2, target_modules=r".*language_model.*(k_proj|up_proj)"))
    for name, parameter in whole.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    whole.save_pretrained(folder)
    return folder


def test_what_adapt_says(adapter: Path, converted_demo: Path, tmp_path: Path) -> None:
    done = run("adapt", adapter, "--to", converted_demo, "-o", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    layers = yopo.load("demo").checkpoint.sizes.num_hidden_layers
    assert (found["adapter"], found["modules"], found["output"]) == (str(adapter), 2 * layers, str(tmp_path / "out"))
    assert 0 < found["reordered"] <= 2 * layers
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["SHA256SUMS", "adapter_config.json", "adapter_model.safetensors"]
    again = run("adapt", adapter, "--to", converted_demo, "-o", tmp_path / "out")
    assert (again.exit_code, "exists already" in again.output) == (1, True)
    again = run("adapt", adapter, "--to", converted_demo, "-o", tmp_path / "out", "--force")
    assert f"{2 * layers} modules, {found['reordered']} of them reordered" in again.output
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(converted_demo.resolve())


def test_what_adapt_refuses(adapter: Path, converted_demo: Path, tmp_path: Path) -> None:
    for words, message in (
        ((adapter, "--to", "demo", "-o", tmp_path / "out"), "has no plan"),
        ((converted_demo, "--to", converted_demo, "-o", tmp_path / "out"), "adapter_config.json does not exist"),
        ((adapter, "--to", converted_demo, "-o", adapter / "out"), "inside"),
    ):
        done = run("adapt", *words)
        assert (done.exit_code, message in " ".join(done.output.split())) == (1, True), done.output
    assert not list(tmp_path.iterdir())


def test_convert_merges_the_adapter(adapter: Path, tmp_path: Path) -> None:
    done = run("convert", "demo", "--budget", 1, "--adapter", adapter, "-o", tmp_path / "merged")
    assert done.exit_code == 0, done.output
    merged, base = yopo.load(tmp_path / "merged").checkpoint, yopo.load(demo_folder()).checkpoint
    different = {name for name in base.tensors if not merged.read(name).equal(base.read(name))}
    assert {name.split(".")[-2] for name in different} == {"k_proj", "up_proj"}
    assert len(different) == 2 * base.sizes.num_hidden_layers
