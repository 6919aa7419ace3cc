"""A step of the engine that has visual rows: they do the work of the plan, text rows all of theirs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .padded import HIDDEN, PaddedAttention
from .projections import VisualProjections
from .work import LayerWork, Range


@dataclass
class PrefillStep:
    """The rows of a step, and what its layers share. Visual rows stand first wherever both kinds are together.

    `visual` `[rows]` marks visual rows, on the CPU; `shown` tells by stride which of the visual rows it shows. `positions` are of all rows,
    `[rows]` or `[3, rows]`. `metadata` and `slots` are by name of the attention layer; `of_text` makes of the metadata of all rows that of
    text alone. `deepstack` are features that are added to visual rows after the first layers, `[visual rows, hidden]` each.
    """

    visual: Tensor
    positions: Tensor
    shown: Mapping[int, Tensor]
    metadata: Mapping[str, Any]
    slots: Mapping[str, Tensor]
    of_text: Callable[[Any, Tensor], Any]
    deepstack: Sequence[Tensor] = ()
    _text_metadata: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        device = self.positions.device
        self.visual_rows = self.visual.nonzero()[:, 0].to(device)
        self.text_rows = (~self.visual).nonzero()[:, 0].to(device)
        self.order = torch.cat([self.visual_rows, self.text_rows])
        self.visual_positions = self.positions[..., self.visual_rows].contiguous()
        self.text_positions = self.positions[..., self.text_rows].contiguous()
        self._of_stride = {stride: shown.nonzero()[:, 0] for stride, shown in self.shown.items()}

    def of_part(self, part: Range) -> Tensor | None:
        """Which of the visual rows a part's KV heads have K and V of; None: all."""
        return None if part.stride == 1 else self._of_stride[part.stride]

    def text_metadata(self, name: str) -> Any:
        """Layers that share their metadata share that of text."""
        given = self.metadata[name]
        if id(given) not in self._text_metadata:
            self._text_metadata[id(given)] = self.of_text(given, self.visual)
        return self._text_metadata[id(given)]


@dataclass
class StepRows:
    """Hidden states. What the last update has added to the `text` residual is still in `added`, as vLLM's fused norms take it.

    `unit` are the visual rows divided by their root mean square, while they do not change: frozen layers differ by their norm's weight.
    """

    visual: Tensor
    text: Tensor
    added: Tensor | None = None
    unit: Tensor | None = None

    def normed_text(self, norm: Any) -> Tensor:
        if self.added is None:
            normed: Tensor = norm(self.text)
            return normed
        normed, self.text = norm(self.added, self.text)
        return normed

    def add_visual(self, update: Tensor) -> None:
        self.visual, self.unit = self.visual + update, None

    def normed_visual(self, norm: Any, index: Tensor | None = None) -> Tensor:
        """Visual rows, or some of them, after an RMS norm."""
        if self.unit is None:
            wide = self.visual.float()
            self.unit = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)).to(self.visual.dtype)
        normed: Tensor = (self.unit if index is None else self.unit[index]) * norm.weight
        return normed


def run(
    layers: Sequence[Any],
    norm: Any,
    works: Sequence[LayerWork],
    projections: Mapping[int, VisualProjections],
    embeds: Tensor,
    step: PrefillStep,
) -> Tensor:
    """The last hidden states of a step's rows `[rows, hidden]`: zeros for visual rows, which nobody may ask for."""
    rows = StepRows(embeds[step.visual_rows], embeds[step.text_rows])
    for index, (layer, work) in enumerate(zip(layers, works, strict=True)):
        _attention(layer, work, projections.get(index), rows, step)
        _ffn(layer, work, projections.get(index), rows)
        if index < len(step.deepstack):
            rows.add_visual(step.deepstack[index])
    out = torch.zeros_like(embeds)
    if len(step.text_rows):
        out[step.text_rows] = rows.normed_text(norm)
    return out


def _attention(layer: Any, work: LayerWork, projections: VisualProjections | None, rows: StepRows, step: PrefillStep) -> None:
    """K and V of all rows into the cache; text rows are updated, visual rows where the plan computes heads for them."""
    attention, attn = layer.self_attn, layer.self_attn.attn
    text = rows.normed_text(layer.input_layernorm)
    visual_query: Tensor | None
    if work.dense_attention:
        query, key, value = _qkv(attention, torch.cat([rows.normed_visual(layer.input_layernorm), text]))
        query, key = _turned(attention, step.positions[..., step.order].contiguous(), query, key)
        count = len(rows.visual)
        visual_query, query = query[:count], query[count:]
        keys, values = _dense_cache(attn, work, key, value, count)
    else:
        query, key, value = _qkv(attention, text)
        query, key = _turned(attention, step.text_positions, query, key)
        keys, values, visual_query = _visual_cache(layer, work, projections, rows, step, key, value)
    attn.write(keys, values, step.slots[attn.inner.layer_name][step.order])
    if work.computing:
        seen = _both_see(attn, visual_query, query, step)
        _add_both(attention, work, projections, rows, seen)
    elif len(text):
        seen = attn.attend(attn.queries(query), step.text_metadata(attn.inner.layer_name))
        rows.added = attention.o_proj(seen.flatten(1))[0]
    else:
        rows.added = text


def _ffn(layer: Any, work: LayerWork, projections: VisualProjections | None, rows: StepRows) -> None:
    norm = layer.post_attention_layernorm
    text = rows.normed_text(norm)
    if work.all_neurons:
        count = len(rows.visual)
        both = layer.mlp(torch.cat([rows.normed_visual(norm), text]))
        rows.add_visual(both[:count])
        rows.added = both[count:]
        return
    if work.neurons:
        assert projections is not None
        rows.add_visual(projections.down(layer.mlp.act_fn(projections.gate_up(rows.normed_visual(norm)))))
    rows.added = layer.mlp(text) if len(text) else text


def _qkv(attention: Any, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of rows that go through the projections of text."""
    sizes = [attention.q_size, attention.kv_size, attention.kv_size]
    if not len(rows):
        query, key, value = (rows.new_empty(0, size) for size in sizes)
    else:
        query, key, value = attention.qkv_proj(rows)[0].split(sizes, -1)
    return query, key, value


def _turned(attention: Any, positions: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys `[rows, heads * head_dim]`, normed, and turned by their positions: in place, where they are contiguous."""
    if not len(key):
        return query, key
    query, key = _normed(attention, "q_norm", query), _normed(attention, "k_norm", key)
    turned: tuple[Tensor, Tensor] = attention.rotary_emb(positions, query.contiguous(), key.contiguous())
    return turned


def _normed(attention: Any, name: str, rows: Tensor) -> Tensor:
    """Rows `[rows, heads * head_dim]` after the norm of each head, where the model has one."""
    norm = getattr(attention, name, None)
    return rows if norm is None else norm(rows.unflatten(1, (-1, attention.head_dim))).flatten(1)


def _turned_alone(attention: Any, norm: str, positions: Tensor, rows: Tensor) -> Tensor:
    """Queries or keys alone, after their norm; a rotary embedding takes both."""
    if not len(rows):
        return rows
    others, rows = rows.new_zeros(len(rows), attention.head_dim), _normed(attention, norm, rows)
    turned: Tensor = attention.rotary_emb(positions, others, rows.contiguous())[1]
    return turned


def _dense_cache(attn: PaddedAttention, work: LayerWork, key: Tensor, value: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """K and V for the cache of rows of both kinds, `count` visual ones first, where all KV heads have all visual tokens."""
    keys, values = attn.wide(key), attn.wide(value)
    if attn.hiding:
        keys[:count, :, attn.head_dim :] = attn.visual_key
    return keys, values


def _visual_cache(
    layer: Any, work: LayerWork, projections: VisualProjections | None, rows: StepRows, step: PrefillStep, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """K and V for the cache of visual rows, by projections of their own, then of text; and the queries of visual rows, if there are any.

    Where a KV head has nothing of a visual token, its key is hidden and zero, its value zero.
    """
    attention, attn, norm = layer.self_attn, layer.self_attn.attn, layer.input_layernorm
    size, count = attn.head_dim, len(rows.visual)
    keys, values = (part.new_zeros(count + len(part), attn.kv_heads, attn.padded) for part in (key, value))
    keys[count:, :, :size], values[count:, :, :size] = (part.unflatten(1, (-1, size)) for part in (key, value))
    if attn.hiding:
        keys[:count, :, size] = HIDDEN
    query = None
    if work.computing:
        assert projections is not None
        normed = rows.normed_visual(norm)
        query = projections.query(projections.inner(normed) if work.rank is not None else normed)
        query = _turned_alone(attention, "q_norm", step.visual_positions, query)
    for part in work.parts:
        assert projections is not None
        index, heads = step.of_part(part), slice(part.first, part.last)
        normed = rows.normed_visual(norm, index)
        normed = normed if work.rank is None else projections.inner(normed)
        elements = slice(part.first * size, part.last * size)
        made, given = (one.some(normed, elements) for one in (projections.key, projections.value))
        where = step.visual_positions if index is None else step.visual_positions[..., index].contiguous()
        made = _turned_alone(attention, "k_norm", where, made)
        places: Any = slice(0, count) if index is None else index
        keys[places, heads, :size] = made.unflatten(1, (-1, size))
        values[places, heads, :size] = given.unflatten(1, (-1, size))
        if attn.hiding:
            keys[places, heads, size:] = attn.visual_key[heads]
    return keys, values, query


def _both_see(attn: PaddedAttention, visual: Tensor | None, text: Tensor, step: PrefillStep) -> tuple[Tensor, Tensor]:
    """What visual rows see in the heads that they compute, and text rows in all, `[rows, heads, head_dim]`: one attention of all rows."""
    assert visual is not None
    heads = attn.computing
    queries = text.new_zeros(len(step.order), attn.heads, attn.padded)
    queries[step.text_rows] = attn.queries(text)
    queries[step.visual_rows[:, None], heads, : attn.head_dim] = visual.unflatten(1, (-1, attn.head_dim))
    seen = attn.attend(queries, step.metadata[attn.inner.layer_name])
    return seen[step.visual_rows[:, None], heads], seen[step.text_rows]


def _add_both(attention: Any, work: LayerWork, projections: VisualProjections | None, rows: StepRows, seen: tuple[Tensor, Tensor]) -> None:
    visual, text = (part.flatten(1) for part in seen)
    if work.computes_all:
        both = attention.o_proj(torch.cat([visual, text]))[0]
        rows.add_visual(both[: len(visual)])
        rows.added = both[len(visual) :]
        return
    assert projections is not None
    rows.add_visual(projections.output(visual))
    rows.added = attention.o_proj(text)[0] if len(text) else text
