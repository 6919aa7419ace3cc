"""Which of several ways of computing the same is used: the one that was fastest when first asked for, once in a process."""

from collections.abc import Callable, Mapping
from time import perf_counter

import torch

OTHER_BYTES = 1 << 26
"""Read before each call that is timed on a CPU: what a cache holds goes, as when a model's other weights have come between."""

CHOICES: dict[str, dict[str, float]] = {}
"""For everything that was chosen, seconds of each way, the chosen one first, then the fastest."""

MARGIN = 0.03
"""The share by which another way must be faster than the first: less cannot be told on a machine that does other things too."""

ROUNDS = 4


def fastest(what: str, ways: Callable[[], Mapping[str, Callable[[], object]]], device: torch.device) -> str:
    """The name of the fastest way, or of the first where none is faster by the margin. `ways` makes what is needed to measure."""
    if what not in CHOICES:
        seconds = _measured(ways(), device)
        usual = next(iter(seconds))
        CHOICES[what] = dict(sorted(seconds.items(), key=lambda pair: pair[1] * (1 - MARGIN * (pair[0] == usual))))
    return next(iter(CHOICES[what]))


def _measured(ways: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    """Seconds of each way, the best of some rounds in which all take turns, after one to warm up."""
    others = torch.ones(OTHER_BYTES if device.type == "cpu" else 0, dtype=torch.uint8).view(torch.float32)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 + ROUNDS):
        for name, way in ways.items():
            others.sum()
            _wait(device)
            started = perf_counter()
            way()
            _wait(device)
            seconds[name].append(perf_counter() - started)
    return {name: min(times[1:]) for name, times in seconds.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def choices() -> str:
    """What was measured and chosen, in words; empty where nothing was."""
    return "; ".join(f"{what}: {next(iter(seconds))}" for what, seconds in sorted(CHOICES.items()))
