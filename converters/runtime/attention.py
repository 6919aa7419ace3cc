"""Scaled dot-product attention on rectangles, by PyTorch's kernel or by two products, and the rotary embedding that comes before it."""

from collections.abc import Callable, Sequence
from functools import partial
from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .autotune import fastest
from .chunking import by_pieces, in_place

LAID_OUT_BYTES = 1 << 21
"""Keys that are laid out at a time, on a CPU: memory that is used again is not asked for anew."""

FEW_QUERIES = 16
"""Up to these, there are fewer queries than products like as rows. A power of two: what is measured is kept by powers of two."""

KEY_BYTES, SCORE_BYTES = 1 << 18, 1 << 26
"""From how many bytes of keys on, and up to how many of scores, attention may go by products. Small models answer alike every time."""


def take(tensor: Tensor, places: Sequence[int], dim: int) -> Tensor:
    """`tensor` at `places` of `dim`: a view where they are consecutive, the tensor itself where they are all."""
    if len(places) == tensor.shape[dim] and list(places) == list(range(len(places))):
        return tensor
    if not places or list(places) == list(range(places[0], places[0] + len(places))):
        return tensor.narrow(dim, places[0] if places else 0, len(places))
    return tensor.index_select(dim, torch.tensor(places, device=tensor.device))


def rotate(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary embedding of `[rows, heads, head_dim]` by `[rows, 1, size]`.

    Where `size` is less than head_dim, the first elements turn.
    """
    size = cosine.shape[-1]
    turning, rest = heads[..., :size], heads[..., size:]
    first, second = turning.chunk(2, -1)
    turned = (turning * cosine).add_(torch.cat([-second, first], -1).mul_(sine))
    return turned if size == heads.shape[-1] else torch.cat([turned, rest], -1)


def turned(heads: Tensor, norm: Any, cosine: Tensor, sine: Tensor) -> Tensor:
    """Heads `[rows, heads, head_dim]` after a norm of each (None: none), turned by their positions: in their place where that may be."""

    def work(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        return rotate(heads if norm is None else norm(heads), cosine, sine)

    return by_pieces(work, heads, cosine, sine, place=heads)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, causal: bool = False) -> Tensor:
    """Scaled dot-product attention `[batch, heads, queries, head_dim]`; fewer KV heads than query heads are shared in groups.

    `mask` is True where a key is seen. By PyTorch's kernel; in bfloat16 on a CPU by two products where this was measured to be faster.
    """
    ways = {} if causal else _products(query, key)
    if not ways:
        return by_kernel(query, key, value, mask, scale, causal)
    ways = {name: partial(way, query, key, value, mask, scale) for name, way in {"kernel": by_kernel, **ways}.items()}
    queries, keys = (1 << (tensor.shape[2] - 1).bit_length() for tensor in (query, key))
    what = f"attention of up to {queries} queries and {keys} keys ({torch.get_num_threads()} threads)"
    return ways[fastest(what, lambda: ways, query.device)]()


def _products(query: Tensor, key: Tensor) -> dict[str, Callable[..., Tensor]]:
    """Other ways than the kernel, which in float32 computes as fast as products do."""
    scores = query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2] * query.itemsize
    kept = key.nbytes >= KEY_BYTES and 0 < scores <= SCORE_BYTES
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or not kept or not in_place():
        return {}
    if query.shape[2] <= FEW_QUERIES:
        return {"products, keys first": partial(by_products, keys_first=True)}
    return {"products": by_products}


def by_kernel(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, causal: bool = False) -> Tensor:
    """Attention by PyTorch's own kernel."""
    grouped = query.shape[1] != key.shape[1]
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped)


def by_products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, keys_first: bool = False) -> Tensor:
    """Attention as two products, scores rounded to the type of the tensors. A query that sees nothing gets a mean, for nobody.

    Keys first, they are read as they lie, which pays for few queries. A few heads at a time: a copy of all keys would be new memory.
    """
    (batch, heads, count, size), kv_heads, seen = query.shape, key.shape[1], key.shape[2]
    group = heads // kv_heads
    few = max(1, LAID_OUT_BYTES // (batch * seen * max(size, group * count) * key.itemsize))
    masks = mask.split(few * group, 1) if mask is not None and mask.shape[1] > 1 else [mask] * ceil(kv_heads / few)
    parts = zip(query.split(few * group, 1), key.split(few, 1), value.split(few, 1), masks, strict=True)
    return torch.cat([_two_products(*part, scale, keys_first) for part in parts], 1)


def _two_products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, keys_first: bool) -> Tensor:
    """`by_products` of heads that go together."""
    (batch, heads, count, size), kv_heads, seen = query.shape, key.shape[1], key.shape[2]
    queries = query.reshape(batch * kv_heads, heads // kv_heads * count, size)
    keys, values = (tensor.reshape(batch * kv_heads, seen, size) for tensor in (key, value))
    first, second = (keys, queries) if keys_first else (queries, keys.contiguous())
    scores = torch.baddbmm(query.new_empty(len(first), first.shape[1], second.shape[1]), first, second.mT, beta=0, alpha=scale)
    scores = scores.mT if keys_first else scores
    if mask is not None:
        shown = mask.unflatten(1, (kv_heads, -1) if mask.shape[1] > 1 else (1, 1))
        scores.view(batch, kv_heads, -1, count, seen).masked_fill_(~shown, torch.finfo(query.dtype).min)
    return torch.bmm(scores.softmax(-1), values).view(batch, heads, count, size)
