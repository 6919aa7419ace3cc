"""Products of rows with a weight, by the library that was fastest for about as many rows and weights of that form.

A BLAS library copies a weight into a layout of its own in every call. At hundreds of rows that is a few per cent; at the few dozen
text rows that go through what visual tokens leave out, a third of the time is lost to it. oneDNN reads a weight as it lies when the
weight comes first and the rows are the small matrix that it copies. Which library is faster at hundreds of rows is up to the processor.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .autotune import fastest
from .chunking import in_place

LARGE_BYTES = 1 << 20
FEW_ROWS = 256
"""Beyond, rows are too many to come second: a transposed result would have to be turned."""
PLAIN = "rows first"
BLOCK = 512  # rows of a weight
MEASURED_ROWS = 1024  # at most: the first call is not to be many times as long as the others


def product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`rows` `[rows, inner]` times `weight` `[outer, inner]` transposed, `[rows, outer]`, not always contiguous."""
    if not _has_ways(rows, weight):
        return functional.linear(rows, weight, bias)
    result: Tensor = WAYS[_way(rows, weight)](rows, weight)
    return result if bias is None else result + bias


def added(total: Tensor, rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`total` plus the product, in place: nobody else may need it as it was."""
    if _has_ways(rows, weight) and _way(rows, weight) != PLAIN:
        return total.add_(product(rows, weight, bias).contiguous())
    torch.addmm(total, rows, weight.t(), out=total)
    return total if bias is None else total.add_(bias)


class Head(nn.Linear):
    """The matrix that makes logits, which is as large as a layer where a single row goes through it."""

    def forward(self, rows: Tensor) -> Tensor:
        if type(self.weight) not in (nn.Parameter, Tensor):  # quantised
            return super().forward(rows)
        return product(rows.flatten(0, -2), self.weight, self.bias).contiguous().view(*rows.shape[:-1], len(self.weight))


def _has_ways(rows: Tensor, weight: Tensor) -> bool:
    large = rows.dim() == 2 and rows.shape[0] > 0 and weight.nbytes >= LARGE_BYTES
    return large and rows.device.type == "cpu" and rows.dtype == weight.dtype and in_place()


def _way(rows: Tensor, weight: Tensor) -> str:
    """The fastest way for about as many rows and weights of this form, measured once for a dtype and a number of threads, on the first
    that come."""
    count = rows.shape[0]
    size = "one row" if count == 1 else f"up to {1 << (count - 1).bit_length()} rows" if count <= FEW_ROWS else "many rows"
    form = "wide" if weight.shape[0] >= weight.shape[1] else "deep"
    gaps = "" if weight.is_contiguous() else " with gaps"
    what = f"products of {size}, {form} weights{gaps} ({str(rows.dtype).removeprefix('torch.')}, {torch.get_num_threads()} threads)"
    return fastest(what, partial(_trials, rows, weight), rows.device)


def _trials(rows: Tensor, weight: Tensor) -> Mapping[str, Callable[[], object]]:
    few = rows.shape[0] <= FEW_ROWS
    return {name: partial(way, rows[:MEASURED_ROWS], weight) for name, way in ways(rows.dtype).items() if few or name.startswith(PLAIN)}


def ways(dtype: torch.dtype) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """The ways that there are for a type in this build and on this processor."""
    return {name: way for name, way in WAYS.items() if "oneDNN" not in name or _has_onednn(dtype)}


def _has_onednn(dtype: torch.dtype) -> bool:
    """Whether PyTorch was built with oneDNN, and this processor computes the type in it."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


def _onednn(first: Tensor, second: Tensor) -> Tensor:
    operator: Any = torch.ops.mkldnn._linear_pointwise  # (a hundred times slower on rows with gaps)
    first, second = (one if one.is_contiguous() or one.t().is_contiguous() else one.contiguous() for one in (first, second))
    result: Tensor = operator(first, second, None, "none", [], "")
    return result


def _by_blocks(rows: Tensor, weight: Tensor) -> Tensor:
    """The weight first, some of its rows at a time: a library that copies the weight copies what stays in the cache."""
    result = rows.new_empty(len(weight), len(rows))
    for part, place in zip(weight.split(BLOCK), result.split(BLOCK), strict=True):
        torch.mm(part, rows.t(), out=place)
    return result.t()


WAYS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    PLAIN: functional.linear,
    "weight first": lambda rows, weight: torch.mm(weight, rows.t()).t(),
    "weight first, by blocks": _by_blocks,
    "rows first, oneDNN": _onednn,
    "weight first, oneDNN": lambda rows, weight: _onednn(weight, rows).t(),
}
