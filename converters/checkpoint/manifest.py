"""SHA256SUMS: what every written file was, config.json included. `sha256sum -c SHA256SUMS` checks it without this project.

In a converted model config.json tells the hash of the list (of all other files: its own cannot stand in it), so that a file that is
taken away, added or changed is noticed even where the list was changed with it.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path

from ..errors import YopoError

MANIFEST = "SHA256SUMS"
CONFIG = "config.json"
MAX_MANIFEST_BYTES = 10_000_000
LINE = re.compile(r"([0-9a-f]{64})  ((?:[^/\\\0\n]+/)*[^/\\\0\n]+)")
# What `yopo export` puts beside the weights. Nothing that loads a checkpoint reads these.
EXPORTED = ("*.onnx", "*.onnx_data", "onnx_weights.safetensors", "onnx.json", "genai_config.json", "export_report.json")


def manifest_text(files: Mapping[str, str]) -> str:
    return "".join(f"{files[name]}  {name}\n" for name in sorted(files))


def list_sha256(files: Mapping[str, str]) -> str:
    """The hash of a list of files, config.json left out: what config.json itself tells."""
    return hashlib.sha256(manifest_text({name: files[name] for name in files if name != CONFIG}).encode()).hexdigest()


def write_manifest(folder: Path) -> None:
    """List all files of a folder."""
    files = {name: file_sha256(folder / name) for name in _names(folder)}
    with (folder / MANIFEST).open("x", encoding="utf-8", newline="\n") as stream:
        stream.write(manifest_text(files))
        stream.flush()
        os.fsync(stream.fileno())


def read_manifest(path: Path) -> dict[str, str]:
    """Sha256 by file name, {} where the folder has no manifest. Raises YopoError for a line that is not one."""
    file = path / MANIFEST
    if not file.is_file():
        return {}
    if file.stat().st_size > MAX_MANIFEST_BYTES:
        raise YopoError(f"{file} is too long for a list of files.", "Convert the model again.")
    files = {}
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").split("\n")[:-1], 1):
        match = LINE.fullmatch(line)
        if match is None or {"", ".", ".."} & set(match[2].split("/")) or match[2] in files:
            raise YopoError(f"{file}, line {number}: not a sha256 and the name of a file.", "Convert the model again.")
        files[match[2]] = match[1]
    return files


def changed_files(path: Path, files: Mapping[str, str]) -> tuple[str, ...]:
    """Names of files that are missing or have other contents."""
    return tuple(name for name in sorted(files) if not (path / name).is_file() or file_sha256(path / name) != files[name])


def added_files(path: Path, files: Mapping[str, str]) -> tuple[str, ...]:
    """Names of files that are not listed; hidden ones and what an export put there are left out: nobody loads them."""
    return tuple(name for name in _names(path) if name not in files and not name.startswith(".") and not is_exported(name))


def is_exported(name: str) -> bool:
    """Whether a file is part of an export that lies beside the weights."""
    return any(fnmatch(name, pattern) for pattern in EXPORTED)


def unlisted(folder: Path) -> str | None:
    """The first file of a folder, hidden or not, that its manifest does not list; None where all are listed."""
    try:
        listed = read_manifest(folder)
    except YopoError:
        return MANIFEST
    return next((name for name in _names(folder) if name not in listed), None)


def file_sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _names(folder: Path) -> Iterator[str]:
    """All below a folder that is no folder itself, links included, by its path from there; the manifest is left out."""
    for place, folders, files in os.walk(folder, onerror=_raise):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        paths = ((Path(place) / name).relative_to(folder).as_posix() for name in sorted([*links, *files]))
        yield from (path for path in paths if path != MANIFEST)


def _raise(error: OSError) -> None:
    raise error
