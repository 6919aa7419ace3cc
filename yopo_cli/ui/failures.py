"""What the user is told of an exception: a sentence and a hint. What is not here is a mistake of ours, and shown as it is."""

import errno

from converters.errors import YopoError
from converters.runtime.plan import PlanError

Explanation = tuple[str, str]

LESS_MEMORY = "Try --dtype bfloat16, fewer --samples, a smaller batch, or a machine with more."
# Of torch's allocators, which raise RuntimeError alone.
ALLOCATORS = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "Cannot allocate memory")
HINTS = {
    errno.ENOSPC: "Free some space, or write to another disk.",
    errno.EDQUOT: "Free some space, or write to another disk.",
    errno.EFBIG: "Write to a file system, or under a limit, that takes files of this size.",
    errno.ENAMETOOLONG: "Give a shorter name.",
    errno.EMFILE: "Raise the limit on open files: ulimit -n.",
    errno.EACCES: "Check who may read and write there.",
    errno.EPERM: "Check who may read and write there.",
    errno.EROFS: "Choose a place that can be written.",
    errno.ENOENT: "Check the path; was the folder you are in removed?",
}


def explanation(error: BaseException) -> Explanation | None:
    """The sentence and the hint for an exception, None for a mistake of ours."""
    if isinstance(error, YopoError):
        return error.message, error.hint
    if isinstance(error, PlanError):
        return f"The plan cannot be used: {error}.", "See `yopo inspect` for what a plan looks like."
    if isinstance(error, MemoryError):
        return "There is not enough memory.", LESS_MEMORY
    if isinstance(error, RuntimeError):
        return _of_torch(error)
    if isinstance(error, OSError):
        return _of_system(error)
    if isinstance(error, UnicodeError):
        return f"A text cannot be read or written in its encoding: {error}.", "Use UTF-8, for files, names and the terminal."
    return None


def _of_torch(error: RuntimeError) -> Explanation | None:
    if type(error).__name__ == "OutOfMemoryError":  # not imported for its name: that takes seconds
        return "The device ran out of memory.", "Try --dtype bfloat16, a smaller batch, or --device cpu."
    return ("There is not enough memory.", LESS_MEMORY) if any(text in str(error) for text in ALLOCATORS) else None


def _of_system(error: OSError) -> Explanation | None:
    if error.errno is None:
        return None
    where = "The output" if error.filename is None else str(error.filename)
    return f"{where}: {error.strerror}.", HINTS.get(error.errno, "Check the path, the disk and the network.")
