"""What vLLM is to the plugin, the obvious way: its modules over those of transformers, and a cache of slots."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from converters.runtime.plan import Sizes
from converters.serving.padded import PaddedAttention
from converters.serving.work import LayerWork

BLOCK = 4


@dataclass(frozen=True)
class Common:
    """Of vLLM's common metadata what the plugin changes. Requests' slots are in blocks of BLOCK."""

    query_start_loc: Tensor
    query_start_loc_cpu: Tensor
    seq_lens: Tensor
    num_reqs: int
    num_actual_tokens: int
    max_query_len: int
    max_seq_len: int
    block_table_tensor: Tensor
    slot_mapping: Tensor
    positions: Tensor | None = None
    is_prefilling: Tensor | None = None
    req_idx: Any = None
    logits_indices_padded: Tensor | None = None
    num_logits_indices: int | None = None
    seq_lens_cpu_upper_bound: Tensor | None = None
    _num_computed_tokens_cache: Tensor | None = None
    _token_to_req_indices_cache: Tensor | None = None


def common(spans: Sequence[tuple[int, int]], blocks: int = 64) -> Common:
    """A step in which request i has its tokens `spans[i]` (first, last) computed; its blocks are its own, in falling order."""
    start = torch.tensor([0, *(last - first for first, last in spans)]).cumsum(0).to(torch.int32)
    table = torch.arange(len(spans) * blocks, dtype=torch.int32).flip(0).view(len(spans), blocks)
    slots = [int(table[request, token // BLOCK]) * BLOCK + token % BLOCK for request, span in enumerate(spans) for token in range(*span)]
    ends = torch.tensor([last for _, last in spans], dtype=torch.int32)
    longest = max(last - first for first, last in spans)
    return Common(
        start, start, ends, len(spans), int(start[-1]), longest, int(ends.max()), table, torch.tensor(slots), seq_lens_cpu_upper_bound=ends
    )  # fmt: skip


class Cache:
    """The implementation of an attention backend: slots of K and V, and causal attention of each request's queries to its own slots."""

    def __init__(self, scale: float, slots: int = 4096) -> None:
        self.scale, self.slots = scale, slots
        self.keys: dict[int, Tensor] = {}

    def do_kv_cache_update(self, layer: Any, key: Tensor, value: Tensor, kv_cache: Any, slots: Tensor) -> None:
        for one, other, slot in zip(key, value, slots.tolist(), strict=True):
            self.keys[slot] = torch.stack([one, other])

    def forward(self, layer: Any, query: Tensor, key: Any, value: Any, kv_cache: Any, metadata: Common, output: Tensor) -> None:
        edges = metadata.query_start_loc_cpu.tolist()
        for request in range(metadata.num_reqs):
            first, last, end = edges[request], edges[request + 1], int(metadata.seq_lens[request])
            for place in range(first, last):
                seen = range(end - (last - place) + 1)
                table = metadata.block_table_tensor[request].tolist()
                held = torch.stack([self.keys[table[token // BLOCK] * BLOCK + token % BLOCK] for token in seen])
                keys, values = held.repeat_interleave(query.shape[1] // held.shape[2], 2).unbind(1)
                scores = torch.einsum("hd,thd->ht", query[place], keys) * self.scale
                output[place] = torch.einsum("ht,thd->hd", scores.softmax(-1), values)


class Inner(nn.Module):
    """An attention layer of vLLM."""

    def __init__(self, name: str, sizes: Sizes, padded: int) -> None:
        super().__init__()
        self.layer_name, self.num_heads, self.num_kv_heads = name, sizes.num_attention_heads, sizes.num_key_value_heads
        self.head_size, self.impl, self.kv_cache = padded, Cache(sizes.head_dim**-0.5), None


class Norm(nn.Module):
    """An RMS norm that adds a residual first, where one is given."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.inner, self.weight, self.variance_epsilon = norm, norm.weight, norm.variance_epsilon

    def forward(self, rows: Tensor, residual: Tensor | None = None) -> Any:
        return self.inner(rows) if residual is None else (self.inner(rows + residual), rows + residual)


class Attention(nn.Module):
    """Fused projections over the file's separate ones, results in pairs as vLLM's are."""

    def __init__(self, attention: Any, sizes: Sizes, attn: PaddedAttention, rotary: Any) -> None:
        super().__init__()
        self.own, self.attn, self.rotary, self.head_dim = attention, attn, rotary, sizes.head_dim
        self.q_size, self.kv_size = sizes.num_attention_heads * sizes.head_dim, sizes.num_key_value_heads * sizes.head_dim

    def qkv_proj(self, rows: Tensor) -> tuple[Tensor, None]:
        return torch.cat([self.own.q_proj(rows), self.own.k_proj(rows), self.own.v_proj(rows)], -1), None

    def o_proj(self, rows: Tensor) -> tuple[Tensor, None]:
        return self.own.o_proj(rows), None

    def rotary_emb(self, positions: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """In place, as vLLM's is: two names of one tensor would be turned twice."""
        cosine, sine = self.rotary(key, positions[None])
        for rows in (query, key):
            heads = rows.view(len(rows), -1, self.head_dim)
            first, second = heads.chunk(2, -1)
            heads.copy_(heads * cosine[0, :, None] + torch.cat([-second, first], -1) * sine[0, :, None])
        return query, key


class Mlp(nn.Module):
    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.own = mlp

    def forward(self, rows: Tensor) -> Tensor:
        return self.own(rows)  # type: ignore[no-any-return]

    def act_fn(self, both: Tensor) -> Tensor:
        gate, up = both.chunk(2, -1)
        return torch.nn.functional.silu(gate) * up


class Layer(nn.Module):
    def __init__(self, index: int, layer: Any, work: LayerWork, sizes: Sizes, padded: int, hiding: bool, rotary: Any) -> None:
        super().__init__()
        attn = PaddedAttention(Inner(f"layers.{index}", sizes, padded), sizes.head_dim, work, hiding)
        self.self_attn, self.mlp = Attention(layer.self_attn, sizes, attn, rotary), Mlp(layer.mlp)
        self.input_layernorm, self.post_attention_layernorm = Norm(layer.input_layernorm), Norm(layer.post_attention_layernorm)
