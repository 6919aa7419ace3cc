"""Renaming that replaces nothing, and the exchange of two folders in one step where the system has it."""

import ctypes
import errno
import os
import sys
from pathlib import Path

# From linux/fs.h and fcntl.h.
HERE, NO_REPLACE, EXCHANGE = -100, 1, 2
# The kernel or the file system lacks it.
LACKING = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)
OCCUPIED = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR)


def rename_new(source: Path, target: Path) -> None:
    """Rename a folder. Raises FileExistsError where the target is there."""
    if _renameat2(source, target, NO_REPLACE):
        return
    try:
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        source.rename(target)  # of what may have appeared since, it replaces an empty folder alone
    except OSError as error:
        if error.errno in OCCUPIED:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        raise


def exchange(first: Path, second: Path) -> bool:
    """Let two folders change places, at no moment of which either name is without one; False where the system cannot."""
    return _renameat2(first, second, EXCHANGE)


def _renameat2(source: Path, target: Path, flag: int) -> bool:
    if not sys.platform.startswith("linux") or (call := getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)) is None:
        return False
    if call(HERE, os.fsencode(source), HERE, os.fsencode(target), ctypes.c_uint(flag)) == 0:
        return True
    if (number := ctypes.get_errno()) in LACKING:
        return False
    raise OSError(number, os.strerror(number), str(target))
