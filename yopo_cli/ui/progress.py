"""Long work on stderr: a bar for each piece of it, which fits 80 columns and 40; in a log, a line now and then."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from converters.processes import rank
from converters.progress import Event, Message, Progress, SearchProgress

from .costs import count_text
from .terminal import say, warn

LINE_SECONDS = 30.0  # between lines where there is no terminal to draw a bar in
RATE_SECONDS = 600.0  # rates are means over the last minutes: a large model on a CPU takes that long for a few samples
NARROW, WIDE = 70, 100  # columns below which figures are left out, and from which there is room for more


@contextmanager
def listening() -> Iterator["Shown"]:
    """A listener that shows what is going on until the block ends."""
    console = Console(stderr=True, quiet=rank() > 0)
    narrow = console.width < NARROW
    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=5 if narrow else 20),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(compact=True),
        console=console,
        speed_estimate_period=RATE_SECONDS,
        disable=not console.is_terminal,
    )
    with bars:
        yield Shown(bars)


class Shown:
    """Bars by the names of their work; without a terminal, the time of the last line."""

    def __init__(self, bars: Bars) -> None:
        self.bars = bars
        self.tasks: dict[str, TaskID] = {}
        self.line_at = monotonic()
        self.disk_bytes = 0  # the most that a search has had on disk

    def __call__(self, event: Event) -> None:
        if isinstance(event, Message):
            (warn if event.warning else say)(event.text, self.bars.console)
            return
        if isinstance(event, SearchProgress):
            self.disk_bytes = max(self.disk_bytes, event.disk_bytes)
        task = self._updated(event)
        if not self.bars.console.is_terminal and monotonic() >= self.line_at + LINE_SECONDS:
            self.line_at = monotonic()
            say(line(event, task.time_remaining))

    def _updated(self, event: Progress | SearchProgress) -> Task:
        name, done, total = _measures(event)
        if name not in self.tasks:
            self.tasks[name] = self.bars.add_task(_shortened(name, self.bars.console.width), total=total, figures="")
        number = self.tasks[name]
        task = next(task for task in self.bars.tasks if task.id == number)
        self.bars.update(number, completed=done, total=total, figures=figures(event, self.bars.console.width, task.speed))
        return task


def _measures(event: Progress | SearchProgress) -> tuple[str, float, float]:
    """The name of the work, what is done, and all there is to do: of a search, the passes that it may use."""
    if isinstance(event, SearchProgress):
        return "Planning", event.passes, event.most_passes
    return event.work, event.done, event.total


def _shortened(name: str, width: int) -> str:
    most = 12 if width < NARROW else 24
    return name if len(name) <= most else f"{name[: most - 1]}…"


def figures(event: Progress | SearchProgress, width: int, speed: float | None) -> str:
    """What stands beside a bar, within so many columns; `speed` is in units a second."""
    if isinstance(event, SearchProgress):
        passes = f"{event.share:.1%}, {event.passes:.0f}/{event.most_passes:.0f}"
        if width < NARROW:
            return passes
        return f"{passes} passes, drift {event.logit_drift:.2g}" + (f", {_held(event)}" if width >= WIDE else "")
    if event.unit == "bytes":
        done, rate = f"{count_text(event.done)}B of {count_text(event.total)}B", f"{count_text(speed or 0)}B/s"
    else:
        done, rate = f"{event.done}/{event.total}", f"{speed:.1f}/s" if speed else "-/s"
    return done if width < NARROW else " ".join(filter(None, (done, rate, event.detail)))


def line(event: Progress | SearchProgress, seconds_left: float | None) -> str:
    """The same for a log."""
    left = "" if seconds_left is None else f", {seconds_left / 60:.0f} min left"
    if isinstance(event, SearchProgress):
        used = f"{event.passes:.0f} of {event.most_passes:.0f} passes, {_held(event)}"
        return f"Planning: {event.share:.1%} of visual FLOPs, logit drift {event.logit_drift:.2g} ({used}){left}"
    detail = f", {event.detail}" if event.detail else ""
    return f"{event.work}: {event.done} of {event.total} {event.unit}{detail}{left}"


def _held(event: SearchProgress) -> str:
    disk = f", {event.disk_bytes / 1e9:.1f} GB on disk" if event.disk_bytes else ""
    return f"{event.memory_bytes / 1e9:.1f} GB held{disk}"
