"""Commands on a model of the Hub, served on loopback."""

import json
import os
import subprocess
import sys
from pathlib import Path

from support.checkpoints import listing, save_model
from support.hub_server import Hub, Repository, hub
from support.published import save_llava

NAME = "someone/tiny-llava"


def yopo(*arguments: object, server: Hub, home: Path, offline: bool = False) -> str:
    """The stdout of `yopo ...` in a process of its own, with an empty cache and this Hub; nothing is warned of."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith("HF_") and "proxy" not in name.lower()}
    environment = keep | {"HF_ENDPOINT": server.address, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {"HF_HUB_OFFLINE": "1"} if offline else {}
    command = [sys.executable, "-m", "yopo_cli", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


def test_inspect_fetches_the_config_and_convert_the_weights(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    save_model(tmp_path / "base")
    with hub({NAME: Repository({"main": listing(tmp_path / "base")})}) as server:
        shown = yopo("inspect", NAME, "--json", server=server, home=tmp_path / "home")
        fetched = {path.rsplit("/", 1)[1] for method, path, _ in server.requests if method == "GET" and "/resolve/" in path}
        assert fetched == {"config.json"}
        assert json.loads(shown)["model"] == "tiny-llava"
        written = yopo("convert", NAME, "--budget", 1, "-o", tmp_path / "out", "--json", server=server, home=tmp_path / "home")
        assert json.loads(written)["budget"]["reached"] == 1.0
        assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_budget_is_all_that_convert_needs(tmp_path: Path) -> None:
    """A checkpoint in the layout of llava-hf/llava-1.5-7b-hf, from the Hub and then from the cache alone."""
    save_llava(tmp_path / "base")
    asked = ("convert", NAME, "--budget", 0.12, "--recipe", "interlaced", "--samples", 8, "--json")
    with hub({NAME: Repository({"main": listing(tmp_path / "base")})}) as server:
        made = json.loads(yopo(*asked, "-o", tmp_path / "out", server=server, home=tmp_path / "home"))
    again = json.loads(yopo(*asked, "--dry-run", server=server, home=tmp_path / "home", offline=True))
    assert made["calibration"] | {"data": ""} == {"samples": 8, "from": "everyday", "seed": 0, "data": ""}
    assert made["plan"] == again["plan"]
    assert (tmp_path / "out" / "model.safetensors").exists()
