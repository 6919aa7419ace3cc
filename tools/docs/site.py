"""A hook of mkdocs: pages that lie outside of `docs` in the repository, and links that hold there and on the site.

README, CONTRIBUTING, CHANGELOG and the records of `benchmarks` are pages too, the README as the site's first; so a link to
`../benchmarks/study.md` in `docs` becomes one to `benchmarks/study.md`. What else a page links to is a file that only the repository has.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
START = "index.md"
LINK = re.compile(r"(\]\()(?!\w+:|#)([^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    outside = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *(str(file.relative_to(ROOT)) for file in ROOT.glob("benchmarks/**/*.md"))]
    images = [str(file.relative_to(ROOT)) for kind in ("png", "svg") for file in ROOT.glob(f"benchmarks/**/*.{kind}")]
    for path in outside + images:
        name = START if path == "README.md" else path
        files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links by their place in the repository become links by their place on the site; to what the site lacks, plain text's links go."""
    place = ROOT / (page.file.src_uri if page.file.generated_by else f"docs/{page.file.src_uri}")
    if page.file.src_uri == START:
        place = ROOT / "README.md"

    def on_site(link: re.Match[str]) -> str:
        target = (place.parent / link[2]).resolve()
        name = str(target.relative_to(ROOT / "docs" if target.is_relative_to(ROOT / "docs") else ROOT))
        return link[1] + "../" * page.file.src_uri.count("/") + (START if name == "README.md" else name)

    return LINK.sub(on_site, markdown)
