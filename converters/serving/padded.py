"""vLLM's attention with room in every head for channels that hide visual tokens from text, and its metadata for text rows alone.

A hidden key has a large negative number in a channel in which queries of text have a one: its weight in the softmax is zero. The
channels come after the rotary embedding, so that the rest of a head is the model's own.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backend import CommonAttentionMetadata, subclass_attention_backend

from .checks import CHANNELS
from .work import LayerWork

HIDDEN = -1e4
"""In a channel of a hidden key: below any score there is, within float16."""


class PaddedAttention(nn.Module):
    """In the place of an attention layer: heads of `head_dim` in a KV cache of heads of `padded`.

    Called as that layer is, for rows of text. Visual rows come by `write` and `attend`.
    """

    text_query: Tensor
    visual_key: Tensor

    def __init__(self, inner: Attention, head_dim: int, work: LayerWork, hiding: bool) -> None:
        super().__init__()
        self.inner, self.head_dim, self.hiding = inner, head_dim, hiding
        self.padded = inner.head_size
        self.heads, self.kv_heads = inner.num_heads, inner.num_kv_heads
        query, key = channels(work, self.padded - head_dim) if hiding else (torch.zeros(self.heads, 0), torch.zeros(self.kv_heads, 0))
        like = {"dtype": torch.get_default_dtype(), "device": torch.get_default_device()}
        self.register_buffer("text_query", query.to(**like), persistent=False)
        self.register_buffer("visual_key", key.to(**like), persistent=False)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Text rows, `[tokens, heads * head_dim]`."""
        if self.padded == self.head_dim:
            plain: Tensor = self.inner(query, key, value)
            return plain
        count = len(query)
        parts = self.queries(query.view(count, -1, self.head_dim)), self.wide(key), self.wide(value)
        seen = self.inner(*(part.flatten(1) for part in parts)).view(count, -1, self.padded)
        return seen[..., : self.head_dim].flatten(1)

    def queries(self, query: Tensor) -> Tensor:
        """Queries of text `[tokens, heads, head_dim]` with their channels."""
        if not self.hiding:
            return self.wide(query)
        return torch.cat([query, self.text_query.expand(len(query), -1, -1)], -1)

    def wide(self, rows: Tensor) -> Tensor:
        """Rows of heads, flat or not, with zeros in their channels."""
        heads = rows.view(len(rows), -1, self.head_dim)
        return nn.functional.pad(heads, (0, self.padded - self.head_dim))

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


def widen(attention: Any, padded: int, work: LayerWork, hiding: bool, config: Any) -> None:
    """Put an attention layer with heads of `padded` into the place of a decoder layer's own (`attention.attn`)."""
    old = attention.attn
    if old.head_size != padded:
        del config.compilation_config.static_forward_context[old.layer_name]
        old = Attention(
            old.num_heads,
            padded,
            attention.scaling,
            num_kv_heads=old.num_kv_heads,
            cache_config=config.cache_config,
            quant_config=config.quant_config,
            prefix=old.layer_name,
        )
    old.attn_backend = remembering(old.attn_backend)
    attention.attn = PaddedAttention(old, attention.head_dim, work, hiding)


@cache
def remembering(backend: Any) -> Any:
    """The backend, whose metadata remembers what it was built from, and has a second builder: a builder may keep buffers."""
    parent = backend.get_builder_cls()

    class Builder(parent):  # type: ignore[misc,valid-type]
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            self._arguments = arguments, keywords
            self._other: Any = None

        def other(self) -> Any:
            if self._other is None:
                arguments, keywords = self._arguments
                self._other = parent(*arguments, **keywords)
            return self._other

        def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
            made = super().build(common_prefix_len, common_attn_metadata, fast_build)
            made.yopo_built = self, common_attn_metadata
            return made

    return subclass_attention_backend("Yopo", backend, Builder)


def of_text(metadata: Any, visual: Tensor) -> Any:
    """The metadata of a step's text rows alone, from that of all rows; `visual` `[rows]` is on the CPU."""
    builder, common = metadata.yopo_built
    return builder.other().build(0, text_runs(common, visual))


def text_runs(common: CommonAttentionMetadata, visual: Tensor) -> CommonAttentionMetadata:
    """Every unbroken run of text in a request poses as a request of its own, which ends where the run ends: causal order stays exact.

    Raises ValueError where there is no text.
    """
    starts = common.query_start_loc_cpu[: common.num_reqs + 1].tolist()
    runs = [run for request, (first, last) in enumerate(zip(starts, starts[1:], strict=False)) for run in _runs(request, visual[first:last])]
    if not runs:
        raise ValueError("There is no text in this step.")
    device = common.seq_lens.device
    request, length, after = torch.tensor(runs, dtype=torch.int32).unbind(1)
    start = nn.functional.pad(length.cumsum(0), (1, 0)).to(torch.int32)
    rows = (~visual).nonzero()[:, 0].to(device)
    index = request.to(device)
    seen = common.seq_lens[index] - after.to(device, common.seq_lens.dtype)
    bound = common.seq_lens_cpu_upper_bound
    return replace(
        common,
        query_start_loc=start.to(device),
        query_start_loc_cpu=start,
        seq_lens=seen,
        num_reqs=len(runs),
        num_actual_tokens=int(start[-1]),
        max_query_len=int(length.max()),
        max_seq_len=common.max_seq_len,
        block_table_tensor=common.block_table_tensor[index],
        slot_mapping=common.slot_mapping[rows],
        positions=None,
        is_prefilling=None,
        req_idx=None if common.req_idx is None else common.req_idx[request.numpy()],
        logits_indices_padded=None,
        num_logits_indices=None,
        seq_lens_cpu_upper_bound=None if bound is None else bound[request] - after,
        _num_computed_tokens_cache=None,
        _token_to_req_indices_cache=None,
    )


def _runs(request: int, visual: Tensor) -> Sequence[tuple[int, int, int]]:
    """Runs of text among one request's rows: the request, how many rows, how many rows of the request come after."""
    rows = len(visual)
    edges = [0, *((visual[1:] != visual[:-1]).nonzero()[:, 0] + 1).tolist(), rows]
    return [(request, last - first, rows - last) for first, last in zip(edges, edges[1:], strict=False) if first < last and not visual[first]]
