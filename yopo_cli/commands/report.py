"""`yopo report`: what was measured, on one page."""

from pathlib import Path
from typing import Annotated

import typer

from ..ui.terminal import say


def report(
    things: Annotated[
        list[str], typer.Argument(metavar="THING...", help="Converted models, plans, and what eval, bench and inspect --attention wrote.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write: .html, or .md for tables alone.")] = Path(
        "report.html"
    ),
    title: Annotated[str, typer.Option(help="What stands above it.")] = "What pruning does",
) -> None:
    """Write one self-contained page: budget against accuracy, what is read and computed, costs, times, attention, changed answers."""
    from converters.errors import YopoError
    from converters.report.gathering import gathered
    from converters.report.page import html, markdown

    if output.suffix not in (".html", ".md"):
        raise YopoError(f"The report {output} is neither .html nor .md.", "Name it so, such as -o report.html.")
    if not output.parent.is_dir():
        raise YopoError(f"The folder {output.parent} does not exist.", "The report is written there: make it first.")
    parts = gathered(things)
    output.write_text((html if output.suffix == ".html" else markdown)(parts, title), encoding="utf-8")
    say(f"Wrote {output}")
