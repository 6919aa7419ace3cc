"""What the user sees: data on stdout; progress, notes and errors on stderr."""

import functools
import json
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, ParamSpec

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from converters.errors import YopoError
from converters.processes import rank

from .failures import explanation

FAILED, GATE_FAILED, INTERRUPTED = 1, 3, 130
PIPE_WIDTH = 1000
# Overrides of the direction of writing: they make a name look like another.
DIRECTIONS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")

Arguments = ParamSpec("Arguments")


def guarded(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """The command, its errors told in a sentence: exit 1 for what the user can mend, 130 when interrupted."""

    @functools.wraps(command)
    def guard(*arguments: Arguments.args, **options: Arguments.kwargs) -> None:
        try:
            _check_folder()
            command(*arguments, **options)
            sys.stdout.flush()
        except SystemExit:  # of the processes that leave the rest to the first one
            raise typer.Exit from None
        except KeyboardInterrupt:
            say("Interrupted; nothing unfinished was left behind.")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:  # whoever reads has enough
            _close_stdout()
            raise typer.Exit(FAILED) from None
        except Exception as error:
            if (sentence := explanation(error)) is None:
                raise
            _complain(*sentence)
            if isinstance(error, OSError):
                _close_stdout()
            raise typer.Exit(FAILED) from None

    return guard


def _check_folder() -> None:
    """Raise YopoError where the folder we are in was removed: libraries end the process for that, without a word about it."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise YopoError("The folder you are in is not there any more.", "Change to another one with cd.") from None


def _complain(message: str, hint: str) -> None:
    console = Console(stderr=True, highlight=False)
    with suppress(OSError):  # there is no other place to tell it
        console.print(f"[bold red]Error:[/] {escape(printable(message))}", soft_wrap=True)
        if hint:
            console.print(f"[bold]Hint:[/] {escape(printable(hint))}", soft_wrap=True)


def _close_stdout() -> None:
    """Give up what could not be written: at its end Python would try again, and show a traceback."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.__stdout__.fileno() if sys.__stdout__ else 1)
        os.close(null)


def printable(text: str, lines: bool = False) -> str:
    """The text with what would control a terminal written as escapes; line feeds and tabs stay with `lines`."""
    kept = "\n\t" if lines else ""
    return "".join(char if char in kept or not _controls(char) else repr(char)[1:-1] for char in text)


def _controls(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cs") or unicodedata.bidirectional(char) in DIRECTIONS


def say(text: str, console: Console | None = None) -> None:
    """A note to the user, on stderr, above what else is drawn there; of several processes, the first one speaks."""
    (console or _stderr()).print(printable(text), markup=False, highlight=False, soft_wrap=True)


def warn(text: str, console: Console | None = None) -> None:
    """Something that the user should know before trusting the result, on stderr."""
    (console or _stderr()).print(f"[bold yellow]Warning:[/] {escape(printable(text))}", highlight=False, soft_wrap=True)


def _stderr() -> Console:
    return Console(stderr=True, quiet=rank() > 0)


def show_json(data: dict[str, Any]) -> None:
    """One object on stdout."""
    show_text([json.dumps(data, indent=2)])


def show_text(lines: Iterable[str]) -> None:
    """Lines on stdout; of several processes, the first one tells."""
    for line in lines if rank() == 0 else ():
        print(printable(line, lines=True))


def show_table(columns: Iterable[str], rows: Iterable[Iterable[str]], numbers: bool = True) -> None:
    """A table on stdout; with `numbers`, every column but the first is aligned to the right. Nothing is cut off in a pipe."""
    console = Console(highlight=False, quiet=rank() > 0)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index and numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(printable(cell)) for cell in row))
    console.print(table, width=None if console.is_terminal else PIPE_WIDTH, crop=False)
