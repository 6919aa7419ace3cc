"""How many processors this process may use: torch takes all that it sees, which is slow where a container or `taskset` gives it fewer."""

import os
from math import ceil
from pathlib import Path


def limit_threads() -> None:
    """Let torch compute with as many threads as there are processors to use, where it would take more."""
    import torch

    if (usable := usable_processors()) < torch.get_num_threads():
        torch.set_num_threads(usable)


def threads() -> str:
    """Torch's threads, and the processors that this process may use, in words."""
    import torch

    count, usable = torch.get_num_threads(), usable_processors()
    return f"{count} thread{'s' * (count != 1)} on {usable} processor{'s' * (usable != 1)}"


def usable_processors(root: Path = Path("/")) -> int:
    """The smaller of the processors that this process may run on and its CPU quota, which is rounded up; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(root)
    return allowed if quota is None else max(1, min(allowed, ceil(quota)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Processors that the control groups of this process give it, the least of them; None where nothing limits it.

    Version 2 (`cpu.max`) in the process's group and those above it, version 1 (`cpu.cfs_quota_us`) in its cpu group.
    """
    quotas = []
    for line in _lines(root / "proc/self/cgroup"):
        controllers, _, group = line.partition(":")[2].partition(":")
        if not controllers:
            group_folder = Path(group.lstrip("/"))
            quotas += [_quota(*_words(root / "sys/fs/cgroup" / folder / "cpu.max")) for folder in (group_folder, *group_folder.parents)]
        elif "cpu" in controllers.split(","):
            folders = [root / "sys/fs/cgroup/cpu" / group.lstrip("/"), root / "sys/fs/cgroup/cpu"]
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            quotas += [_quota(*(word for name in names for word in _words(folder / name))) for folder in folders]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota(*words: str) -> float | None:
    """Processors, from microseconds of use in a period."""
    if len(words) != 2 or words[0] in ("max", "-1"):
        return None
    return int(words[0]) / int(words[1])


def _words(file: Path) -> list[str]:
    return " ".join(_lines(file)).split()


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
