"""From a name to a directory: folders, and the Hub's HTTP API end to end, with a server on loopback.

HF_ENDPOINT and its like are read when huggingface_hub is imported: every case runs in a process of its own, as a command would.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import listing, save_model
from support.hub_server import Hub, Repository, hub

from converters.checkpoint.reader import open_checkpoint
from converters.checkpoint.source import Source, resolve
from converters.errors import YopoError

NAME = "someone/tiny-llava"
SCRIPT = """
import json, sys
from converters.checkpoint.source import resolve
from converters.errors import YopoError
for model in sys.argv[1:]:
    try:
        source = resolve(model)
        answer = {"name": source.name, "path": str(source.path), "repository": source.repository, "revision": source.revision}
    except YopoError as error:
        answer = {"message": error.message, "hint": error.hint}
    print(json.dumps(answer))
"""


def ask(cache: Path, address: str, *models: str, **environment: str) -> list[dict[str, Any]]:
    """Resolve in a new process, with an empty home of its own."""
    own = {"HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1"}
    keep = {name: value for name, value in os.environ.items() if not name.startswith("HF_") and "proxy" not in name.lower()}
    command = [sys.executable, "-c", SCRIPT, *models]
    done = subprocess.run(command, env=keep | own | environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A checkpoint's files, and some that nobody needs."""
    folder = tmp_path_factory.mktemp("base")
    save_model(folder, shards=2)
    return listing(folder) | {"pytorch_model.bin": b"not needed", "onnx/model.json": b"{}", "picture.png": b"png"}


def downloads(server: Hub) -> list[str]:
    return sorted(path.rsplit("/", 1)[1] for method, path, _ in server.requests if method == "GET" and "/resolve/" in path)


def test_a_model_comes_from_the_hub_once(files: dict[str, bytes], tmp_path: Path) -> None:
    needed = {name for name in files if not name.endswith((".bin", ".png")) and "/" not in name}
    with hub({NAME: Repository({"main": files})}) as server:
        source, again = ask(tmp_path, server.address, NAME, NAME)
        assert source == again
        assert (source["name"], source["repository"]) == ("tiny-llava", NAME)
        assert source["revision"] == server.repositories[NAME].commit("main")
        assert downloads(server) == sorted(needed)
    assert listing(Path(source["path"])) == {name: files[name] for name in needed}
    assert open_checkpoint(Path(source["path"])).read("lm_head.weight").shape == (64, 32)
    # The server is gone: what is in the cache serves, asked to be offline or not.
    assert ask(tmp_path, server.address, NAME) == [source]
    assert ask(tmp_path, server.address, NAME, HF_HUB_OFFLINE="1") == [source]


def test_bin_weights_only_where_there_are_no_others(files: dict[str, bytes], tmp_path: Path) -> None:
    repository = {name: data for name, data in files.items() if "safetensors" not in name}
    with hub({NAME: Repository({"main": repository})}) as server:
        (source,) = ask(tmp_path, server.address, NAME)
    assert (Path(source["path"]) / "pytorch_model.bin").read_bytes() == b"not needed"


def test_revisions(files: dict[str, bytes], tmp_path: Path) -> None:
    with hub({NAME: Repository({"main": files, "v2": files | {"README.md": b"two"}})}) as server:
        commit = server.repositories[NAME].commit("v2")
        named, hashed, missing = ask(tmp_path, server.address, f"{NAME}@v2", f"{NAME}@{commit}", f"{NAME}@v3")
    assert named == hashed
    assert named["revision"] == commit
    assert (Path(named["path"]) / "README.md").read_bytes() == b"two"
    assert missing["message"] == f"The repository {NAME} has no revision 'v3'."


def test_a_token_is_sent_and_its_lack_explained(files: dict[str, bytes], tmp_path: Path) -> None:
    with hub({NAME: Repository({"main": files}, token="hf_secret")}) as server:
        (answer,) = ask(tmp_path, server.address, NAME)
        assert answer["message"] == f"The Hub has no repository {NAME}, or it is private."
        assert "HF_TOKEN" in answer["hint"]
        assert "path" in ask(tmp_path, server.address, NAME, HF_TOKEN="hf_secret")[0]
        assert server.requests[-1][2]["authorization"] == "Bearer hf_secret"


def test_an_interrupted_download_goes_on_where_it_was(files: dict[str, bytes], tmp_path: Path) -> None:
    large, kept = bytes(range(256)) * 50_000, 10 * 1024 * 1024  # the client keeps whole pieces of ten megabytes
    with hub({NAME: Repository({"main": files | {"tokenizer.model": large}})}) as server:
        server.cut["tokenizer.model"] = kept + 1000
        (source,) = ask(tmp_path, server.address, NAME)
        ranges = [headers["range"] for _, path, headers in server.requests if path.endswith("tokenizer.model") and "range" in headers]
    assert (Path(source["path"]) / "tokenizer.model").read_bytes() == large
    assert ranges == [f"bytes={kept}-"]


def test_a_gated_repository(files: dict[str, bytes], tmp_path: Path) -> None:
    with hub({NAME: Repository({"main": files}, gated=True)}) as server:
        (answer,) = ask(tmp_path, server.address, NAME)
    assert answer["message"] == f"The repository {NAME} is gated."
    assert "Accept its terms" in answer["hint"]


def test_names_without_a_repository(tmp_path: Path) -> None:
    impossible = ("a..b/c", "-a/b", "a/b.git")
    with hub({}) as server:
        missing, short, *others = ask(tmp_path, server.address, "someone/nothing", "llava-1.5-7b", *impossible)
    assert missing["message"] == "The Hub has no repository someone/nothing, or it is private."
    assert short["message"] == "The Hub has no repository llava-hf/llava-1.5-7b-hf, or it is private."
    assert [answer["message"] for answer in others] == [f"{name!r} cannot be the name of a repository on the Hub." for name in impossible]


def test_no_network_and_nothing_in_the_cache(tmp_path: Path) -> None:
    with hub({}) as server:
        address = server.address
    (answer,) = ask(tmp_path, address, NAME)
    assert answer["message"] == f"The Hub cannot be reached, and {NAME} is not in the cache, or not all of it."
    (answer,) = ask(tmp_path, address, NAME, HF_HUB_OFFLINE="1")
    assert answer["message"] == f"{NAME} is not in the cache, or not all of it, and offline mode is on."
    assert "HF_HUB_OFFLINE" in answer["hint"]


def test_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "some" / "model"
    folder.mkdir(parents=True)
    assert resolve(str(folder)) == Source("model", folder)
    monkeypatch.chdir(tmp_path)
    assert resolve("some/model") == Source("model", Path("some/model"))
    monkeypatch.chdir(folder)
    assert resolve(".").name == "model"


@pytest.mark.parametrize("model", ["llava", "./missing", "/missing", "a/b/c", "a b/c", "", "a/b@"])
def test_what_is_no_model(model: str) -> None:
    with pytest.raises(YopoError, match=r"There is no model '") as raised:
        resolve(model)
    assert "llava-1.5-7b" in raised.value.hint


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(YopoError, match="is a file"):
        resolve(str(tmp_path / "model.safetensors"))
