"""What this machine can do at best, measured: multiply-adds of a matrix product, and bytes read from memory."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import torch

from ..runtime.matmul import ways
from .clock import synchroniser

READ_BYTES = 1 << 29  # beyond any cache
CACHED = 1024
ENOUGH_SECONDS = 0.5


@dataclass(frozen=True)
class Ceiling:
    """FLOP/s of matrix products in one dtype, and bytes/s read from memory, both the best that was seen."""

    flops_per_second: float
    bytes_per_second: float

    def seconds(self, flops: float, size: float) -> float:
        """The least time that a product of `flops` on `size` bytes can take."""
        return max(flops / self.flops_per_second, size / self.bytes_per_second)


def measure_ceiling(device: torch.device, dtype: torch.dtype, rows: int, inner: int, outer: int) -> Ceiling:
    """The ceiling with the process's threads: the best rate of any of a model's products, and of a square one that caches hold.

    `rows` by `inner` and `outer` are those of its feed-forward; on a CPU products are tried in all ways in which the runtime may make them.
    """
    shapes = ((rows, inner, outer), (rows, outer, inner), (CACHED, CACHED, CACHED))
    rate = max(_rate(device, dtype, *shape) for shape in shapes)
    # Of ones, since zeros may be one page; in float32, since there may be no fast product of one row in another type.
    weight = torch.ones(READ_BYTES // 4 // inner, inner, device=device)
    one_row = torch.ones(1, inner, device=device)
    target = torch.empty_like(weight)
    reading = _product(one_row, weight)
    copying = _best(lambda: target.copy_(weight), device)
    return Ceiling(rate, max(weight.nbytes / reading, 2 * weight.nbytes / copying))


def _rate(device: torch.device, dtype: torch.dtype, rows: int, inner: int, outer: int) -> float:
    left, right = (torch.randn(shape, device=device).to(dtype) for shape in ((rows, inner), (outer, inner)))
    return 2 * rows * inner * outer / _product(left, right)


def _product(rows: torch.Tensor, weight: torch.Tensor) -> float:
    """The seconds of rows times a weight, by whichever way is the fastest."""
    tried = ways(rows.dtype).values() if rows.device.type == "cpu" else [torch.nn.functional.linear]
    return min(_best(partial(way, rows, weight), rows.device) for way in tried)


def _best(work: Callable[[], object], device: torch.device) -> float:
    """The shortest time of a call, in seconds, over at least three calls and half a second."""
    wait = synchroniser(device)
    work()
    times: list[float] = []
    while len(times) < 3 or sum(times) < ENOUGH_SECONDS:
        wait()
        started = perf_counter()
        work()
        wait()
        times.append(perf_counter() - started)
    return min(times)
