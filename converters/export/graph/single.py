"""The graphs of runtimes that have one decoder for every call: text and visual rows arrive in one tensor, with a flag as last channel.

Cache slot 0 is the timeline, the flags of all tokens so far; the slots of K and V follow from number 1.
"""

import numpy as np
import onnx_ir as ir

from ...runtime.plan import Grid
from .builder import Graph
from .decoder import DecoderCall, logits, run
from .heads import Pair, rotary
from .masks import TextMaskNodes
from .slots import PAST, PRESENT, Slot, slots, strides
from .text import TextModel
from .timeline import FlagTimeline, timeline, visual_columns
from .visual import RowPlaces, VisualRows

INT64, FLOAT = ir.DataType.INT64, ir.DataType.FLOAT
ATTENTION_OPSET = 22
"""The newest opset without the operator Attention, which refuses empty tensors: in most calls there are no visual rows."""


def embedding(graph: Graph, model: TextModel, ids_dtype: ir.DataType, image_token: int | None) -> None:
    """`input_ids` `[batch, sequence]` to `inputs_embeds` `[batch, sequence, hidden + 1]`, float32 whatever is computed in.

    With an `image_token`, rows of `image_features` `[visual tokens, hidden + 1]` are put in its places; otherwise the runtime does that.
    """
    ids = graph.input("input_ids", ids_dtype, ("batch_size", "sequence_length"))
    table = graph.piece(graph.store.place(model.embedding))
    rows = graph.cast(graph.op("Gather", table, ids, axis=0), FLOAT)
    flags = graph.op("Expand", np.zeros((), np.float32), graph.op("Concat", graph.op("Shape", ids), [1], axis=0))
    rows = graph.op("Concat", rows, flags, axis=-1)
    width = model.sizes.hidden_size + 1
    if image_token is not None:
        features = graph.input("image_features", FLOAT, ("visual_tokens", width))
        places = graph.op("NonZero", graph.op("Equal", graph.cast(ids, INT64), image_token))
        rows = graph.op("ScatterND", rows, graph.op("Transpose", places, perm=[1, 0]), features)
    graph.output(rows, "inputs_embeds", FLOAT, ("batch_size", "sequence_length", width))


def decoder(graph: Graph, model: TextModel, grid: Grid, padded: bool) -> None:
    """All calls. With `padded`, slots are as long as the sequence: zeros stand before what they hold, and are cut off again."""
    width = model.sizes.hidden_size
    embeds = graph.input("inputs_embeds", FLOAT, ("batch_size", "sequence_length", width + 1))
    embeds = embeds if graph.compute == FLOAT else graph.cast(embeds, graph.compute)
    mask = graph.input("attention_mask", INT64, ("batch_size", "total_length"))
    positions = graph.input("position_ids", INT64, ("batch_size", "sequence_length"))
    size = model.sizes.head_dim
    past = {slot: _past(graph, slot.number + 1, slot.heads, size, _length("past", slot, padded)) for slot in slots(model)}
    remembered, _ = _past(graph, 0, 1, 1, "past_length")
    batch, flags = graph.axis(embeds, 0), graph.slice(embeds, width, width + 1, 2)
    if model.plan is None:  # every row is computed as a text row
        flags = graph.op("Mul", flags, 0.0)
    time = timeline(graph, flags, remembered, mask, grid)
    call = _call(graph, model, time, graph.slice(embeds, 0, width, 2), rotary(graph, model, positions), batch)
    before = graph.op("Div", graph.op("Sub", graph.axis(time.visual, 1), graph.axis(time.visual_rows, 1)), [grid.tokens])
    call.past = {slot: _cut(graph, pair, slot, grid, before) if padded else pair for slot, pair in past.items()}
    present = run(graph, model, call)
    graph.output(logits(graph, model, call), "logits", graph.compute, ("batch_size", 1, model.vocabulary))
    for part in ("key", "value"):
        graph.output(time.remembered, f"{PRESENT}.0.{part}", graph.compute, ("batch_size", 1, "total_length", 1))
    images = time.images(time.visual)
    for slot, pair in present.items():
        found = _filled(graph, pair, slot, grid, images) if padded else pair
        _present(graph, slot, found, size, _length("total", slot, padded))


def _past(graph: Graph, number: int, heads: int, size: int, length: str) -> Pair:
    dims = ("batch_size", heads, length, size)
    key, value = (graph.input(f"{PAST}.{number}.{part}", graph.compute, dims) for part in ("key", "value"))
    return key, value


def _length(when: str, slot: Slot, padded: bool) -> str:
    """The name of a slot's length."""
    return f"{when}_length" if padded else f"{when}_keys_{slot.kind.stride}"


def _present(graph: Graph, slot: Slot, pair: Pair, size: int, length: str) -> None:
    for part, value in zip(("key", "value"), pair, strict=True):
        graph.output(value, f"{PRESENT}.{slot.number + 1}.{part}", graph.compute, ("batch_size", slot.heads, length, size))


def _call(graph: Graph, model: TextModel, time: FlagTimeline, embeds: ir.Value, turn: Pair, batch: ir.Value) -> DecoderCall:
    """The rows of this call, apart."""
    hidden = model.sizes.hidden_size
    text_turn, visual_turn = (_rows(graph, turn, where, batch) for where in (time.text_rows, time.visual_rows))
    keys = {one: time.keys(one) for one in strides(model)}
    visual = None
    if model.plan is not None:
        visual = VisualRows(graph, _scene(graph, time, batch), graph.rows(embeds, time.visual_rows), visual_turn, model.epsilon, hidden)
    return DecoderCall(batch, graph.rows(embeds, time.text_rows), text_turn, TextMaskNodes(graph, keys, time.queries), visual=visual)


def _scene(graph: Graph, time: FlagTimeline, batch: ir.Value) -> RowPlaces:
    """Pictures come with the first call, so rows of a call that has any are places in the sequence."""
    images = time.images(time.visual_rows)
    starts = graph.op("Slice", time.visual_rows, [0], [np.iinfo(np.int64).max], [1], [time.grid.tokens])
    fresh = graph.op("Neg", graph.axis(time.text_rows, 1))
    text_valid = graph.slice(time.valid, fresh, np.iinfo(np.int64).max, 1)
    visual_valid = graph.op("GreaterOrEqual", time.visual_rows, 0)
    return RowPlaces((time.grid,), batch, images, starts, time.text_rows, text_valid, time.visual_rows, visual_valid)


def _rows(graph: Graph, turn: Pair, where: ir.Value, batch: ir.Value) -> Pair:
    """Cosine and sine `[batch, length, frequencies]` at rows `[batch, n]`."""
    width = graph.axis(turn[0], 2)
    cosine, sine = (graph.reshape(graph.rows(part, where), batch, -1, width) for part in turn)
    return cosine, sine


def _absent(slot: Slot, grid: Grid) -> int:
    """Visual tokens of one image that a slot does not hold."""
    return grid.tokens - visual_columns(grid, slot.kind.stride)


def _cut(graph: Graph, pair: Pair, slot: Slot, grid: Grid, images: ir.Value) -> Pair:
    """What a slot holds of earlier calls with so many images."""
    if not _absent(slot, grid):
        return pair
    first = graph.op("Mul", images, [_absent(slot, grid)])
    key, value = (graph.slice(part, first, np.iinfo(np.int64).max, 2) for part in pair)
    return key, value


def _filled(graph: Graph, pair: Pair, slot: Slot, grid: Grid, images: ir.Value) -> Pair:
    """K and V with zeros before them, as long as the sequence."""
    if not _absent(slot, grid):
        return pair
    count = graph.op("Mul", images, [_absent(slot, grid)])
    pads = graph.op("Concat", [0, 0], count, [0, 0, 0, 0, 0], axis=0)
    key, value = (graph.op("Pad", part, pads) for part in pair)
    return key, value


def cache_bytes(model: TextModel, grid: Grid, text_tokens: int, itemsize: int, padded: bool) -> int:
    """Bytes of the cache after one picture and so many text tokens, the timeline included."""
    total = grid.tokens + text_tokens
    rows = {slot: total if padded else visual_columns(grid, slot.kind.stride) + text_tokens for slot in slots(model)}
    visual = sum(slot.heads * count for slot, count in rows.items()) * model.sizes.head_dim
    return 2 * (visual + total) * itemsize
