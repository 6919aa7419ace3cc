"""The bar of a search: how far down it is, and what it has used."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import log
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


@contextmanager
def search_bar(smallest: float) -> Iterator[Callable[[Any], None]]:
    """A bar on stderr from the dense model down to the smallest budget; call what it gives with a search's reports."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("Answering", total=log(1 / smallest))

        def tell(report: Any) -> None:
            bytes_text = f", {report.disk_bytes / 1e9:.1f} GB on disk" if report.disk_bytes else ""
            text = f"Planning {report.share:.1%} ({report.stage}), {report.forwards:.0f} passes, {report.memory_bytes / 1e9:.1f} GB held"
            bar.update(task, completed=log(1 / report.share), description=text + bytes_text)

        yield tell
