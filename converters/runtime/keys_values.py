"""Keys and values of one layer: for each range of KV heads, text rows and the visual rows that it has are multiplied together."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .attention import take, turned
from .call import Call, Rotary
from .layer_parts import LayerParts
from .layout import TEXT_ONLY, HeadKind, LayerLayout
from .projection import Part, Projection


@dataclass(frozen=True)
class SharedRows:
    """Rows of one product `[batch * visual; batch * text, hidden]` and their rotary embedding, for KV heads `first` to `last`.

    `visual` rows of each sample, 0 for text alone. `sources` are what K and V of the visual rows are made
    from: these themselves, or as few dimensions as the plan has them go through.
    """

    rows: Tensor
    rotary: Rotary
    first: int
    last: int
    visual: int = 0
    sources: Tensor | None = None


@dataclass(frozen=True)
class KeyValueSource:
    """What makes K or V: a layer's projection of `all` rows, or in a refitted layer the product of all text rows with it, and the
    projection of `visual` rows, which has only those KV heads that hold them."""

    all: Projection | Part
    visual: Projection | None = None
    text: Tensor | None = None

    def rows(self, part: SharedRows, size: int) -> Tensor:
        """Keys or values `[rows, heads * head_dim]` of a product."""
        first, last = part.first * size, part.last * size
        if self.text is None or self.visual is None:
            return self.all.outputs(part.rows, first, last)
        text = self.text[:, first:last]
        return text.clone() if part.sources is None else torch.cat([self.visual.outputs(part.sources, first, last), text])


@dataclass(frozen=True)
class Projected:
    """Keys or values of such a product `[rows, heads, head_dim]`, and its two parts `[batch, rows, heads, head_dim]`."""

    both: Tensor
    visual: Tensor
    text: Tensor
    shared: SharedRows


def shared_rows(parts: LayerParts, layout: LayerLayout, call: Call, text: Tensor, ranked: Tensor | None) -> Iterator[SharedRows]:
    """The products of a layer's K and V: text rows with the visual rows that each range of KV heads holds.

    Each one's rows are good until the next is asked for. `ranked` are all visual rows in the dimensions of a rank, where they are there.
    """
    if call.visual is None or call.split is None:
        yield SharedRows(text, call.text_rotary, 0, len(layout.kv_order))
        return
    for part in layout.ranges:
        if part.stride == TEXT_ONLY:
            yield SharedRows(text, call.text_rotary, part.first, part.last)
            continue
        if ranked is None:
            rows = call.normalised(parts.input_layernorm, text, part.stride)
            visual = rows[: len(rows) - len(text)]
            visual = visual if parts.visual_inner is None else parts.visual_inner.outputs(visual)
        else:
            rows, visual = text, ranked if part.stride == 1 else ranked.index_select(0, call.shown_rows(part.stride))
        yield SharedRows(rows, call.rotary(part.stride), part.first, part.last, len(visual) // call.batch, visual)


def source(projection: Projection | Part, visual: Projection | None, text: Tensor, call: Call) -> KeyValueSource:
    """What makes K or V in this call; `visual` is the projection of visual rows that a refitted layer has."""
    return (
        KeyValueSource(projection)
        if visual is None or call.visual is None
        else KeyValueSource(projection, visual, projection.outputs(text))
    )


def projected_keys(part: SharedRows, source: KeyValueSource, batch: int, size: int, norm: Any) -> Projected:
    """Keys of a product's rows, after a norm of each head (None: none), turned by their positions."""
    return _apart(part, turned(_heads(part, source, size), norm, *part.rotary), batch)


def projected_values(part: SharedRows, source: KeyValueSource, batch: int, size: int) -> Projected:
    """Values of a product's rows."""
    return _apart(part, _heads(part, source, size), batch)


def _heads(part: SharedRows, source: KeyValueSource, size: int) -> Tensor:
    """`[rows, heads, head_dim]`"""
    heads: Tensor = source.rows(part, size).contiguous().unflatten(-1, (-1, size))
    return heads


def _apart(part: SharedRows, both: Tensor, batch: int) -> Projected:
    visual, text = both.tensor_split([batch * part.visual])
    return Projected(both, visual.unflatten(0, (batch, part.visual)), text.unflatten(0, (batch, len(text) // batch)), part)


def rectangle(kind: HeadKind, parts: list[Projected]) -> Tensor:
    """New keys or values of one kind of KV head, `[batch, KV heads, visual and text rows, head_dim]`, visual ones first.

    The product's own result where it is just that; else put together.
    """
    batch, text, _, size = parts[0].text.shape
    heads_of = [(part, _within(part.shared, kind.kv_heads)) for part in parts]
    of_kind = [pair for pair in heads_of if pair[1]]
    width = of_kind[0][0].shared.visual if kind.stride != TEXT_ONLY else 0
    part, heads = of_kind[0]
    alone = len(of_kind) == 1 and len(part.both) == batch * (width + text)
    if alone and (not width or (batch == 1 and len(heads) == part.both.shape[1])):
        return take(part.both.unflatten(0, (batch, width + text)).transpose(1, 2), heads, 1)
    together = part.both.new_empty(batch, width + text, len(kind.kv_heads), size)
    first = 0
    for part, heads in of_kind:
        place = slice(first, first := first + len(heads))
        if width:
            together[:, :width, place] = take(part.visual, heads, 2)
        together[:, width:, place] = take(part.text, heads, 2)
    return together.transpose(1, 2)


def near_rows(layout: LayerLayout, call: Call, new: Projected, cached: dict[int, Tensor]) -> Tensor:
    """Keys or values of this call's visual rows, then of all text so far, `[batch * rows, KV heads, head_dim]`; those of self heads lead.

    The product's own result, unless there is text in the cache: `cached` by kind of KV head.
    """
    if call.fresh:
        return new.both
    texts = []
    for kind in layout.head_kinds:
        places = [place for place, head in enumerate(kind.kv_heads) if head < layout.self_kv_heads]
        if places:
            texts.append(take(cached[kind.stride], places, 1)[:, :, call.timeline.text_columns(kind.stride)])
    text = torch.cat(texts, 1).transpose(1, 2).flatten(0, 1)
    return torch.cat([new.visual.flatten(0, 1)[:, : layout.self_kv_heads], text])


def _within(part: SharedRows, heads: tuple[int, ...]) -> list[int]:
    """Those of the KV heads that a product computes, counted from its first."""
    return [head - part.first for head in heads if part.first <= head < part.last]
