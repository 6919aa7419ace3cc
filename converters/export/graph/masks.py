"""Masks of text queries, made inside a graph from what its keys are and where they stand.

A key has a *code*, 0 for none (padding), 1 for a visual token, 2 for a text token, and a *slot*, its place in the padded sequence.
Masks are added to scores and finite: a row without any key would be NaN in some runtimes, so every query sees itself.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ...runtime.attention import HeadKind
from .builder import Graph

NONE, VISUAL, TEXT = 0, 1, 2
NOWHERE = 2**31 - 1
"""The slot of a key that does not exist: after every query."""


@dataclass(frozen=True)
class Keys:
    """The keys of one kind of KV heads: int32 `codes` `[batch, offsets, keys]`, int64 `slots` `[batch or 1, offsets or 1, keys]`."""

    codes: ir.Value
    slots: ir.Value


def code(number: int) -> Any:
    return np.array(number, np.int32)


def codes(graph: Graph, valid: ir.Value, kind: int) -> ir.Value:
    """Codes of keys that are of one kind where they are valid (a boolean)."""
    return graph.op("Where", valid, code(kind), code(NONE))


def additive(graph: Graph, allowed: ir.Value) -> ir.Value:
    """0 where a key is seen; else half of the least number, so that a score cannot overflow it."""
    never = np.array(np.finfo(graph.numpy_dtype).min / 2, graph.numpy_dtype)
    return graph.op("Where", allowed, np.array(0, graph.numpy_dtype), never)


class TextMasks:
    """Masks of one call's text queries, whose slots are `queries` `[batch or 1, text rows]`. Layers of the same kind share them."""

    def __init__(self, graph: Graph, keys: dict[int, Keys], queries: ir.Value) -> None:
        self.graph, self.keys = graph, keys
        self.queries = graph.unsqueeze(queries, 1, 3)
        self._visible: dict[int, ir.Value] = {}
        self._masks: dict[HeadKind, ir.Value] = {}

    def of(self, kind: HeadKind) -> ir.Value:
        """What is added to the scores, `[batch, 1 or query heads, queries, keys]`."""
        if kind not in self._masks:
            self._masks[kind] = additive(self.graph, self._allowed(kind))
        return self._masks[kind]

    def _allowed(self, kind: HeadKind) -> ir.Value:
        graph, group = self.graph, len(kind.query_heads) // len(kind.kv_heads)
        allowed = self._seen(kind.stride)
        if kind.offsets:
            allowed = graph.op("Gather", allowed, [offset for offset in kind.offsets for _ in range(group)], axis=1)
        if kind.stride == 0 or all(kind.reads):
            return allowed
        reads = np.array(kind.reads)[:, None, None]
        text = graph.op("Not", graph.op("Equal", self._codes(kind, group), code(VISUAL)))
        return graph.op("And", allowed, graph.op("Or", graph.unsqueeze(text, 2), reads))

    def _codes(self, kind: HeadKind, group: int) -> ir.Value:
        """Codes of the keys of each query head, `[batch, 1 or query heads, keys]`."""
        found = self.keys[kind.stride].codes
        return self.graph.op("Gather", found, [one for one in kind.offsets for _ in range(group)], axis=1) if kind.offsets else found

    def _seen(self, stride: int) -> ir.Value:
        """Keys up to each query's slot, `[batch, offsets, queries, keys]`."""
        if stride not in self._visible:
            graph, keys = self.graph, self.keys[stride]
            places, there = graph.unsqueeze(keys.slots, 2), graph.unsqueeze(graph.op("Greater", keys.codes, code(NONE)), 2)
            before = graph.op("And", graph.op("LessOrEqual", places, self.queries), there)
            self._visible[stride] = graph.op("Or", before, graph.op("Equal", places, self.queries))
        return self._visible[stride]
