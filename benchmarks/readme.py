"""Run the commands whose output the README shows and put in what they print: `python benchmarks/readme.py`.

A block starts with `<!-- runs: COMMAND -->` and ends with `<!-- end -->`. All run in one scratch folder, in the README's order.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"<!-- runs: (?P<command>yopo .*?) -->\n.*?<!-- end -->", re.DOTALL)


def output(command: str, folder: str) -> str:
    """What the command prints on stdout. Raises CalledProcessError if it fails."""
    words = [sys.executable, "-m", "yopo_cli", *shlex.split(command)[1:]]
    environment = os.environ | {"PYTHONPATH": str(README.parent), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(words, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def block(command: str, printed: str) -> str:
    lines = [f"$ {command}", *(line.rstrip() for line in printed.splitlines())]
    return f"<!-- runs: {command} -->\n```console\n" + "\n".join(lines) + "\n```\n<!-- end -->"


def main() -> None:
    text = README.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        text = BLOCK.sub(lambda found: block(found["command"], output(found["command"], folder)), text)
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
