"""Attention on this CPU by PyTorch's kernel and by two products: milliseconds of a call, and the error of the result in bfloat16.

python benchmarks/attention_speed.py --threads 2
"""

import argparse
from time import perf_counter

import torch
from torch import Tensor

from converters.runtime.attention import by_kernel, by_products

SHAPES = ((32, 32, 192, 320), (32, 32, 64, 640), (32, 32, 1, 656), (28, 4, 1, 656), (32, 32, 1, 2400))
"""Query heads, KV heads, queries and keys."""

SIZE = 128
COLD_BYTES = 400_000_000  # K and V in turns, so that no cache holds them


def figures(heads: int, kv_heads: int, queries: int, keys: int, dtype: torch.dtype) -> str:
    """One line: the shape, and milliseconds of both ways with their errors."""
    query = torch.randn(1, heads, queries, SIZE, dtype=dtype)
    pair = 2 * kv_heads * keys * SIZE * query.itemsize
    make = _room if queries == 1 else _rows_first
    held = [[make(keys, kv_heads, dtype) for _ in range(2)] for _ in range(max(2, COLD_BYTES // pair))]
    mask = torch.rand(1, 1, queries, keys) < 0.7 if queries > 1 else None
    exact = by_kernel(query.double(), *(one.double() for one in held[0]), mask, SIZE**-0.5)
    words = []
    for name in ("kernel", "products"):
        times = []
        for key, value in held:
            began = perf_counter()
            if name == "kernel":
                by_kernel(query, key, value, mask, SIZE**-0.5)
            else:
                by_products(query, key, value, mask, SIZE**-0.5, keys_first=queries == 1)
            times.append(perf_counter() - began)
        way = by_kernel if name == "kernel" else by_products
        error = (way(query, *held[0], mask, SIZE**-0.5).double() - exact).norm() / exact.norm()
        words.append(f"{name} {1000 * sorted(times)[len(times) // 2]:.2f} ms (error {error:.1e})")
    return f"{str(dtype).removeprefix('torch.')}, {heads} heads, {kv_heads} KV heads, {queries} queries, {keys} keys: " + ", ".join(words)


def _rows_first(keys: int, kv_heads: int, dtype: torch.dtype) -> Tensor:
    """`[1, KV heads, keys, head_dim]` as a product gives them."""
    return torch.randn(1, keys, kv_heads, SIZE, dtype=dtype).transpose(1, 2)


def _room(keys: int, kv_heads: int, dtype: torch.dtype) -> Tensor:
    """The same as a cache holds them once it has grown."""
    return torch.randn(1, kv_heads, keys + 32, SIZE, dtype=dtype)[:, :, :keys]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)
    torch.manual_seed(0)
    with torch.inference_mode():
        for dtype in (torch.bfloat16, torch.float32):
            for shape in SHAPES:
                print(figures(*shape, dtype), flush=True)


if __name__ == "__main__":
    main()
