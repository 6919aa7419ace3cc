"""The command reference, written by Typer's own generator from the commands themselves: `python -m tools.docs.commands`."""

from pathlib import Path

import typer
from typer.cli import get_docs_for_click

PAGE = Path(__file__).parents[2] / "docs/commands.md"
NOTE = """<!-- Made by `make docs` from the commands themselves: change their help, not this page. -->

Results go to stdout, progress and notes to stderr; with `--json` a command prints [one JSON object](json.md) instead of tables.
Exit codes: 0 done, 1 an error, told in a sentence with a hint, 2 wrong usage, 3 a gate failed, 130 interrupted.
How the commands go together is in the [guide](guide.md).
"""


def reference() -> str:
    """The page, in Markdown."""
    from yopo_cli.app import app

    group = typer.main.get_command(app)
    context = typer.Context(group, info_name="yopo")
    for command in group.commands.values():  # type: ignore[attr-defined]
        command.short_help = command.help.partition("\n")[0]  # whole, where a terminal has room for its beginning
    title, _, commands = get_docs_for_click(obj=group, ctx=context, name="yopo", title="Commands").partition("\n\n")
    lines = (line.rstrip() for line in commands.splitlines())
    return f"{title}\n\n{NOTE}\n" + "\n".join(lines).strip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
