"""How much memory this process took at its highest."""

import sys
import threading
from pathlib import Path
from types import TracebackType

STATUS = Path("/proc/self/status")
PERIOD_SECONDS = 0.05
PRIVATE = ("RssAnon:", "RssShmem:")


class PeakMemory:
    """Watches the process within a `with` block. Pages of mapped files, which the system can drop, are not counted.

    Where the system does not tell them apart (no /proc), `bytes` is the process's whole peak.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self.sample()

    def sample(self) -> int:
        """Look once more, and return the highest figure so far."""
        self.bytes = max(self.bytes, resident_bytes())
        return self.bytes

    def _watch(self) -> None:
        while not self._stop.wait(PERIOD_SECONDS):
            self.sample()


def resident_bytes() -> int:
    """Bytes of memory that are this process's own."""
    try:
        lines = STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        import resource  # there is none on Windows, and no need for it on Linux

        highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return highest if sys.platform == "darwin" else highest * 1024
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(PRIVATE))
