"""One attack: a command in a process of its own, watched from outside, and what it left behind."""

import os
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from yopo_cli.app import main

MEMORY = 8 << 30  # more than any case needs
KINDS = ("tried", "tracebacks", "wrong", "leftovers", "hangs")


@dataclass(frozen=True)
class Ended:
    """How a process ended: its status (negative: by a signal), what it printed, and whether its time was up."""

    status: int
    stdout: str
    stderr: str
    late: bool = False


@dataclass
class Tally:
    """Counts by kind, and the first examples of what went wrong. Progress is shown as it comes."""

    area: str
    counts: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, kind: str, example: str) -> None:
        self.counts[kind] += 1
        if len(self.examples) < 20:
            self.examples.append(f"{self.area}: {kind}: {example}")

    def judged(self, ended: Ended, what: str) -> Ended:
        """Count one case by how it ended: a sentence and a hint for every refusal, and never a traceback."""
        self.counts["tried"] += 1
        if ended.late:
            self.add("hangs", what)
        elif "Traceback" in ended.stderr or ended.status not in (0, 1, 2, 3, 130):
            self.add("tracebacks", f"{what}: status {ended.status}, {ended.stderr.strip()[-400:]}")
        elif ended.status == 1 and not ("Error: " in ended.stderr and "Hint: " in ended.stderr):
            self.add("wrong", f"{what}: no sentence and hint in {ended.stderr.strip()[-300:]!r}")
        elif ended.status == 1 and ended.stdout:
            self.add("wrong", f"{what}: refused, but printed {ended.stdout[:100]!r}")
        return ended


def start(work: Callable[[], object], folder: Path) -> int:
    """Run `work` in a child process that begins as a copy of this one; its output goes to files in `folder`. Returns its number."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        os.setpgid(0, 0)
        for number, name in ((1, "stdout"), (2, "stderr")):
            file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(file, number)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        work()
        status = 0
    except SystemExit as ending:
        status = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except OSError:
            status = status or 120
        os._exit(status)


def wait(child: int, folder: Path, seconds: float) -> Ended:
    """Wait for a child, but not longer than that."""
    until, late = time.monotonic() + seconds, False
    while True:
        number, status = os.waitpid(child, os.WNOHANG)
        if number:
            break
        if time.monotonic() > until:
            late = True
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            break
        time.sleep(0.002)
    read = ((folder / name).read_text(errors="replace") for name in ("stdout", "stderr"))
    return Ended(os.waitstatus_to_exitcode(status), *read, late)


def run(work: Callable[[], object], folder: Path, seconds: float = 60.0) -> Ended:
    """The whole of it."""
    return wait(start(work, folder), folder, seconds)


def yopo(*words: object) -> Callable[[], None]:
    """The command line."""

    def work() -> None:
        sys.argv = ["yopo", *map(str, words)]
        main()

    return work


def hidden(folder: Path) -> list[str]:
    """What runs left in a folder that they should have cleaned."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(".") or path.name.endswith((".partial", ".unhealed")))
