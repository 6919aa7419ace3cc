"""The dense decoder with the plan as masks: for consumers that cannot take the split one. It computes everything and saves nothing.

The code of a key is 0 for padding, 1 for text, and 2 and more for the tokens of the images, counted through the images of a sample.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
import torch

from ...runtime.attention import sees
from ...runtime.layout import LayerLayout
from ...runtime.plan import Grid, Plan
from ...runtime.token_split import token_phases
from .builder import Graph
from .calls import INT32, INT64, inputs, outputs, past_pair
from .decoder import Call, Layer, run
from .heads import Pair, attend, rotary
from .masks import additive, code, seen_or_nothing
from .slots import PAST_CODES, Slot, slots
from .text import TextModel

FIRST_VISUAL = 2


def masked(graph: Graph, model: TextModel, grid: Grid) -> None:
    """Every call: `visual_starts` `[batch, images]` are the places of images in this call, of which there may be none."""
    assert model.plan is not None
    dense = replace(model, plan=None)
    embeds, mask, positions = inputs(graph, dense, "total_length")
    starts = graph.input("visual_starts", INT64, ("batch_size", "images"))
    old = graph.input(f"{PAST_CODES}.0", INT32, ("batch_size", 1, "past_keys_0"))
    new = _codes(graph, grid, embeds, mask, starts)
    keys = graph.op("Concat", old, graph.unsqueeze(new, 1), axis=2)
    before = graph.expand(graph.constant([[-1]]), 1, graph.axis(old, 2))
    order = graph.unsqueeze(graph.range(graph.axis(embeds, 1)), 0)
    scene = _Masked(graph, model, grid, new, graph.op("Squeeze", keys, [1]), order, graph.op("Concat", before, order, axis=1))
    past = {slot: past_pair(graph, dense, slot) for slot in slots(dense)}
    text = graph.reshape(embeds, -1, model.sizes.hidden_size)
    turns, visual_rows = rotary(graph, model, positions), graph.unsqueeze(scene.visual(new), 2, 3)
    computing = [layout.computing for layout in model.layouts if layout is not None]
    call = Call(
        graph.axis(embeds, 0), text, turns, _NoMasks(), past,
        attend=scene.attend, edit=scene.edit, visual_rows=visual_rows, computing=computing,
    )  # fmt: skip
    present = run(graph, dense, call)
    outputs(graph, dense, call, present, {0: keys}, "total_keys")


def _codes(graph: Graph, grid: Grid, embeds: ir.Value, mask: ir.Value, starts: ir.Value) -> ir.Value:
    """Codes `[batch, sequence]` of a call's rows."""
    length = graph.axis(embeds, 1)
    within = graph.op("Sub", graph.unsqueeze(graph.range(length), 0, 2), graph.unsqueeze(starts, 1))
    inside = graph.op("And", graph.op("GreaterOrEqual", within, 0), graph.op("Less", within, grid.tokens))
    number = graph.op("Add", within, graph.op("Mul", graph.range(graph.axis(starts, 1)), grid.tokens))
    token = graph.op("ReduceSum", graph.op("Where", inside, graph.op("Add", number, 1), 0), [2], keepdims=0)
    valid = graph.slice(mask, graph.op("Neg", length), 2**31 - 1, 1)
    return graph.cast(graph.op("Mul", graph.op("Add", token, 1), valid), INT32)


class _NoMasks:
    """`attend` makes its own, since they differ by layer."""

    def of(self, kind: object) -> None:
        return None


@dataclass
class _Masked:
    """Rows of a call by their codes: of queries `[batch, queries]`, of keys `[batch, keys]`, and their places in time."""

    graph: Graph
    model: TextModel
    grid: Grid
    queries: ir.Value
    keys: ir.Value
    query_slots: ir.Value
    key_slots: ir.Value
    _made: dict[Hashable, ir.Value] = field(default_factory=dict)

    def attend(self, layer: Layer, slot: Slot, queries: ir.Value, pair: Pair) -> ir.Value:
        """Attention of all rows under the layer's mask."""
        sizes, allowed = self.model.sizes, self._allowed(layer.index)
        found = attend(self.graph, queries, *pair, self._mask(allowed), sizes.head_dim, sizes.group)
        return seen_or_nothing(self.graph, found, allowed) if self._layout(layer.index).self_phases > 1 else found

    def edit(self, index: int, part: str, rows: ir.Value) -> ir.Value:
        """Visual rows have the layer's heads and neurons alone, and no update where it has none."""
        layout, size = self._layout(index), self.model.sizes.head_dim
        own = {
            "heads": np.repeat(layout.computes, size),
            "attention": np.full(self.model.sizes.hidden_size, any(layout.computes)),
            "neurons": np.arange(len(layout.neuron_order)) < layout.neurons,
            "ffn": np.full(self.model.sizes.hidden_size, layout.neurons > 0),
        }[part]
        if own.all():
            return rows
        if "visual" not in self._made:
            self._made["visual"] = self.graph.reshape(self.visual(self.queries), -1, 1)
        hidden = self.graph.op("And", self._made["visual"], np.logical_not(own)[None])
        return self.graph.op("Where", hidden, np.zeros((), self.graph.numpy_dtype), rows)

    def _layout(self, index: int) -> LayerLayout:
        layout = self.model.layouts[index]
        assert layout is not None
        return layout

    def visual(self, codes: ir.Value) -> ir.Value:
        """Which rows are visual ones."""
        return self.graph.op("GreaterOrEqual", codes, code(FIRST_VISUAL))

    def _mask(self, allowed: ir.Value) -> ir.Value:
        """What is added to the scores."""
        if ("added", id(allowed)) not in self._made:
            self._made["added", id(allowed)] = additive(self.graph, allowed)
        return self._made["added", id(allowed)]

    def _allowed(self, index: int) -> ir.Value:
        """`[batch, heads, queries, keys]`, shared by layers that show the same."""
        graph, layout = self.graph, self._layout(index)
        reads, shows = _shown(layout, self.grid, layout.reads), _shown(layout, self.grid, layout.computes)
        key = (reads.tobytes(), layout.window, shows.tobytes() if layout.self_phases > 1 else b"")
        if key not in self._made:
            visual = graph.unsqueeze(self.visual(self.queries), 1, 3)
            by_text = graph.op("And", self._earlier(), self._read(reads))
            by_visual = self._by_visual(layout.window)
            if layout.self_phases > 1:
                by_visual = graph.op("And", by_visual, self._read(shows))
            allowed = graph.choose(visual, by_visual, by_text)
            padding = graph.op("Equal", graph.unsqueeze(self.queries, 1, 3), code(0))
            itself = graph.op("Equal", graph.unsqueeze(self.key_slots, 1, 2), graph.unsqueeze(self.query_slots, 1, 3))
            self._made[key] = graph.op("Or", allowed, graph.op("And", padding, itself))
        return self._made[key]

    def _earlier(self) -> ir.Value:
        """Keys up to each query, `[batch, 1, queries, keys]`."""
        if "earlier" not in self._made:
            graph = self.graph
            before = graph.op("LessOrEqual", graph.unsqueeze(self.key_slots, 1, 2), graph.unsqueeze(self.query_slots, 1, 3))
            self._made["earlier"] = graph.op("And", before, graph.op("Greater", graph.unsqueeze(self.keys, 1, 2), code(0)))
        return self._made["earlier"]

    def _read(self, reads: np.ndarray) -> ir.Value:
        """Keys that text may see in each head, `[batch, heads, 1, keys]`; `reads` `[heads, 1 + tokens]` begins with text."""
        graph = self.graph
        found = graph.op("Transpose", graph.op("Gather", reads, self._tokens(self.keys, 1), axis=1), perm=[1, 0, 2])
        return graph.unsqueeze(found, 2)

    def _tokens(self, codes: ir.Value, first: int) -> ir.Value:
        """Token numbers within the image, from `first` on; 0 for text."""
        token = self.graph.op("Mod", self.graph.op("Sub", codes, code(FIRST_VISUAL)), code(self.grid.tokens))
        return self.graph.op("Where", self.visual(codes), self.graph.op("Add", token, code(first)), code(0))

    def _by_visual(self, window: int | None) -> ir.Value:
        """Keys that visual queries see, `[batch, 1, queries, keys]`: earlier text, and what the window shows of their image."""
        graph, plan = self.graph, self.model.plan
        assert plan is not None
        if window is None:
            return self._earlier()
        if ("window", window) not in self._made:
            text = graph.op("Not", graph.unsqueeze(self.visual(self.keys), 1, 2))
            query, key = (graph.op("Sub", codes, code(FIRST_VISUAL)) for codes in (self.queries, self.keys))
            images = [graph.op("Div", number, code(self.grid.tokens)) for number in (query, key)]
            same = graph.op("Equal", graph.unsqueeze(images[1], 1, 2), graph.unsqueeze(images[0], 1, 3))
            place = graph.op("Mul", graph.unsqueeze(self._tokens(self.queries, 0), 1, 3), code(self.grid.tokens))
            pair = graph.op("Add", place, graph.unsqueeze(self._tokens(self.keys, 0), 1, 2))
            near = graph.op("And", graph.op("Gather", _windows(self.grid, window, plan), pair, axis=0), same)
            self._made["window", window] = graph.choose(text, self._earlier(), near)
        return self._made["window", window]


def _windows(grid: Grid, window: int, plan: Plan) -> np.ndarray:
    """Who sees whom in an image, `[tokens * tokens]`."""
    tokens = torch.arange(grid.tokens)
    seen: np.ndarray = sees(tokens[:, None], tokens[None], grid, window, plan.locality, plan.window_frames).flatten().numpy()
    return seen


def _shown(layout: LayerLayout, grid: Grid, heads: Sequence[bool]) -> np.ndarray:
    """`[heads, 1 + tokens]`: what these query heads show; the first column stands for text."""
    group = len(layout.query_order) // len(layout.kv_order)
    table = np.ones((len(layout.query_order), 1 + grid.tokens), bool)
    for part in layout.ranges:
        held = np.array(token_phases(grid, max(1, part.phases))) == part.lattice
        for head in range(part.first * group, part.last * group):
            table[head, 1:] = heads[head] & held
    return table
