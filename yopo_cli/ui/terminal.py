"""What the user sees: data on stdout; progress, notes and errors on stderr."""

import functools
import json
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from converters.errors import YopoError
from converters.processes import rank
from converters.runtime.plan import PlanError

FAILED, GATE_FAILED, INTERRUPTED = 1, 3, 130
PIPE_WIDTH = 1000

Arguments = ParamSpec("Arguments")


def guarded(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """The command, its errors told in a sentence: exit 1 for what the user can mend, 130 when interrupted."""

    @functools.wraps(command)
    def guard(*arguments: Arguments.args, **options: Arguments.kwargs) -> None:
        try:
            command(*arguments, **options)
        except YopoError as error:
            _complain(error.message, error.hint)
            raise typer.Exit(FAILED) from None
        except PlanError as error:
            _complain(f"The plan cannot be used: {error}.", "See `yopo inspect` for what a plan looks like.")
            raise typer.Exit(FAILED) from None
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported for its name
                raise
            _complain("The device ran out of memory.", "Try --dtype bfloat16, a smaller batch, or --device cpu.")
            raise typer.Exit(FAILED) from None
        except KeyboardInterrupt:
            say("Interrupted; nothing unfinished was left behind.")
            raise typer.Exit(INTERRUPTED) from None

    return guard


def _complain(message: str, hint: str) -> None:
    console = Console(stderr=True, highlight=False)
    console.print(f"[bold red]Error:[/] {escape(message)}", soft_wrap=True)
    if hint:
        console.print(f"[bold]Hint:[/] {escape(hint)}", soft_wrap=True)


def say(text: str, console: Console | None = None) -> None:
    """A note to the user, on stderr, above what else is drawn there; of several processes, the first one speaks."""
    (console or _stderr()).print(text, markup=False, highlight=False, soft_wrap=True)


def warn(text: str, console: Console | None = None) -> None:
    """Something that the user should know before trusting the result, on stderr."""
    (console or _stderr()).print(f"[bold yellow]Warning:[/] {escape(text)}", highlight=False, soft_wrap=True)


def _stderr() -> Console:
    return Console(stderr=True, quiet=rank() > 0)


def show_json(data: dict[str, Any]) -> None:
    """One object on stdout."""
    show_text([json.dumps(data, indent=2)])


def show_text(lines: Iterable[str]) -> None:
    """Lines on stdout, as they are; of several processes, the first one tells."""
    for line in lines if rank() == 0 else ():
        print(line)


def show_table(columns: Iterable[str], rows: Iterable[Iterable[str]], numbers: bool = True) -> None:
    """A table on stdout; with `numbers`, every column but the first is aligned to the right. Nothing is cut off in a pipe."""
    console = Console(highlight=False, quiet=rank() > 0)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index and numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table, width=None if console.is_terminal else PIPE_WIDTH, crop=False)
