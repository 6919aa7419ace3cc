"""Products of rows with a weight, in blocks of a large weight where this CPU is faster so.

A BLAS library copies a weight into a layout of its own in every call. At hundreds of rows that is a few per cent; at the few dozen
text rows that go through what visual tokens leave out, a third of the time is lost to it, unless the copy stays in a cache.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from .choice import fastest

BLOCK_BYTES = 1 << 23
BLOCKED_ROWS = range(16, 1025)
"""Beyond, the rows are what a library copies, once for every block."""
PROBES = {"few rows": (64, 4096), "many rows": (512, 2048)}
"""Rows, and rows of a weight of 4096 columns, that the two ways are compared on: a second in all, in float32."""


def product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`rows` `[rows, inner]` times `weight` `[outer, inner]` transposed, `[rows, outer]`, not always contiguous."""
    if _may_be_blocked(rows, weight) and blocks_are_faster(rows):
        return blocked(rows, weight, bias)
    return functional.linear(rows, weight, bias)


def _may_be_blocked(rows: Tensor, weight: Tensor) -> bool:
    large = rows.dim() == 2 and rows.shape[0] in BLOCKED_ROWS and weight.nbytes > BLOCK_BYTES
    return large and rows.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def blocked(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same product, a block of the weight's rows at a time, with the result's columns contiguous."""
    out = rows.new_empty(weight.shape[0], rows.shape[0])
    height = max(1, BLOCK_BYTES // (weight.itemsize * weight.shape[1]))
    for block, part in zip(weight.split(height), out.split(height), strict=True):
        torch.mm(block, rows.t(), out=part)
    return out.t() if bias is None else out.t() + bias


def blocks_are_faster(rows: Tensor) -> bool:
    """Whether blocks save time for as many rows, measured once for a dtype and a number of threads."""
    size = "few rows" if rows.shape[0] <= 256 else "many rows"

    def ways() -> dict[str, Callable[[], object]]:
        count, outer = PROBES[size]
        left, weight = rows.new_ones(count, 4096), rows.new_ones(outer, 4096)
        return {"blocks of the weight": lambda: blocked(left, weight), "whole weights": lambda: functional.linear(left, weight)}

    what = f"products of {size} ({str(rows.dtype).removeprefix('torch.')}, {torch.get_num_threads()} threads)"
    return fastest(what, ways, rows.device) == "blocks of the weight"
