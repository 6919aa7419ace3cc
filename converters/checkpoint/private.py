"""Private files and folders beside a target: names that nobody guesses, a lock while their run lives, removed by the next run if not.

The lock is the system's own on the open folder: it ends with the process, however that ends, and holds between containers, where
process numbers mean nothing. Where there are no such locks, nothing is ever taken for dead.
"""

import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .interruption import uninterrupted

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NEW, OLD = "new", "old"
TOKEN_BYTES = 8


class Lock:
    """A lock on a folder or file, until `release` or the end of the process. `taken` is False where another run has it."""

    def __init__(self, path: Path) -> None:
        self.descriptor = -1 if fcntl is None else os.open(path, os.O_RDONLY)
        self.taken = self.descriptor >= 0 and _locked(self.descriptor)

    def is_of(self, path: Path) -> bool:
        """Whether it is still this folder, and not another one's or a removed one's."""
        try:
            return self.descriptor < 0 or os.path.samestat(os.fstat(self.descriptor), path.lstat())
        except FileNotFoundError:
            return False

    def release(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1


def private_path(target: Path, kind: str = NEW) -> Path:
    """A hidden name beside the target."""
    return target.with_name(f".{target.name}.{kind}-{secrets.token_hex(TOKEN_BYTES)}")


@contextmanager
def private(target: Path, make: Callable[[Path], None] = lambda path: path.mkdir()) -> Iterator[Path]:
    """A new, empty, locked folder beside the target, or the file that `make` makes; whatever has its name in the end is removed.

    What killed runs left there is removed first.
    """
    for left in dead(target, NEW):
        remove(left)
    path, lock = _made(target, make)
    try:
        yield path
    finally:
        remove(path)
        lock.release()


def _made(target: Path, make: Callable[[Path], None]) -> tuple[Path, Lock]:
    while True:
        path = private_path(target)
        make(path)
        try:
            lock = Lock(path)
        except FileNotFoundError:
            continue  # before the lock was there another run took it for dead
        if lock.is_of(path):
            return path, lock
        lock.release()


def dead(target: Path, kind: str) -> Iterator[Path]:
    """What killed runs left beside the target; each is locked while it is dealt with."""
    pattern = re.compile(re.escape(f".{target.name}.{kind}-") + rf"[0-9a-f]{{{2 * TOKEN_BYTES}}}")
    for path in sorted(target.parent.iterdir()):
        if pattern.fullmatch(path.name) and not path.is_symlink():
            yield from _if_dead(path)


def _if_dead(path: Path) -> Iterator[Path]:
    try:
        lock = Lock(path)
    except OSError:  # gone, or not ours to open
        return
    try:
        if lock.taken and lock.is_of(path):
            yield path
    finally:
        lock.release()


def remove(path: Path) -> None:
    """Remove a file or a folder, as far as that can be done."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A private file, to be written in the block, that becomes the target at its end."""
    with uninterrupted() as signals, private(target.absolute(), _touch) as path:
        with signals.admitted():
            yield path
        path.replace(target)


def _touch(path: Path) -> None:
    path.touch(exist_ok=False)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
