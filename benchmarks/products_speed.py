"""Products of rows with a weight on this CPU by every way that the runtime chooses from: GFLOP/s, on weights that no cache holds.

python benchmarks/products_speed.py --threads 2
"""

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from converters.runtime.matmul import ways

SHAPES = ((11008, 4096), (4096, 11008), (4096, 4096))
"""Rows and columns of a weight."""

COLD_BYTES = 1_000_000_000  # weights in turns
ROUNDS = 3


def rate(way: Callable[[Tensor, Tensor], Tensor], rows: Tensor, weights: list[Tensor]) -> float:
    """GFLOP/s of the median call."""
    times = []
    for weight in weights * ROUNDS:
        began = perf_counter()
        way(rows, weight)
        times.append(perf_counter() - began)
    return 2e-9 * rows.shape[0] * weights[0].numel() / median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rows", type=int, nargs="+", default=(640, 200, 64, 35, 1))
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            for shape in SHAPES:
                first = torch.randn(*shape, dtype=dtype)
                weights = [first.clone() for _ in range(COLD_BYTES // first.nbytes)]
                for count in asked.rows:
                    rows = torch.randn(count, shape[1], dtype=dtype)
                    rates = ", ".join(f"{name} {rate(way, rows, weights):.0f}" for name, way in ways(dtype).items())
                    print(f"{str(dtype).removeprefix('torch.')} {list(shape)}, {count} rows: {rates}", flush=True)


if __name__ == "__main__":
    main()
