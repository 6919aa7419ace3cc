"""Which of several ways of computing the same is used: the one that was fastest when first asked for, once in a process."""

from collections.abc import Callable, Mapping
from time import perf_counter

import torch

CHOICES: dict[str, dict[str, float]] = {}
"""For everything that was chosen, seconds of each way, the chosen one first, then the fastest."""

MARGIN = 0.05
"""The share by which another way must be faster than the first: no less can be told on a machine that does other things too."""


def fastest(what: str, ways: Callable[[], Mapping[str, Callable[[], object]]], device: torch.device) -> str:
    """The name of the fastest way, or of the first where none is faster by the margin. `ways` makes what is needed to measure: after
    one warm-up each the best of two calls."""
    if what not in CHOICES:
        seconds = {name: _best(way, device) for name, way in ways().items()}
        usual = next(iter(seconds))
        CHOICES[what] = dict(sorted(seconds.items(), key=lambda pair: pair[1] * (1 - MARGIN * (pair[0] == usual))))
    return next(iter(CHOICES[what]))


def _best(way: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(3):
        _wait(device)
        started = perf_counter()
        way()
        _wait(device)
        times.append(perf_counter() - started)
    return min(times[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def choices() -> str:
    """What was measured and chosen, in words; empty where nothing was."""
    return "; ".join(f"{what}: {next(iter(seconds))}" for what, seconds in sorted(CHOICES.items()))
