"""A folder that is written elsewhere and appears whole: a temporary one beside it, renamed at the end."""

import errno
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from ..errors import YopoError

SIGNALS = (signal.SIGTERM, signal.SIGHUP) if hasattr(signal, "SIGHUP") else (signal.SIGTERM,)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT) if hasattr(errno, "EDQUOT") else (errno.ENOSPC,)
NO_SPACE = "Free some space, or write to another disk with -o."


def check_output(output: Path, force: bool = False) -> None:
    """Raise YopoError if the output may not be written there. `force` replaces a checkpoint or an empty folder, nothing else."""
    parent = output.absolute().parent
    if not parent.is_dir():
        raise YopoError(f"The folder {parent} does not exist.", f"Make it first: mkdir -p {parent}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise YopoError(f"The folder {parent} may not be written.", "Choose another place with -o.")
    if not os.path.lexists(output):
        return
    if not force:
        raise YopoError(f"{output} exists already.", "Choose another name with -o, or replace it with --force.")
    if not output.is_dir() or output.is_symlink() or (any(output.iterdir()) and not (output / "config.json").is_file()):
        raise YopoError(f"{output} is not a checkpoint and is not replaced.", "Choose another name with -o.")


def check_space(output: Path, needed: int) -> None:
    """Raise YopoError if the disk has less than `needed` bytes free; a folder to be replaced goes only after the new one is whole."""
    free = shutil.disk_usage(output.absolute().parent).free
    if free < needed:
        raise YopoError(f"{output.absolute().parent} has {free / 1e9:.2f} GB free, {needed / 1e9:.2f} GB are needed.", NO_SPACE)


@contextmanager
def appearing(output: Path, force: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `output` when the block ends, and is removed when it is left in any other way.

    Raises YopoError where the disk is full or cannot be written. SIGTERM and SIGHUP arrive as KeyboardInterrupt.
    """
    check_output(output, force)
    output = output.absolute()
    temporary = output.with_name(f".{output.name}.tmp-{os.getpid()}")
    with _terminable(), _explained(output):
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            yield temporary
            synchronise(temporary)
            _replace(output, temporary)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(file: Path, text: str) -> None:
    """Write a file and flush it to the disk."""
    write_bytes(file, text.encode())


def write_bytes(file: Path, data: bytes) -> None:
    """Write a file and flush it to the disk."""
    file.write_bytes(data)
    synchronise(file)


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


def _replace(output: Path, temporary: Path) -> None:
    old = output.with_name(f".{output.name}.old-{os.getpid()}")
    try:
        if output.exists():
            output.rename(old)
        temporary.rename(output)
    except BaseException:
        if old.exists() and not output.exists():
            old.rename(output)
        raise
    synchronise(output.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _explained(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise YopoError(f"The disk is full: {output} could not be written.", NO_SPACE) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise YopoError(f"{output} may not be written: {error.strerror}.", "Choose another place with -o.") from error
        raise


@contextmanager
def _terminable() -> Iterator[None]:
    """Let signals that end the process unwind it, as Ctrl-C does. Only the main thread may say so; others are left alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    # Under nohup SIGHUP is ignored and stays so; a handler of the caller's is the caller's business.
    taken = [number for number in SIGNALS if signal.getsignal(number) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
