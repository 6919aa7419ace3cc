"""Changed documents and files: what Hypothesis draws, and how it is applied."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

NESTED = "[" * 3000 + "]" * 3000
LONG = "9" * 5000
HOSTILE: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 7, 3.5, -0.0, 1e308, 10**9, 10**18, 10**30, 2**63, "", "x", "0-999999999", "7-0", "../x", "\x1b[2J",
    "\u2028", "a" * 10000, [], {}, [1], ["x"], [[0, 0, 0]], [[10**9, 10**9, 1]], {"a": 1}, float("nan"), float("inf"),
)  # fmt: skip
RAW = (NESTED, LONG, "1e999", "NaN", '"\\ud800"', "-", "{", '{"a": 1, "a": 2}')
"""Texts in the place of a value, which the json module would not write."""
MARK = "\ue000mark\ue000"

Change = tuple[str, int, Any]


def changes() -> st.SearchStrategy[Change]:
    """What to do, to which place of all (counted), and with what."""
    value = st.sampled_from(HOSTILE) | st.integers() | st.text(max_size=20) | st.floats()
    return st.one_of(
        st.tuples(st.just("replace"), st.integers(0, 10**6), value),
        st.tuples(st.just("raw"), st.integers(0, 10**6), st.sampled_from(RAW)),
        st.tuples(st.sampled_from(("remove", "twice", "add")), st.integers(0, 10**6), value),
        st.tuples(st.sampled_from(("cut", "byte", "empty", "bom", "latin")), st.integers(0, 10**6), st.integers(0, 255)),
    )


def changed(document: Any, change: Change) -> bytes:
    """The document's text after the change."""
    kind, place, value = change
    data = json.loads(json.dumps(document))
    spots = list(_spots(data))
    holder, key = spots[place % len(spots)]
    if kind in ("replace", "raw"):
        holder[key] = value if kind == "replace" else MARK
    elif kind == "remove":
        del holder[key]
    elif kind == "twice" and isinstance(holder, list):
        holder.insert(key, holder[key])
    elif kind == "add" and isinstance(holder, dict):
        holder["unknown"] = value
    text = json.dumps(data).encode()
    if kind == "raw":
        text = text.replace(json.dumps(MARK).encode(), value.encode())
    return damaged(text, change)


def damaged(data: bytes, change: Change) -> bytes:
    """The bytes after a change that does not know what they mean."""
    kind, place, value = change
    at = place % max(1, len(data))
    if kind == "cut":
        return data[:at]
    if kind == "byte":
        return data[:at] + bytes([value]) + data[at + 1 :]
    if kind == "empty":
        return b""
    return {"bom": b"\xef\xbb\xbf" + data, "latin": data[:at] + b"\xe4" + data[at:]}.get(kind, data)


def _spots(data: Any) -> Iterator[tuple[Any, Any]]:
    """Every holder and key of a document."""
    for key, value in list(data.items() if isinstance(data, dict) else enumerate(data)):
        yield data, key
        if isinstance(value, dict | list):
            yield from _spots(value)


FILES: dict[str, Callable[[Path], object]] = {
    "fifo": lambda path: (path.unlink(), os.mkfifo(path)),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "zero": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "loop": lambda path: (path.unlink(), path.symlink_to(path)),
    "dangling": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "gone": lambda path: path.unlink(),
    "huge": lambda path: os.truncate(path, 1 << 40),
}
"""Something else in a file's place."""


def drawn(strategy: st.SearchStrategy[Any], cases: int, number: int, body: Callable[[Any], None]) -> None:
    """Call `body` with so many examples, the same ones for the same number."""

    @seed(number)
    @settings(max_examples=cases, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(strategy)
    def every(example: Any) -> None:
        body(example)

    every()
