"""One decoder graph for every call: embeddings carry a flag that marks visual rows, and a cache slot of its own remembers the flags.

Runtimes with a contract of their own pass no more than embeddings, mask and positions. From the flags of all tokens so far follow the
rows of both streams and what every cached key is, in the first call as in later ones. Pictures come with the first call; a sample
has as many visual tokens as any other of its batch, padding stands among its text. What does not fit ends in an error of the runtime.
"""

from dataclasses import dataclass

import onnx_ir as ir

from ...runtime.layout import TEXT_ONLY
from ...runtime.plan import Grid
from ...runtime.stride import shown_tokens
from .builder import Graph
from .masks import NOWHERE, TEXT, VISUAL, Keys, codes
from .visual import take_shown


@dataclass(frozen=True)
class FlagTimeline:
    """A sequence as one call sees it. Positions count the tokens of the padded sequence, rows those of this call.

    `remembered` `[batch, 1, total, 1]` are the flags so far, the first cache slot. `visual` `[batch, visual tokens]` and `text`
    `[batch, text tokens]` are positions of all tokens, `queries` `[batch, text rows]` those of this call's text; `valid` `[batch, text
    tokens]` is False where text is padding. `visual_rows` and `text_rows` `[batch, rows]` point into the call.
    """

    graph: Graph
    grid: Grid
    remembered: ir.Value
    visual: ir.Value
    text: ir.Value
    valid: ir.Value
    queries: ir.Value
    visual_rows: ir.Value
    text_rows: ir.Value

    def images(self, tokens: ir.Value) -> ir.Value:
        """How many images these visual tokens `[batch, n]` are, `[1]`."""
        return self.graph.op("Div", self.graph.axis(tokens, 1), [self.grid.tokens])

    def keys(self, stride: int) -> Keys:
        """All keys of the KV heads that hold this share of the visual tokens: visual columns first, then text."""
        graph = self.graph
        text_codes = codes(graph, self.valid, TEXT)
        if stride == TEXT_ONLY:
            return Keys(text_codes, self.text)
        visual = self.visual if stride == 1 else self._shown(stride)
        visual_codes = codes(graph, graph.op("Less", visual, NOWHERE), VISUAL)
        return Keys(graph.concat([visual_codes, text_codes], 1), graph.concat([visual, self.text], 1))

    def _shown(self, stride: int) -> ir.Value:
        """Positions `[batch, visual columns]` of the tokens that a stride shows, image after image."""
        graph = self.graph
        batch, images = graph.axis(self.visual, 0), self.images(self.visual)
        whole = graph.op("Reshape", self.visual, graph.dims(batch, images, self.grid.tokens), allowzero=1)
        shown = take_shown(graph, whole, (self.grid,), stride, 2)
        return graph.op("Reshape", shown, graph.dims(batch, graph.op("Mul", images, [len(shown_tokens(self.grid, stride))])), allowzero=1)


def timeline(graph: Graph, flags: ir.Value, past: ir.Value, attention_mask: ir.Value, grid: Grid) -> FlagTimeline:
    """`flags` `[batch, rows, 1]` of this call after those of `past` `[batch, 1, past, 1]`; `attention_mask` `[batch, total]`."""
    remembered = graph.concat([past, graph.unsqueeze(flags, 1)], 2)
    batch, before = graph.axis(flags, 0), graph.axis(past, 2)
    marked = graph.op("Greater", graph.reshape(remembered, batch, -1), 0.5)
    marked_now = graph.op("Greater", graph.reshape(flags, batch, -1), 0.5)
    visual, text = _where(graph, marked), _where(graph, graph.op("Not", marked))
    visual_rows, text_rows = _where(graph, marked_now), _where(graph, graph.op("Not", marked_now))
    visual_rows = graph.op("Add", visual_rows, _zero_unless_late(graph, visual_rows, before))
    valid = graph.cast(graph.op("GatherElements", attention_mask, text, axis=1), ir.DataType.BOOL)
    queries = graph.op("Add", text_rows, before)
    return FlagTimeline(graph, grid, remembered, visual, text, valid, queries, visual_rows, text_rows)


def visual_columns(grid: Grid, stride: int) -> int:
    """Columns that one image takes in the cache of KV heads that hold this share of the visual tokens."""
    return 0 if stride == TEXT_ONLY else len(shown_tokens(grid, stride))


def _where(graph: Graph, marked: ir.Value) -> ir.Value:
    """Places `[batch, n]` of the True values of `[batch, rows]`; samples that have different numbers of them fail in the Reshape."""
    places = graph.op("Gather", graph.op("NonZero", marked), 1, axis=0)
    counts = graph.op("ReduceSum", graph.cast(marked, ir.DataType.INT64), [1], keepdims=0)
    shape = graph.dims(graph.axis(marked, 0), graph.op("ReduceMax", counts, [0], keepdims=1))
    return graph.op("Reshape", places, shape, allowzero=1)


def _zero_unless_late(graph: Graph, visual_rows: ir.Value, before: ir.Value) -> ir.Value:
    """Zero `[1]`; an index out of range where visual rows come after another call, since visual columns are the first of the cache."""
    late = graph.op("Min", graph.op("Mul", graph.axis(visual_rows, 1), before), [1])
    value = graph.op("Gather", [0], late, axis=0)
    node = value.producer()
    assert node is not None
    node.name = "pictures_come_with_the_first_call_only"
    return value
