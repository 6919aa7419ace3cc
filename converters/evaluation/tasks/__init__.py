"""The published benchmarks: what each asks and how it counts, one file each. `TASKS` has their names; `task` gives one."""

from importlib import import_module

from ...errors import YopoError
from ..task import Task

TASKS = {
    "gqa": "gqa",
    "vqav2": "vqav2",
    "pope": "pope",
    "mmbench": "mmbench",
    "mmbench-cn": "mmbench",
    "scienceqa": "scienceqa",
    "textvqa": "textvqa",
    "textvqa-ocr": "textvqa",
    "mme": "mme",
    "mmmu": "mmmu",
    "chartqa": "chartqa",
    "docvqa": "docvqa",
    "ocrbench": "ocrbench",
    "ai2d": "ai2d",
    "realworldqa": "realworldqa",
    "mmstar": "mmstar",
    "seed": "seed",
}
"""Names, and the files that define them."""


def task(name: str) -> Task:
    """The task of this name. Raises YopoError."""
    if name not in TASKS:
        raise YopoError(f"There is no task {name!r}.", f"Tasks: {', '.join(TASKS)}; or a file of questions.")
    defined: dict[str, Task] = import_module(f".{TASKS[name]}", __name__).TASKS
    return defined[name]
