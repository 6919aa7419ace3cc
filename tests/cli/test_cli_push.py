"""`yopo push` to a Hub on loopback, in a process of its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.checkpoints import listing
from support.hub_server import Hub, Repository, hub

NAME = "someone/demo-pruned"
TOKEN = "hf_someones"


def push(folder: Path, server: Hub, *options: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    keep = {name: value for name, value in os.environ.items() if not name.startswith("HF_") and "proxy" not in name.lower()}
    # Xet is a protocol of its own; without it large files go as git-lfs has them.
    environment = keep | {"HF_ENDPOINT": server.address, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    words = [sys.executable, "-m", "yopo_cli", "push", str(folder), NAME, *options]
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_a_repository_is_what_the_folder_is(converted_demo: Path) -> None:
    with hub({}, TOKEN) as server:
        done = push(converted_demo, server, "--private", "--json")
        assert done.returncode == 0, done.stderr
        repository = server.repositories[NAME]
        assert repository.private
        assert {**repository.revisions["main"]} == {**listing(converted_demo), ".gitattributes": b""}
        told = json.loads(done.stdout)
        assert (told["commit"], told["revision"]) == (repository.commit("main"), "main")
        assert "states no licence" in done.stderr
        again = json.loads(push(converted_demo, server, "--json").stdout)
        assert again["commit"] == told["commit"], "nothing has changed"


def test_a_branch_keeps_nothing_that_is_not_in_the_folder(converted_demo: Path) -> None:
    old = {"SHA256SUMS": b"", "model-00001-of-00002.safetensors": b"old"}
    with hub({NAME: Repository({"main": old})}, TOKEN) as server:
        assert push(converted_demo, server, "--revision", "half").returncode == 0
        repository = server.repositories[NAME]
        assert {**repository.revisions["half"]} == listing(converted_demo)
        assert repository.revisions["main"] == old


@pytest.mark.parametrize(
    ("there", "options", "token", "message"),
    [
        ({}, (), "hf_of_another", "does not let you write to someone/demo-pruned (HTTP 401)"),
        ({NAME: Repository({"main": {"thesis.pdf": b""}})}, (), TOKEN, "has files that are not yopo's: thesis.pdf"),
        ({NAME: Repository({"main": {}})}, ("--private",), TOKEN, "is there already, and public"),
    ],
)
def test_refused(converted_demo: Path, there: dict[str, Repository], options: tuple[str, ...], token: str, message: str) -> None:
    before = {name: dict(one.revisions) for name, one in there.items()}
    with hub(dict(there), TOKEN) as server:
        done = push(converted_demo, server, *options, token=token)
        assert done.returncode == 1
        assert message in done.stderr
        assert {name: dict(one.revisions) for name, one in server.repositories.items()} == before


def test_changed_files_are_not_pushed(converted_demo: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(converted_demo, tmp_path / "copy"))
    (copy / "plan.py").write_text("import os\n")
    with hub({}, TOKEN) as server:
        done = push(copy, server)
        assert done.returncode == 1
        assert "was changed after it was written: plan.py" in done.stderr
        assert not server.repositories
