"""A measured search from the command line: its questions, its bar, its state, and a frontier that was saved."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import log
from pathlib import Path
from time import monotonic
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from converters.errors import YopoError
from converters.runtime.plan import Grid

from .terminal import say

STATE_SUFFIX = ".search"
LINE_SECONDS = 30.0  # between lines where there is no terminal to draw a bar in


def searched(
    questions: Any, statistics: Any, budgets: Sequence[float], grid: Grid | None, seed: int, refit: bool, state: Path | None = None
) -> tuple[Any, int]:
    """The frontier of these budgets, searched for under a bar, and the most bytes that were on disk.

    `state` is a file that makes an interrupted search go on where it was.
    """
    from converters.planning.search.search import search, usual_effort

    known = state is not None and state.exists()
    if known:
        say(f"Going on with the search whose measurements {state} holds.")
    model, grids = questions.loaded.model, None if grid is None else (grid,)
    effort = replace(usual_effort(model.config.get_text_config().num_hidden_layers), refit=refit)
    with search_bar(min(budgets)) as bar:
        try:
            frontier = search(
                model,
                questions.batches(),
                statistics,
                budgets,
                grids=grids,
                seed=seed,
                questions_from=Path(questions.examples.origin).name,
                effort=effort,
                state=state,
                progress=bar.tell,
            )
        except KeyboardInterrupt:
            if state is not None and state.exists():
                say(f"The same command goes on from here: {state} holds what has been measured.")
            raise
    return frontier, bar.disk_bytes


class SearchBar:
    """From the dense model down to the smallest budget, in equal steps for equal ratios; in a log, a line now and then."""

    def __init__(self, bar: Progress, smallest: float) -> None:
        self.bar = bar
        self.task = bar.add_task("Answering", total=log(1 / smallest))
        self.disk_bytes = 0
        self._said = monotonic()

    def tell(self, report: Any) -> None:
        """Show a report of `converters.planning.search.search`."""
        self.disk_bytes = max(self.disk_bytes, report.disk_bytes)
        used = f"{report.forwards:.0f} of {report.allowed:.0f} passes, {report.memory_bytes / 1e9:.1f} GB held"
        disk = f", {report.disk_bytes / 1e9:.1f} GB on disk" if report.disk_bytes else ""
        text = f"Planning: {report.share:.1%} of visual FLOPs, shift {report.shift:.2g} ({used}{disk})"
        self.bar.update(self.task, completed=log(1 / min(1.0, report.share)), description=text)
        if not self.bar.console.is_terminal and monotonic() >= self._said + LINE_SECONDS:
            self._said = monotonic()
            say(text)


@contextmanager
def search_bar(smallest: float) -> Iterator[SearchBar]:
    """A bar on stderr."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield SearchBar(bar, smallest)


def saved_frontier(file: Path, fingerprint: str) -> Any:
    """The frontier in a file. Raises YopoError for none, and for that of another model."""
    from converters.planning.frontier import Frontier

    found = Frontier.load(file)
    if found.model != fingerprint:
        raise YopoError(
            f"The frontier {file} is of another model ({found.model[:12]}, this one is {fingerprint[:12]}).",
            "Make one with `yopo plan`.",
        )
    return found
