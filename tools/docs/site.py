"""A hook of mkdocs: pages that lie outside of `docs` in the repository, and links that hold in both places.

README (as the site's first page), CONTRIBUTING, CHANGELOG and the records of `benchmarks` are pages too, under their own names; so a link
to `../benchmarks/study.md` in `docs` becomes one to `benchmarks/study.md`. Other files that a page links to go along as they are.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
START = ("README.md", "index.md")
LINK = re.compile(r"(\]\()(?!\w+:|#)([^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    records = [str(file.relative_to(ROOT)) for file in sorted(ROOT.glob("benchmarks/**/*.md"))]
    for path in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *records):
        files.append(File.generated(config, _on_site(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """The page with links by their places on the site in place of those in the repository."""
    up = "../" * page.file.src_uri.count("/")

    def on_site(link: re.Match[str]) -> str:
        target = (Path(page.file.abs_src_path).parent / link[2]).resolve()
        name = _on_site(str(target.relative_to(ROOT)))
        if files.get_file_from_path(name) is None and target.is_file():
            files.append(File.generated(config, name, abs_src_path=str(target)))
        return link[1] + up + name

    return LINK.sub(on_site, markdown)


def _on_site(path: str) -> str:
    """Where a file of the repository is on the site."""
    return START[1] if path == START[0] else path.removeprefix("docs/")
