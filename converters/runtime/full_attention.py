"""Attention of visual tokens without a window: each sees all that is earlier."""

import torch
from torch import Tensor

from .attention import attend

QUERY_BLOCK = 1024
"""Visual queries that are computed together without a window."""


def full_attention(query: Tensor, key: Tensor, value: Tensor, slots: Tensor, key_slots: Tensor, text_rows: int, scale: float) -> Tensor:
    """Visual attention without a window: every earlier key, other images included. Slots `[batch, rows]`; padding sees all.

    Keys stand as in the cache: earlier calls, this call's visual rows in the queries' order, its `text_rows`. A block of queries is
    not shown the visual rows after it.
    """
    visual, count = query.shape[2], key.shape[2]
    queries = slots.where(slots >= 0, torch.iinfo(slots.dtype).max)[:, None, :, None]
    seen = []
    for first in range(0, visual, QUERY_BLOCK):
        last = min(first + QUERY_BLOCK, visual)
        before, text = slice(0, count - text_rows - visual + last), slice(count - text_rows, count)
        shown = torch.cat([key_slots[:, before], key_slots[:, text]], 1)[:, None, None]
        keys, values = (torch.cat([tensor[:, :, before], tensor[:, :, text]], 2) for tensor in (key, value))
        seen.append(attend(query[:, :, first:last], keys, values, (shown <= queries[:, :, first:last]) & (shown >= 0), scale))
    return torch.cat(seen, 2)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, slots: Tensor, key_slots: Tensor, scale: float) -> Tensor:
    """The same for one call without padding: the whole sequence in its order, under the causal flag of a kernel that skips half.

    Rows of text are queries of zeros, which nobody reads.
    """
    sample = torch.arange(key.shape[0], device=key.device)[:, None]
    order = key_slots.argsort(1)
    queries = query.new_zeros(len(key), key.shape[2], query.shape[1], query.shape[3])
    queries[sample, slots] = query.transpose(1, 2)
    keys, values = (tensor[sample, :, order].transpose(1, 2) for tensor in (key, value))
    return attend(queries.transpose(1, 2), keys, values, None, scale, causal=True)[sample, :, slots].transpose(1, 2)
