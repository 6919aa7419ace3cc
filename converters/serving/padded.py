"""An attention layer of vLLM with room in every head for channels that hide visual tokens from text.

A hidden key has a large negative number in a channel in which queries of text have a one: its weight in the softmax is zero. The
channels come after the rotary embedding, so that the rest of a head is the model's own.
"""

from typing import Any

import torch
from torch import Tensor, nn

from .work import LayerWork

HIDDEN = -1e4
"""In a channel of a hidden key: below any score there is, within float16."""


class PaddedAttention(nn.Module):
    """In the place of an attention layer: heads of `head_dim` in a KV cache of heads of `padded`.

    Called as that layer is, for rows of text. Visual rows come by `write` and `attend`.
    """

    inner: Any
    text_query: Tensor
    visual_key: Tensor
    computing: Tensor

    def __init__(self, inner: Any, head_dim: int, work: LayerWork, hiding: bool) -> None:
        super().__init__()
        self.inner, self.head_dim, self.hiding = inner, head_dim, hiding
        self.padded = inner.head_size
        self.heads, self.kv_heads = inner.num_heads, inner.num_kv_heads
        query, key = channels(work, self.padded - head_dim) if hiding else (torch.zeros(self.heads, 0), torch.zeros(self.kv_heads, 0))
        dtype, device = torch.get_default_dtype(), torch.get_default_device()
        self.register_buffer("text_query", query.to(device, dtype), persistent=False)
        self.register_buffer("visual_key", key.to(device, dtype), persistent=False)
        self.register_buffer("computing", torch.tensor(work.computing, dtype=torch.long, device=device), persistent=False)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Text rows, `[tokens, heads * head_dim]`."""
        if self.padded == self.head_dim:
            plain: Tensor = self.inner(query, key, value)
            return plain
        count = len(query)
        parts = self.queries(query), self.wide(key), self.wide(value)
        seen: Tensor = self.inner(*(part.flatten(1) for part in parts)).view(count, -1, self.padded)
        return seen[..., : self.head_dim].flatten(1)

    def queries(self, query: Tensor) -> Tensor:
        """Queries of text `[tokens, heads * head_dim]` with their channels, `[tokens, heads, padded]`."""
        if not self.hiding:
            return self.wide(query)
        return torch.cat([query.unflatten(1, (-1, self.head_dim)), self.text_query.expand(len(query), -1, -1)], -1)

    def wide(self, rows: Tensor) -> Tensor:
        """Rows `[tokens, heads * head_dim]` with zeros in their channels, `[tokens, heads, padded]`."""
        return nn.functional.pad(rows.unflatten(1, (-1, self.head_dim)), (0, self.padded - self.head_dim))

    def write(self, key: Tensor, value: Tensor, slots: Tensor) -> None:
        """K and V `[tokens, KV heads, padded]` into the cache."""
        self.inner.impl.do_kv_cache_update(self.inner, key, value, self.inner.kv_cache, slots)

    def attend(self, query: Tensor, metadata: Any) -> Tensor:
        """What queries `[tokens, heads, padded]` see in the cache, `[tokens, heads, head_dim]`."""
        seen = torch.empty_like(query)
        nothing = query.new_empty(0, self.kv_heads, self.padded)
        self.inner.impl.forward(self.inner, query, nothing, nothing, self.inner.kv_cache, metadata, output=seen)
        return seen[..., : self.head_dim]


def channels(work: LayerWork, width: int) -> tuple[Tensor, Tensor]:
    """What queries of text have in their channels `[heads, width]`, and keys of visual tokens `[KV heads, width]`.

    The first channel hides a key from all heads that share it, the second from those that do not read where others do.
    """
    query, key = torch.zeros(work.query_heads, width), torch.zeros(work.kv_heads, width)
    query[:, 0] = 1
    query[:, 1] = 1 - torch.tensor(work.reads, dtype=torch.float32)
    for head, (some, every) in enumerate(work.read_kv_heads()):
        key[head, 0] = 0 if some else HIDDEN
        key[head, 1] = HIDDEN if some and not every else 0
    return query, key
