"""The `yopo` command: which commands there are, and how they end."""

import logging
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from io import TextIOWrapper
from typing import Annotated

import typer

from .commands.adapt import adapt
from .commands.ask import ask
from .commands.bench import bench
from .commands.convert import convert
from .commands.eval import evaluate
from .commands.export import export
from .commands.heal import heal
from .commands.inspect import inspect
from .commands.models import models
from .commands.plan import plan
from .commands.push import push
from .commands.report import report
from .commands.run import run
from .commands.verify import verify
from .ui.terminal import INTERRUPTED, guarded, say

COMMANDS: dict[str, Callable[..., None]] = {
    "convert": convert,
    "plan": plan,
    "inspect": inspect,
    "ask": ask,
    "verify": verify,
    "eval": evaluate,
    "export": export,
    "heal": heal,
    "adapt": adapt,
    "bench": bench,
    "report": report,
    "run": run,
    "push": push,
    "models": models,
}

app = typer.Typer(
    name="yopo",
    help="Prune once: convert a vision-language model so that its language model does only the visual work a budget pays for.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for name, command in COMMANDS.items():
    app.command(name)(guarded(command))


def _version(asked: bool) -> None:
    if asked:
        print(f"yopo {version('yopo')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    """Options of `yopo` itself."""


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 told what is wrong, 2 wrong usage, 3 a gate failed, 130 interrupted."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # libraries' notes to developers are not for the user
        for library in ("torchao", "torch.utils._pytree"):  # the first is imported by transformers wherever it is installed
            logging.getLogger(library).setLevel(logging.ERROR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # what it cannot encode is written as an escape
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except KeyboardInterrupt:
        say("Interrupted.")
        sys.exit(INTERRUPTED)
