"""A folder that is written elsewhere and appears whole: a temporary one beside it, renamed at the end."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import YopoError
from .interruption import uninterrupted
from .manifest import CONFIG, MANIFEST, list_sha256, manifest_text, unlisted, write_manifest
from .private import NEW, OLD, Lock, dead, private, private_path, remove
from .renaming import exchange, rename_new

DISK_FULL = (errno.ENOSPC, errno.EDQUOT) if hasattr(errno, "EDQUOT") else (errno.ENOSPC,)
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.ENAMETOOLONG)
MAX_COPIED_BYTES = 1 << 28
NO_SPACE = "Free some space, or write to another disk with -o."


def check_output(output: Path, force: bool = False) -> None:
    """Raise YopoError if the output may not be written there. `force` replaces an empty folder, or one with files of ours alone.

    What killed runs left there is put right first: what they were replacing is restored, what they were writing is removed.
    """
    output = _absolute(output)
    parent = output.parent
    if not parent.is_dir():
        raise YopoError(f"The folder {parent} does not exist.", f"Make it first: mkdir -p {parent}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise YopoError(f"The folder {parent} may not be written.", "Choose another place with -o.")
    with _explained(output):
        _put_right(output)
        _check_free(output, force)


def check_apart(source: Path, output: Path) -> None:
    """Raise YopoError if one of the two folders is inside the other: the source would be changed, or lost."""
    one, other = source.resolve(), output.resolve()
    if one.is_relative_to(other):
        raise YopoError(f"{output} is the model that is read, or holds it.", "Choose another name with -o.")
    if other.is_relative_to(one):
        raise YopoError(f"{output} is inside the model that is read.", "Choose a place outside of it with -o.")


def check_space(output: Path, needed: int) -> None:
    """Raise YopoError if the disk has less than `needed` bytes free; a folder to be replaced goes only after the new one is whole."""
    free = shutil.disk_usage(output.absolute().parent).free
    if free < needed:
        raise YopoError(f"{output.absolute().parent} has {free / 1e9:.2f} GB free, {needed / 1e9:.2f} GB are needed.", NO_SPACE)


@contextmanager
def appearing(output: Path, force: bool = False) -> Iterator[Path]:
    """A private folder that becomes `output` when the block ends, and is removed when it is left in any other way.

    Files that the block lists in no SHA256SUMS are listed in the end. Raises YopoError where the disk is full or cannot be written,
    and where the output appeared meanwhile. SIGTERM and SIGHUP arrive as KeyboardInterrupt; nothing is left behind then either.
    """
    output = _absolute(output)
    with _explained(output), uninterrupted() as signals:
        check_output(output, force)
        with private(output) as folder:
            with signals.admitted():
                yield folder
                if not (folder / MANIFEST).exists():
                    write_manifest(folder)
                synchronise(folder)
            _place(folder, output, force)


@contextmanager
def scratch(output: Path) -> Iterator[Path]:
    """A private folder beside the output, for what is made on the way to it; gone when the block ends, however it does."""
    output = _absolute(output)
    with _explained(output), uninterrupted() as signals, private(output) as folder, signals.admitted():
        yield folder


def copy_file(file: Path, folder: Path) -> None:
    """Copy a small file's contents into a folder and flush them to the disk. Raises YopoError for one that is not small."""
    if (size := file.stat().st_size) > MAX_COPIED_BYTES:
        raise YopoError(f"{file} has {size:,} bytes, more than any file beside weights.", "Is it what its name says? Fetch it again.")
    shutil.copyfile(file, folder / file.name)
    synchronise(folder / file.name)


def write_text(file: Path, text: str) -> None:
    """Write a file and flush it to the disk."""
    write_bytes(file, text.encode())


def write_bytes(file: Path, data: bytes) -> None:
    """Write a file and flush it to the disk."""
    file.write_bytes(data)
    synchronise(file)


def write_config(folder: Path, config: Mapping[str, Any], files: Mapping[str, str]) -> None:
    """Write config.json and the list of all files. `files` are the sha256 of the others, which a `yopo` section is bound to."""
    if "yopo" in config:
        config = {**config, "yopo": {**config["yopo"], "files": list_sha256(files)}}
    text = json_text(config)
    write_text(folder / CONFIG, text)
    write_text(folder / MANIFEST, manifest_text({**files, CONFIG: hashlib.sha256(text.encode()).hexdigest()}))


def json_text(data: Any) -> str:
    """JSON as every file of a checkpoint has it."""
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def synchronise(path: Path) -> None:
    """Flush a file, or a folder's entries where the system can, to the disk."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))


def _check_free(output: Path, force: bool) -> None:
    if not os.path.lexists(output):
        return
    if not force:
        raise YopoError(f"{output} exists already.", "Choose another name with -o, or replace it with --force.")
    if output.is_symlink() or not output.is_dir():
        raise YopoError(f"{output} is not a folder and is not replaced.", "Choose another name with -o.")
    if (foreign := unlisted(output)) is not None:
        raise YopoError(
            f"{output} is not replaced: {foreign} in it is not of ours (no {MANIFEST} lists it).",
            "Choose another name with -o, or remove the folder yourself.",
        )


def _put_right(output: Path) -> None:
    """A run that was killed between two renames left its target under another name; every other leftover is of no use."""
    for old in dead(output, OLD):
        if os.path.lexists(output):
            remove(old)
        else:
            rename_new(old, output)
    for new in dead(output, NEW):
        remove(new)


def _place(folder: Path, output: Path, force: bool) -> None:
    """Give the finished folder its name; what it replaces is removed by whoever removes the private folder."""
    _check_free(output, force)
    try:
        if not os.path.lexists(output):
            rename_new(folder, output)
        elif not exchange(folder, output):
            _replace(folder, output)
    except FileExistsError:
        raise YopoError(f"{output} appeared while it was written, and is not replaced.", "Another run writes there: use -o.") from None
    synchronise(output.parent)


def _replace(folder: Path, output: Path) -> None:
    """In two renames; a run that is killed between them leaves the old folder to the next one."""
    old, lock = private_path(output, OLD), Lock(output)
    try:
        output.rename(old)
        try:
            rename_new(folder, output)
        except BaseException:
            rename_new(old, output)
            raise
        remove(old)
    finally:
        lock.release()


@contextmanager
def _explained(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise YopoError(f"The disk is full: {output} could not be written.", NO_SPACE) from error
        if error.errno in UNWRITABLE:
            raise YopoError(f"{output} may not be written: {error.strerror}.", "Choose another place with -o.") from error
        raise
