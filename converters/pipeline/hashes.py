"""What inputs and artefacts are, by content: a sha256 of each."""

import hashlib
import json
import os
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..checkpoint.convert import COPIED, copied_files
from ..checkpoint.manifest import file_sha256
from ..data.footage import Video
from ..data.sample import open_image
from ..data.samples import is_bundled, samples_of
from ..evaluation.benchmarks import is_benchmark
from ..evaluation.sources import ASKED
from ..evaluation.tasks import task
from ..model import Model

PACKAGES = (
    "yopo",
    "torch",
    "transformers",
    "huggingface_hub",
    "numpy",
    "pillow",
    "safetensors",
    "accelerate",
    "peft",
    "onnx",
    "onnxruntime",
)


def versions() -> dict[str, str]:
    """Those of the packages that bytes depend on, as far as they are installed, and a hash of our own code: it changes between releases."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {**found, "code": _code_sha256()}


@cache
def _code_sha256() -> str:
    package = Path(__file__).parent.parent
    return json_sha256({name: file_sha256(package / name) for name in files_below(package) if name.endswith((".py", ".jinja"))})


def json_sha256(data: Any) -> str:
    """Of data as JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def content_sha256(path: Path) -> str | None:
    """Of a file, or of all files below a folder with their names; None where nothing is there."""
    if path.is_file():
        return file_sha256(path)
    return json_sha256({name: file_sha256(path / name) for name in files_below(path)}) if path.is_dir() else None


def files_below(folder: Path) -> list[str]:
    """All files, by their paths from the folder."""
    return sorted((Path(place) / name).relative_to(folder).as_posix() for place, _, names in os.walk(folder) for name in names)


def model_sha256(model: Model) -> str:
    """Of a dense model: its weights' fingerprint, and its tokenizer, processor, templates and licence."""
    files = {file.name: file_sha256(file) for file in copied_files(model.path, COPIED)}
    return json_sha256([model.fingerprint, files])


def data_sha256(data: str) -> str:
    """Of questions with their pictures, all of them; of a bundled set its name, which a version has the same questions for."""
    if is_bundled(data):
        return f"bundled {data}"
    digest = hashlib.sha256(file_sha256(Path(data)).encode() if Path(data).is_file() else b"")
    for sample in samples_of(data, answers=False).stream():
        digest.update(json.dumps([sample.question, sample.answer, sample.kind, [*map(_visual_sha256, sample.visuals)]]).encode())
    return digest.hexdigest()


def _visual_sha256(image: Any) -> str:
    if isinstance(image, Video):
        return json_sha256([*map(file_sha256, image.files)] or [*map(_visual_sha256, image.open().frames)])
    return file_sha256(Path(image)) if isinstance(image, str | Path) else hashlib.sha256(open_image(image).tobytes()).hexdigest()


def task_sha256(text: str) -> str:
    """Of a task's data: questions of one's own as `data_sha256`, a place's files, or the Hub's commit."""
    if not is_benchmark(text):
        return data_sha256(text)
    asked = ASKED.fullmatch(text)
    assert asked is not None
    if asked["place"]:
        return str(content_sha256(Path(asked["place"])))
    from ..data.hub import snapshot

    source = task(asked["name"]).source
    patterns = [source.files, *([source.pictures[0]] if source.pictures else [])]
    return snapshot(source.repositories, patterns, asked["revision"]).revision
