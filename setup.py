"""What pyproject.toml cannot say: the README as a package index shows it, with absolute links. All else is there."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<path>(?!\w+:|#)[^)]+)\)")


def absolute(text: str, source: str) -> str:
    """The text with links to files of the repository at `source`, which are relative in the repository itself."""

    def written(link: re.Match[str]) -> str:
        return f"{link['image']}[{link['text']}]({source}/{'raw' if link['image'] else 'blob'}/main/{link['path']})"

    return LINK.sub(written, text)


def readme() -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    source = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"].get("Source")
    return absolute(text, source.rstrip("/")) if source else text


if __name__ == "__main__":
    setup(long_description=readme(), long_description_content_type="text/markdown")
