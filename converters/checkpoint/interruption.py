"""Signals that end the process: they unwind it as Ctrl-C does, once, and wait while something must not be cut in two."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interruption:
    """How many blocks make signals wait, whether one has arrived, and whether it was raised: the first is, and no other."""

    def __init__(self) -> None:
        self.waits, self.arrived, self.raised = 0, False, False

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.arrived = True
        self.deliver()

    def deliver(self) -> None:
        """Raise KeyboardInterrupt for a signal that has arrived, unless it has to wait."""
        if self.arrived and not self.waits and not self.raised:
            self.raised = True
            raise KeyboardInterrupt

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Let signals through in a block: the long one, whose caller cleans up."""
        waits, self.waits = self.waits, 0
        try:
            self.deliver()
            yield
        finally:
            self.waits = waits


_current: Interruption | None = None


@contextmanager
def uninterrupted() -> Iterator[Interruption]:
    """Make signals wait until the block ends, but where it admits them; one that has waited then raises KeyboardInterrupt.

    Blocks may be nested. Only the main thread may handle signals; in others, and where a caller handles one itself, it is left alone.
    """
    global _current
    if threading.current_thread() is not threading.main_thread():
        yield Interruption()
        return
    outer, state = _current, _current or Interruption()
    # Under nohup SIGHUP is ignored, and stays so.
    usual = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.getsignal(number) for number in ENDING if outer is None and signal.getsignal(number) in usual}
    state.waits += 1
    _current = state
    for number in before:
        signal.signal(number, state.handle)
    try:
        yield state
    finally:
        _current = outer
        for number, handler in before.items():
            signal.signal(number, handler)
        state.waits -= 1
    state.deliver()
