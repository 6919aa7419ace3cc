"""The graphs of the onnxruntime target around the decoder's layers: prefill of pictures, continuation, embedding of text.

Names are those of transformers.js and of onnxruntime's own builders; beside K and V the cache holds `key_codes`, which tell of each
kind of KV heads which keys are visual, text or padding. A continuation without a past is a prefill of text alone.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from ...runtime.plan import Grid
from .builder import Graph
from .decoder import Call, logits, run
from .heads import Pair, rotary
from .masks import NONE, NOWHERE, TEXT, VISUAL, Keys, TextMasks, code, codes
from .slots import PAST, PAST_CODES, PRESENT, PRESENT_CODES, Slot, slots, strides
from .text import TextModel
from .visual import Scene, Visual, offset_tokens

INT64, INT32 = ir.DataType.INT64, ir.DataType.INT32


def embedding(graph: Graph, model: TextModel) -> None:
    """`input_ids` `[batch, sequence]` to `inputs_embeds`."""
    ids = graph.input("input_ids", INT64, ("batch_size", "sequence_length"))
    table = graph.piece(graph.store.place(model.embedding))
    rows = graph.op("Gather", table, ids, axis=0)
    hidden = model.sizes.hidden_size
    graph.output(graph.cast(rows, graph.compute), "inputs_embeds", graph.compute, ("batch_size", "sequence_length", hidden))


def prefill(graph: Graph, model: TextModel, grid: Grid) -> None:
    """The first call of prompts with pictures of one grid: text and visual rows apart, the cache from empty.

    `visual_starts` `[batch, images]` are the places of each sample's images, ascending; one that a sample lacks stands in its padding.
    """
    embeds, mask, positions = inputs(graph, model, "sequence_length")
    starts = graph.input("visual_starts", INT64, ("batch_size", "images"))
    scene = _scene(graph, grid, embeds, mask, starts)
    turns = [rotary(graph, model, positions)]
    (cosine, sine) = turns[0]
    text_turn, visual_turn = (
        tuple(_rows_of(graph, part, where, scene.batch) for part in (cosine, sine)) for where in (scene.text_slots, scene.visual_slots)
    )
    keys = {one: _new_keys(graph, scene, one) for one in strides(model)}
    hidden, epsilon = model.sizes.hidden_size, model.epsilon
    visual = Visual(graph, scene, graph.rows(embeds, scene.visual_slots), _pair(visual_turn), epsilon, hidden)
    masks = TextMasks(graph, keys, scene.text_slots)
    call = Call(scene.batch, graph.rows(embeds, scene.text_slots), _pair(text_turn), masks, visual=visual)
    present = run(graph, model, call)
    outputs(graph, model, call, present, {one: found.codes for one, found in keys.items()}, "key_length")


def continuation(graph: Graph, model: TextModel) -> None:
    """Text after what the cache holds, which may be nothing: decoding, further text, prompts without pictures."""
    embeds, mask, positions = inputs(graph, model, "total_length")
    batch, length = graph.axis(embeds, 0), graph.axis(embeds, 1)
    valid = graph.cast(graph.slice(mask, graph.op("Neg", length), NOWHERE, 1), ir.DataType.BOOL)
    new = graph.unsqueeze(codes(graph, valid, TEXT), 1)
    queries = graph.unsqueeze(graph.range(length), 0)
    keys = {}
    for one in strides(model):
        old = graph.input(f"{PAST_CODES}.{one}", INT32, ("batch_size", max(one, 1), f"past_keys_{one}"))
        joined = graph.op("Concat", old, graph.expand(new, 1, max(one, 1), 1), axis=2)
        # Everything in the cache comes before every new row.
        before = graph.expand(graph.constant([[[-1]]]), 1, 1, graph.axis(old, 2))
        keys[one] = Keys(joined, graph.op("Concat", before, graph.unsqueeze(queries, 1), axis=2))
    past = {slot: past_pair(graph, model, slot) for slot in slots(model)}
    text = graph.reshape(embeds, -1, model.sizes.hidden_size)
    call = Call(batch, text, rotary(graph, model, positions), TextMasks(graph, keys, queries), past)
    present = run(graph, model, call)
    outputs(graph, model, call, present, {one: found.codes for one, found in keys.items()}, "total_keys")


def inputs(graph: Graph, model: TextModel, total: str) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Embeddings of a call, mask of all tokens so far, positions of the call."""
    embeds = graph.input("inputs_embeds", graph.compute, ("batch_size", "sequence_length", model.sizes.hidden_size))
    mask = graph.input("attention_mask", INT64, ("batch_size", total))
    axes = (len(model.rotary.sections),) if model.rotary.sections else ()
    return embeds, mask, graph.input("position_ids", INT64, (*axes, "batch_size", "sequence_length"))


def past_pair(graph: Graph, model: TextModel, slot: Slot) -> Pair:
    """K and V of earlier calls."""
    dims = ("batch_size", slot.heads, f"past_keys_{slot.kind.stride}", model.sizes.head_dim)
    key, value = (graph.input(f"{PAST}.{slot.number}.{part}", graph.compute, dims) for part in ("key", "value"))
    return key, value


def outputs(
    graph: Graph, model: TextModel, call: Call, present: Mapping[Slot, Pair], found: Mapping[int, ir.Value], length: str
) -> None:  # fmt: skip
    """Logits of the last token, K and V by slot, codes of keys by stride."""
    graph.output(logits(graph, model, call), "logits", graph.compute, ("batch_size", 1, model.vocabulary))
    for slot, pair in present.items():
        dims = ("batch_size", slot.heads, f"{length}_{slot.kind.stride}", model.sizes.head_dim)
        for part, value in zip(("key", "value"), pair, strict=True):
            graph.output(value, f"{PRESENT}.{slot.number}.{part}", graph.compute, dims)
    for one, value in found.items():
        graph.output(value, f"{PRESENT_CODES}.{one}", INT32, ("batch_size", max(one, 1), f"{length}_{one}"))


def _scene(graph: Graph, grid: Grid, embeds: ir.Value, mask: ir.Value, starts: ir.Value) -> Scene:
    """Where text and visual rows stand: the images' places, and all others in their order."""
    batch, images = graph.axis(embeds, 0), graph.axis(starts, 1)
    tokens = grid.tokens
    visual = graph.op("Add", graph.unsqueeze(starts, 2), list(range(tokens)))
    visual = graph.reshape(visual, batch, graph.op("Mul", images, [tokens]))
    count = graph.op("Sub", graph.axis(embeds, 1), graph.op("Mul", images, [tokens]))
    order = graph.range(count)
    # An image before a text row moves it by its tokens; it is before if it starts at or before the row's place among text rows.
    first = graph.op("Sub", starts, graph.op("Mul", graph.range(images), tokens))
    before = graph.op("GreaterOrEqual", graph.unsqueeze(order, 0, 2), graph.unsqueeze(first, 1))
    moved = graph.op("ReduceSum", graph.cast(before, INT64), [2], keepdims=0)
    text = graph.op("Add", order, graph.op("Mul", moved, tokens))
    valid = graph.cast(mask, ir.DataType.BOOL)
    there = [graph.op("GatherElements", valid, where, axis=1) for where in (text, visual)]
    return Scene(grid, batch, images, starts, text, there[0], visual, there[1])


def _rows_of(graph: Graph, values: ir.Value, where: ir.Value, batch: ir.Value) -> ir.Value:
    """`[batch, rows, width]` of `values` `[batch or 1, length, width]` at places `[batch, rows]`."""
    width = graph.axis(values, 2)
    whole = graph.expand(values, batch, 1, 1)
    return graph.reshape(graph.rows(whole, where), batch, -1, width)


def _new_keys(graph: Graph, scene: Scene, one: int) -> Keys:
    """The keys of a prefill in heads of one kind: visual ones first."""
    text_codes = graph.unsqueeze(codes(graph, scene.text_valid, TEXT), 1)
    text_slots = graph.unsqueeze(scene.text_slots, 1)
    if not one:
        return Keys(text_codes, text_slots)
    visual_codes, slots_ = codes(graph, scene.visual_valid, VISUAL), scene.visual_slots
    index = np.array(offset_tokens(scene.grid, one), np.int64)
    there = np.array(index >= 0)

    def dealt(values: ir.Value, absent: Any) -> ir.Value:
        """`[batch, offsets, images * most tokens]`."""
        tokens = graph.reshape(values, scene.batch, scene.images, scene.grid.tokens)
        found = graph.op("Gather", tokens, np.maximum(index, 0), axis=2)
        found = found if there.all() else graph.op("Where", there, found, absent)
        return graph.reshape(graph.op("Transpose", found, perm=[0, 2, 1, 3]), scene.batch, one, -1)

    visual_codes, visual_slots = dealt(visual_codes, code(NONE)), dealt(slots_, np.array(NOWHERE, np.int64))
    text = [graph.expand(part, 1, one, 1) for part in (text_codes, text_slots)]
    return Keys(graph.op("Concat", visual_codes, text[0], axis=2), graph.op("Concat", visual_slots, text[1], axis=2))


def _pair(parts: Any) -> Pair:
    cosine, sine = parts
    return cosine, sine
