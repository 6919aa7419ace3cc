"""The code blocks of the documents, and what the commands among them print: `python -m tools.docs.blocks` records that anew.

A recorded block stands between `<!-- runs: yopo ... -->` and `<!-- end -->`. All of them run in one folder, in the documents' order, so
that a later one may use what an earlier one wrote.
"""

import os
import re
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RECORDED = re.compile(r"<!-- runs: (?P<command>yopo .*?) -->\n.*?<!-- end -->", re.DOTALL)
FENCED = re.compile(r"^( *)```(?P<language>\S*)\n(?P<code>.*?)^\1```$", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"(?:^ {4}.*\n)+", re.MULTILINE)


def output(command: str) -> str:
    """What a command `yopo ...` prints on stdout in the current folder. Raises AssertionError where it fails."""
    from typer.testing import CliRunner

    from yopo_cli.app import app

    result = CliRunner().invoke(app, shlex.split(command)[1:])
    assert result.exit_code == 0, f"{command}\n{result.output}\n{result.exception!r}"
    return result.stdout


def block(command: str, printed: str) -> str:
    """A recorded block, marks included."""
    lines = [f"$ {command}", *(line.rstrip() for line in printed.splitlines())]
    return f"<!-- runs: {command} -->\n```console\n" + "\n".join(lines) + "\n```\n<!-- end -->"


def code(text: str, language: str) -> list[str]:
    """The fenced blocks of a language, without their indentation."""
    return [re.sub(f"(?m)^{found[1]}", "", found["code"]) for found in FENCED.finditer(text) if found["language"] == language]


def commands(text: str) -> Iterator[list[str]]:
    """The words of every command `yopo ...` that a text shows, in fenced and in indented blocks."""
    shown = [found["code"] for found in FENCED.finditer(text)] + INDENTED.findall(FENCED.sub("", text))
    for line in "".join(shown).replace("\\\n", " ").splitlines():
        for part in line.strip().removeprefix("$ ").split("&&"):
            if part.strip().startswith("yopo "):
                yield shlex.split(part, comments=True)


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        for document in DOCUMENTS:
            text = document.read_text(encoding="utf-8")
            document.write_text(RECORDED.sub(lambda found: block(found["command"], output(found["command"])), text), encoding="utf-8")


if __name__ == "__main__":
    main()
