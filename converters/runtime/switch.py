"""Switching something off within a `with` block, for the thread that runs it alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_OFF: ContextVar[frozenset[int]] = ContextVar("off", default=frozenset())
"""The identities of what is switched off here."""


@contextmanager
def switched_off(thing: object) -> Iterator[None]:
    """Within this context `is_off(thing)` is true, for this thread (or asyncio task) alone. Contexts may be nested."""
    token = _OFF.set(_OFF.get() | {id(thing)})
    try:
        yield
    finally:
        _OFF.reset(token)


def is_off(thing: object) -> bool:
    """Whether this runs within `switched_off(thing)`."""
    return id(thing) in _OFF.get()
