"""SHA256SUMS: what every written file was, config.json included. `sha256sum -c SHA256SUMS` checks it without this project."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from ..errors import YopoError

MANIFEST = "SHA256SUMS"


def manifest_text(files: Mapping[str, str]) -> str:
    return "".join(f"{files[name]}  {name}\n" for name in sorted(files))


def read_manifest(path: Path) -> dict[str, str]:
    """Sha256 by file name, {} where the folder has no manifest. Raises YopoError for a line that is not one."""
    if not (path / MANIFEST).exists():
        return {}
    files = {}
    for number, line in enumerate((path / MANIFEST).read_text(encoding="utf-8").splitlines(), 1):
        match = re.fullmatch(r"([0-9a-f]{64})  ([^/\\]+)", line)
        if match is None:
            raise YopoError(f"{path / MANIFEST}, line {number}: not a sha256 and a file name.", "Convert the model again.")
        files[match[2]] = match[1]
    return files


def changed_files(path: Path, files: Mapping[str, str]) -> tuple[str, ...]:
    """Names of files that are missing or have other contents."""
    return tuple(name for name in sorted(files) if not (path / name).is_file() or file_sha256(path / name) != files[name])


def file_sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
