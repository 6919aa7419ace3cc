"""What all tests share: one thread (tensors are tiny), no network, and one converted demo model."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from typer.testing import CliRunner

from yopo_cli.app import app

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def converted_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model at a budget of 0.12, by a recipe that needs no search. Not to be changed: copy it first."""
    output = tmp_path_factory.mktemp("converted") / "demo-yopo-0.12"
    asked = ["convert", "demo", "--budget", "0.12", "--recipe", "interlaced", "--compensation", "none", "--samples", "8", "-o", str(output)]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.stderr
    return output
