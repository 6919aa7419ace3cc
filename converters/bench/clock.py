"""Timing that can be compared: everything in one process, in turns, after a warm-up, synchronised."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one side, and of the side it is compared with in the same round."""

    seconds: tuple[float, ...]
    reference: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def spread(self) -> float:
        """Distance between the quartiles as a share of the median; 0 for a single round."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / self.median

    @property
    def ratio(self) -> float:
        """Median over rounds of this side's time by the reference's in the same round."""
        return median(seconds / other for seconds, other in zip(self.seconds, self.reference, strict=True))


def synchroniser(device: torch.device) -> Callable[[], None]:
    """What waits until the device is done."""
    if device.type == "cuda":
        return torch.cuda.synchronize
    if device.type == "mps":
        return torch.mps.synchronize
    return lambda: None


def in_turns(
    sides: Mapping[str, Callable[[], object]], reference: str, rounds: int, device: torch.device, warmup: int = 1
) -> dict[str, Timing]:
    """Time every side once a round, forwards and backwards by turns, so that a drift of the machine hits all alike."""
    wait = synchroniser(device)
    for _ in range(warmup):
        for side in sides.values():
            side()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in _order(sides, number):
            wait()
            started = perf_counter()
            sides[name]()
            wait()
            seconds[name].append(perf_counter() - started)
    return {name: Timing(tuple(values), tuple(seconds[reference])) for name, values in seconds.items()}


def _order(sides: Mapping[str, object], number: int) -> Iterator[str]:
    return iter(sides) if number % 2 == 0 else reversed(list(sides))
