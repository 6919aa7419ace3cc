"""One decoder layer under a plan: text and visual rows share each product with the part of a weight that both use.

Every weight is read once; text alone goes through the rest.
"""

from functools import partial

import torch
from torch import Tensor

from .attention import take, turned
from .cache import SparseLayer
from .call import Call, Rotary
from .chunking import in_place
from .full_attention import causal_attention, full_attention
from .keys_values import Projected, near_rows, projected_keys, projected_values, rectangle, shared_rows, source
from .layer_parts import LayerParts, Projections
from .layout import TEXT_ONLY, LayerLayout
from .text_attention import text_attention
from .windows import WindowRule, windowed_attention


def run_layer(parts: LayerParts, layout: LayerLayout, call: Call, cached: SparseLayer, locality: str) -> None:
    """Update the rows of a call; keys and values go into the layer's cache. `locality` is the plan's: what a window shows."""
    attention(parts, layout, call, cached, locality)
    feed_forward(parts, layout, call)


def attention(parts: LayerParts, layout: LayerLayout, call: Call, cached: SparseLayer, locality: str) -> None:
    """Self attention: text rows are updated, visual rows too where they have heads."""
    text, size, scale = parts.input_layernorm(call.text), parts.head_dim, parts.scaling
    queries, visual_queries, ranked = None, None, None
    if layout.ranked_queries and call.visual is not None:
        ranked, queries, visual_queries = _ranked_queries(parts, call, text)
    key = source(parts.projections.key, parts.visual_key, text, call)
    value = source(parts.projections.value, parts.visual_value, text, call)
    keys: list[Projected] = []
    values: list[Projected] = []
    for part in shared_rows(parts, layout, call, text, ranked):
        if queries is None:
            queries, visual_queries = _queries(parts, layout, part.rows, text, call)
        keys.append(projected_keys(part, key, call.batch, size, parts.key_norm))
        values.append(projected_values(part, value, call.batch, size))
    assert queries is not None
    kinds = layout.head_kinds
    rectangles = {kind.stride: cached.extend(kind.stride, rectangle(kind, keys), rectangle(kind, values)) for kind in kinds}
    seen = [text_attention(take(queries, kind.query_heads, 1), *rectangles[kind.stride], kind, call.masks, scale) for kind in kinds]
    output = _joined([part.transpose(1, 2) for part in seen], 2)
    places = [head for kind in kinds for head in kind.query_heads]
    if places != sorted(places):
        output = take(output, sorted(range(len(places)), key=lambda place: places[place]), 2)
    output = output.flatten(2).flatten(0, 1)
    if visual_queries is None:
        call.add_text(parts.projections.output.inputs(output))
    else:
        visual = _visual_attention(layout, call, visual_queries, keys[0], values[0], rectangles, scale, locality)
        _add_output(parts, layout, call, visual.transpose(1, 2).flatten(2).flatten(0, 1), output)


def _visual_attention(
    layout: LayerLayout, call: Call, queries: Tensor, keys: Projected, values: Projected,
    rectangles: dict[int, tuple[Tensor, Tensor]], scale: float, locality: str,
) -> Tensor:  # fmt: skip
    """What visual queries `[batch, kept heads, rows, head_dim]` see."""
    assert call.split is not None
    group = len(layout.query_order) // len(layout.kv_order)
    kv_heads = [head // group for head in layout.computing]
    if layout.window is None:
        all_keys, all_values = (take(tensor, kv_heads, 1) for tensor in rectangles[1])
        key_slots, visual_slots = call.timeline.all_slots(1), call.split.visual_slots
        if call.fresh and call.timeline.gapless[1]:
            return causal_attention(queries, all_keys, all_values, visual_slots, key_slots, scale)
        return full_attention(queries, all_keys, all_values, visual_slots, key_slots, keys.text.shape[1], scale)
    near_keys, near_values = (
        take(near_rows(layout, call, new, {stride: pair[number] for stride, pair in rectangles.items()}), kv_heads, 1)
        for number, new in enumerate((keys, values))
    )
    slots = call.text_slots if call.fresh else call.timeline.all_slots(TEXT_ONLY)
    return windowed_attention(queries, near_keys, near_values, slots, call.split, WindowRule(layout.window, locality), scale)


def _queries(parts: LayerParts, layout: LayerLayout, rows: Tensor, text: Tensor, call: Call) -> tuple[Tensor, Tensor | None]:
    """Queries of text rows in the file's head order, and of visual rows by the heads that they compute (None where there are none).

    Where there are, `rows` are all visual ones, then the text.
    """
    size, projection = parts.head_dim, parts.projections.query
    if not layout.computing or call.visual is None or call.visual_rotary is None:
        return _turned(parts, projection.outputs(text), call.text_rotary, call.batch), None
    count, visual, words = len(rows) - len(text), [], []
    for first, last, computed in layout.query_runs:
        made = projection.outputs(rows if computed else text, first * size, last * size)
        visual += [made[:count]] if computed else []
        words.append(made[count:] if computed else made)
    return (
        _turned(parts, _joined(words, -1), call.text_rotary, call.batch),
        _turned(parts, _joined(visual, -1), call.visual_rotary, call.batch),
    )


def _ranked_queries(parts: LayerParts, call: Call, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All visual rows in the dimensions of a rank; queries of text rows, and of visual rows, which are made from these."""
    assert call.visual is not None
    assert call.visual_rotary is not None
    assert parts.visual_inner is not None
    assert parts.visual_query is not None
    rows = call.normalised(parts.input_layernorm, text)
    ranked = parts.visual_inner.outputs(rows[: len(call.visual)])
    return (
        ranked,
        _turned(parts, parts.projections.query.outputs(text), call.text_rotary, call.batch),
        _turned(parts, parts.visual_query.outputs(ranked), call.visual_rotary, call.batch),
    )


def _add_output(parts: LayerParts, layout: LayerLayout, call: Call, visual: Tensor, text: Tensor) -> None:
    """Add what heads saw: `visual` `[rows, computed heads * head_dim]` and `text` `[rows, heads * head_dim]`, in the file's order."""
    size, projection, place, biased = parts.head_dim, parts.projections.output, 0, True
    for first, last, computed in layout.query_runs:
        first, last = first * size, last * size
        if computed:
            both = torch.cat([visual[:, place : place + last - first], text[:, first:last]])
            call.add_to_all(both, projection, first, last, biased)
            place, biased = place + last - first, False
    for first, last, computed in layout.query_runs:
        if not computed:
            call.add_text(projection.rest(text[:, first * size : last * size], first * size, last * size))


def feed_forward(parts: LayerParts, layout: LayerLayout, call: Call) -> None:
    """Visual rows go through the first `neurons` neurons only."""
    linear, kept = parts.projections, layout.neurons
    text = parts.post_attention_layernorm(call.text)
    if call.visual is None or not kept:
        call.add_text(linear.down.inputs(_neurons(linear, text)))
        return
    rows = call.normalised(parts.post_attention_layernorm, text)
    call.add_to_all(rows, linear.down, 0, kept, True, partial(_neurons, linear, first=0, last=kept))
    if kept < len(layout.neuron_order):
        call.add_text(linear.down.rest(_neurons(linear, text, kept), kept, None))


def _neurons(linear: Projections, rows: Tensor, first: int = 0, last: int | None = None) -> Tensor:
    """What neurons `first` to `last` give for rows."""
    gate: Tensor = linear.activation(linear.gate.outputs(rows, first, last))
    up = linear.up.outputs(rows, first, last)
    return gate.mul_(up) if in_place() else gate * up


def _turned(parts: LayerParts, rows: Tensor, rotary: Rotary, batch: int) -> Tensor:
    """Queries `[batch * rows, heads * head_dim]` turned by their positions, `[batch, heads, rows, head_dim]`."""
    heads = turned(rows.contiguous().unflatten(-1, (-1, parts.head_dim)), parts.query_norm, *rotary)
    return heads.view(batch, -1, *heads.shape[1:]).transpose(1, 2)


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
