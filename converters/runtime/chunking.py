"""Work on many rows in chunks: intermediate results stay in the processor's cache, and no large tensor is allocated for them."""

from collections.abc import Callable

import torch
from torch import Tensor

PIECE_BYTES = 1 << 19


def in_place() -> bool:
    """Whether tensors may be written to: not where gradients flow, where types change by themselves, nor under a compiler, which fuses."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return not torch.is_autocast_enabled("cpu") and not torch.is_autocast_enabled("cuda")


def by_pieces(work: Callable[..., Tensor], *rows: Tensor, place: Tensor | None = None) -> Tensor:
    """`work(*rows)`, of the shape of the first of `rows`, which all have as many, or of `place`: there, on a CPU where that may be."""
    if not in_place() or rows[0].device.type != "cpu" or (place is None and rows[0].nbytes <= PIECE_BYTES):
        return work(*rows)
    out = torch.empty_like(rows[0]) if place is None else place
    count = max(1, PIECE_BYTES * len(out) // max(1, out.nbytes))
    for part, *pieces in zip(out.split(count), *(one.split(count) for one in rows), strict=True):
        part.copy_(work(*pieces))
    return out
