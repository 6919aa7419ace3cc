"""The graphs of the onnxruntime target around the decoder's layers: prefill of pictures, continuation, embedding of text.

Names are those of transformers.js and of onnxruntime's own builders; beside K and V the cache holds `key_codes`, which tell of each
kind of KV heads which keys are visual, text or padding. A continuation without a past is a prefill of text alone.
"""

from collections.abc import Mapping

import onnx_ir as ir

from ...runtime.layout import TEXT_ONLY
from ...runtime.plan import Grid
from .builder import Graph
from .decoder import DecoderCall, logits, run
from .heads import Pair, rotary
from .masks import NOWHERE, TEXT, VISUAL, Keys, TextMaskNodes, codes
from .slots import PAST, PAST_CODES, PRESENT, PRESENT_CODES, Slot, slots, strides
from .text import TextModel
from .visual import RowPlaces, VisualRows, take_shown

INT64, INT32 = ir.DataType.INT64, ir.DataType.INT32


def embedding(graph: Graph, model: TextModel) -> None:
    """`input_ids` `[batch, sequence]` to `inputs_embeds`, with zeros where features that are added later would stand."""
    ids = graph.input("input_ids", INT64, ("batch_size", "sequence_length"))
    table = graph.piece(graph.store.place(model.embedding))
    rows = graph.op("Gather", table, ids, axis=0)
    rows = graph.cast(rows, graph.compute)
    if model.deepstack:
        rows = graph.op("Pad", rows, [0, 0, 0, 0, 0, model.input_width - model.sizes.hidden_size])
    graph.output(rows, "inputs_embeds", graph.compute, ("batch_size", "sequence_length", model.input_width))


def prefill(graph: Graph, model: TextModel, grids: tuple[Grid, ...]) -> None:
    """The first call of prompts with pictures that all have these grids: text and visual rows apart, the cache from empty.

    `visual_starts` `[batch, images]` are the places of each sample's images, ascending; one that a sample lacks stands in its padding.
    """
    embeds, mask, positions = inputs(graph, model, "sequence_length")
    starts = graph.input("visual_starts", INT64, ("batch_size", "images"))
    scene = _scene(graph, grids, embeds, mask, starts)
    turn = rotary(graph, model, positions)
    text_turn, visual_turn = (_turn_of_rows(graph, turn, where, scene.batch) for where in (scene.text_slots, scene.visual_slots))
    keys = {stride: _new_keys(graph, scene, stride) for stride in strides(model)}
    hidden, epsilon = model.sizes.hidden_size, model.epsilon
    rows, *deepstack = apart(graph, model, graph.rows(embeds, scene.visual_slots))
    visual = VisualRows(graph, scene, rows, visual_turn, epsilon, hidden)
    masks = TextMaskNodes(graph, keys, scene.text_slots)
    text, *_ = apart(graph, model, graph.rows(embeds, scene.text_slots))
    call = DecoderCall(scene.batch, text, text_turn, masks, visual=visual, deepstack=tuple(deepstack))
    present = run(graph, model, call)
    outputs(graph, model, call, present, {stride: one.codes for stride, one in keys.items()}, "key_length")


def continuation(graph: Graph, model: TextModel) -> None:
    """Text after what the cache holds, which may be nothing: decoding, further text, prompts without pictures."""
    embeds, mask, positions = inputs(graph, model, "total_length")
    batch, length = graph.axis(embeds, 0), graph.axis(embeds, 1)
    valid = graph.cast(graph.slice(mask, graph.op("Neg", length), NOWHERE, 1), ir.DataType.BOOL)
    new = codes(graph, valid, TEXT)
    queries = graph.unsqueeze(graph.range(length), 0)
    keys = {}
    for stride in strides(model):
        old = graph.input(f"{PAST_CODES}.{stride}", INT32, ("batch_size", f"past_keys_{stride}"))
        # Everything in the cache comes before every new row.
        before = graph.expand(graph.constant([[-1]]), 1, graph.axis(old, 1))
        keys[stride] = Keys(graph.op("Concat", old, new, axis=1), graph.op("Concat", before, queries, axis=1))
    past = {slot: past_pair(graph, model, slot) for slot in slots(model)}
    text, *deepstack = apart(graph, model, graph.reshape(embeds, -1, model.input_width))
    masks = TextMaskNodes(graph, keys, queries)
    call = DecoderCall(batch, text, rotary(graph, model, positions), masks, past, deepstack=tuple(deepstack))
    present = run(graph, model, call)
    outputs(graph, model, call, present, {stride: one.codes for stride, one in keys.items()}, "total_keys")


def inputs(graph: Graph, model: TextModel, total: str) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Embeddings of a call, mask of all tokens so far, positions of the call."""
    embeds = graph.input("inputs_embeds", graph.compute, ("batch_size", "sequence_length", model.input_width))
    mask = graph.input("attention_mask", INT64, ("batch_size", total))
    axes = (len(model.rotary.sections),) if model.rotary.sections else ()
    return embeds, mask, graph.input("position_ids", INT64, (*axes, "batch_size", "sequence_length"))


def apart(graph: Graph, model: TextModel, rows: ir.Value) -> list[ir.Value]:
    """Rows `[rows, input width]` as those that enter the first layer, and what is added to them after each of the first layers."""
    hidden = model.sizes.hidden_size
    return [graph.slice(rows, hidden * depth, hidden * (depth + 1), 1) if model.deepstack else rows for depth in range(1 + model.deepstack)]


def past_pair(graph: Graph, model: TextModel, slot: Slot) -> Pair:
    """K and V of earlier calls."""
    dims = ("batch_size", slot.heads, f"past_keys_{slot.kind.stride}", model.sizes.head_dim)
    key, value = (graph.input(f"{PAST}.{slot.number}.{part}", graph.compute, dims) for part in ("key", "value"))
    return key, value


def outputs(
    graph: Graph, model: TextModel, call: DecoderCall, present: Mapping[Slot, Pair], key_codes: Mapping[int, ir.Value], length: str
) -> None:  # fmt: skip
    """Logits of the last token, K and V by slot, codes of keys by stride."""
    graph.output(logits(graph, model, call), "logits", graph.compute, ("batch_size", 1, model.vocabulary))
    for slot, pair in present.items():
        dims = ("batch_size", slot.heads, f"{length}_{slot.kind.stride}", model.sizes.head_dim)
        for part, value in zip(("key", "value"), pair, strict=True):
            graph.output(value, f"{PRESENT}.{slot.number}.{part}", graph.compute, dims)
    for stride, value in key_codes.items():
        graph.output(value, f"{PRESENT_CODES}.{stride}", INT32, ("batch_size", f"{length}_{stride}"))


def _scene(graph: Graph, grids: tuple[Grid, ...], embeds: ir.Value, mask: ir.Value, starts: ir.Value) -> RowPlaces:
    """Where text and visual rows stand: the images' places, and all others in their order."""
    batch, images = graph.axis(embeds, 0), graph.axis(starts, 1)
    tokens = sum(grid.tokens for grid in grids)
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
    return RowPlaces(grids, batch, images, starts, text, there[0], visual, there[1])


def _turn_of_rows(graph: Graph, turn: Pair, where: ir.Value, batch: ir.Value) -> Pair:
    """Cosine and sine `[batch, rows, width]`, of `[batch or 1, length, width]`, at places `[batch, rows]`."""
    width = graph.axis(turn[0], 2)
    cosine, sine = (graph.reshape(graph.rows(graph.expand(part, batch, 1, 1), where), batch, -1, width) for part in turn)
    return cosine, sine


def _new_keys(graph: Graph, scene: RowPlaces, stride: int) -> Keys:
    """The keys of a prefill in heads of one kind: visual ones first."""
    text_codes = codes(graph, scene.text_valid, TEXT)
    if stride == TEXT_ONLY:
        return Keys(text_codes, scene.text_slots)
    visual = codes(graph, scene.visual_valid, VISUAL), scene.visual_slots
    shown = [
        graph.reshape(take_shown(graph, graph.reshape(part, -1, scene.tokens), scene.grids, stride, 1), scene.batch, -1) for part in visual
    ]
    return Keys(graph.op("Concat", shown[0], text_codes, axis=1), graph.op("Concat", shown[1], scene.text_slots, axis=1))
