"""What long work says while it is under way: to a callback of the caller's, which draws a bar, writes a log, or does nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Progress:
    """How far a piece of work is: `done` of `total`, in `unit` (samples, steps, bytes). `detail` are figures in words."""

    work: str
    done: int
    total: int
    unit: str
    detail: str = ""


@dataclass(frozen=True)
class SearchProgress:
    """How far a search for plans is: the share of the dense visual FLOPs and the logit drift of the plan at hand, and what was used."""

    share: float
    logit_drift: float
    passes: float
    most_passes: float
    memory_bytes: int
    disk_bytes: int


@dataclass(frozen=True)
class Message:
    """Something to know while it happens; a `warning` is to be known before the result is trusted."""

    text: str
    warning: bool = False


Event: TypeAlias = Progress | SearchProgress | Message
Listener: TypeAlias = Callable[[Event], None]


def unheard(event: Event) -> None:
    """The listener of who does not listen."""
