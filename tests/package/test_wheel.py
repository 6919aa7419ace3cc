"""The built distributions: the wheel works in an environment of its own, and the sdist has all that it takes to test and document it."""

import ast
import os
import re
import runpy
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.docs.blocks import ROOT, code


def run(*words: object, folder: Path | None = None) -> str:
    """What a command prints, in a process that sees nothing of this source tree. Fails with its messages."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | {"HF_HUB_OFFLINE": "1"}
    words = tuple(map(str, words))
    done = subprocess.run(words, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with sdist and wheel, the wheel built from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def environment(built, tmp_path_factory) -> Path:
    """An environment that holds the wheel alone; its dependencies are those installed here, which stand behind it on the path."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    packages = next(folder.glob("lib/python*/site-packages"))
    run(sys.executable, "-m", "pip", "--python", folder, "install", "--quiet", "--no-deps", "--no-index", next(built.glob("*.whl")))
    (packages / "dependencies.pth").write_text("\n".join(place for place in sys.path if place.endswith("site-packages")))
    return folder


@pytest.mark.slow
def test_the_wheel_is_all_that_it_takes(environment, tmp_path):
    python, yopo = environment / "bin/python", environment / "bin/yopo"
    places = "import yopo, converters, yopo_cli; print(yopo.__file__, converters.__file__, yopo_cli.__file__)"
    where = run(python, "-c", places, folder=tmp_path)
    assert all(Path(place).is_relative_to(environment) for place in where.split())
    assert all(Path(place).with_name("py.typed").exists() for place in where.split()[:2])
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert run(yopo, "--version").split() == ["yopo", version]
    shipped = "from converters.data.samples import samples_of; print(samples_of('everyday', answers=False).count)"
    assert run(python, "-c", shipped, folder=tmp_path).strip() == "268"
    run(yopo, "convert", "demo", "--budget", "0.25", "--recipe", "interlaced", "--samples", "4", "-o", "demo-pruned", folder=tmp_path)
    assert "interlaced" in run(yopo, "inspect", "demo-pruned", folder=tmp_path)
    assert "kept" in run(yopo, "eval", "demo-pruned", "--task", "demo", "--samples", "8", folder=tmp_path)
    assert "[y/N]" not in run(python, "-c", code((ROOT / "README.md").read_text(), "python")[0], folder=tmp_path)


@pytest.mark.slow
def test_what_is_installed_here_is_within_the_bounds_of_the_wheel(environment):
    words = [sys.executable, "-m", "pip", "--python", str(environment), "check"]
    said = subprocess.run(words, capture_output=True, text=True).stdout  # of everything that is installed, not of yopo alone
    assert [line for line in said.splitlines() if line.startswith("yopo ")] == []


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="which files there are is known in a clone only")
def test_the_sdist_is_complete(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert set(tracked) - names <= {".gitignore", ".dockerignore"}


def test_every_import_is_of_a_named_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *(name for extra in project["optional-dependencies"].values() for name in extra)]
    allowed = {re.match(r"[\w-]+", name)[0].lower().replace("-", "_") for name in named} | {"PIL", "yaml", "converters", "yopo_cli"}
    files = [file for package in ("yopo", "converters", "yopo_cli") for file in (ROOT / package).rglob("*.py")]
    imported = {name.partition(".")[0] for file in files for name in imports(ast.parse(file.read_text(encoding="utf-8")))}
    assert imported - sys.stdlib_module_names <= allowed


def imports(tree: ast.Module) -> Iterator[str]:
    """Modules of other packages that a file imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module


def test_links_of_the_readme_are_absolute_on_a_package_index():
    setup = runpy.run_path(str(ROOT / "setup.py"))
    text = "[guide](docs/guide.md#plan) ![plot](docs/plot.png) [paper](https://arxiv.org) [here](#limits)"
    assert setup["absolute"](text, "https://host/yopo") == (
        "[guide](https://host/yopo/blob/main/docs/guide.md#plan) ![plot](https://host/yopo/raw/main/docs/plot.png)"
        " [paper](https://arxiv.org) [here](#limits)"
    )
    relative = re.findall(r"\]\((?!\w+:|#)", setup["absolute"]((ROOT / "README.md").read_text(), "https://host/yopo"))
    assert not relative
