"""What the first check of `yopo verify` notices: anything that was changed, taken away or added."""

from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest
from support.checkpoints import save_model
from support.conversions import provenance
from support.random_plans import random_plan

from converters.checkpoint.convert import convert
from converters.checkpoint.manifest import MANIFEST, manifest_text, read_manifest
from converters.checkpoint.reader import open_checkpoint, open_converted
from converters.errors import YopoError
from converters.evaluation import verification
from converters.runtime.plan import Grid


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verified")
    save_model(folder / "base")
    checkpoint = open_checkpoint(folder / "base")
    return convert(checkpoint, random_plan(checkpoint.sizes, 0, (Grid(4, 4),)), folder / "out", provenance(folder / "base"))


def without(folder: Path, name: str) -> None:
    """A file and its line taken away."""
    (folder / name).unlink(missing_ok=True)
    files = read_manifest(folder)
    del files[name]
    (folder / MANIFEST).write_text(manifest_text(files))


def more(name: str) -> Callable[[Path], object]:
    def add(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"{}")

    return add


ADDED = (
    "pytorch_model.bin", "model-00002-of-00002.safetensors", "model.safetensors.index.json", "preprocessor_config.json",
    "adapter_model.safetensors", "modeling_other.py", "processor_config.json", "sub/model.safetensors",
)  # fmt: skip
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    **{name: (more(name), f"not listed: {name}") for name in ADDED},
    "a changed byte": (lambda folder: (folder / "README.md").write_text("changed"), "changed or missing: README.md"),
    "a missing file": (lambda folder: (folder / "LICENSE.txt").unlink(), "changed or missing: LICENSE.txt"),
    "a file with its line": (lambda folder: without(folder, "LICENSE.txt"), "is not the list that config.json was written with"),
    "the line of config.json": (lambda folder: without(folder, "config.json"), "does not exist"),
    "the whole list": (lambda folder: (folder / MANIFEST).write_text(""), "there is no SHA256SUMS"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_every_change_is_noticed(case: str, whole: Path, tmp_path: Path) -> None:
    damage, sentence = DAMAGES[case]
    folder = copytree(whole, tmp_path / "out")
    damage(folder)
    with pytest.raises(YopoError, match=sentence):
        verification._files(open_converted(folder))


def test_what_belongs_there(whole: Path, tmp_path: Path) -> None:
    folder = copytree(whole, tmp_path / "out")
    for name in (".gitattributes", "decoder_decode.onnx", "onnx.json"):
        more(name)(folder)
    assert "and there are no others" in verification._files(open_converted(folder))
