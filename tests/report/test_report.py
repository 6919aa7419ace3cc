"""The page: what is on it, that it needs nothing else, and that a browser draws it without a complaint."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support.report_inputs import EVALUATION, write_answers, write_attention, write_bench
from typer.testing import CliRunner

from converters.calibration.attention_maps import AttentionMaps
from converters.errors import YopoError
from converters.report.attention import in_dense_order
from converters.report.gathering import Report, gathered
from converters.report.page import html, markdown
from converters.runtime.layout import layouts
from converters.runtime.plan import Grid, LayerPlan, Plan, Sizes, normalise
from yopo_cli.app import app

pytest.importorskip("matplotlib")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def report(converted_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("report")
    files = (write_answers(folder / "answers.jsonl"), write_attention(folder / "attention.json"), write_bench(folder / "bench.json"))
    return gathered([str(converted_demo), *map(str, files)])


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return html(report, "A <report>")


class Parsed(HTMLParser):
    """Counts of tags, and every address."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]


def test_gathered(report: Report) -> None:
    assert report.evaluations == [EVALUATION]
    assert [line["id"] for line in report.changed] == ["1"]
    assert (len(report.models), len(report.benches), len(report.attention)) == (1, 1, 1)


def test_everything_is_on_it_and_nothing_is_elsewhere(page: str) -> None:
    parsed = Parsed(page)
    assert parsed.tags.count("figure") == parsed.tags.count("svg") == 6
    assert "script" not in parsed.tags
    assert all(re.match(r"#|data:", address) for address in parsed.addresses)
    assert "<title>A &lt;report&gt;</title>" in page
    assert "What is &lt;b&gt;?" in page
    assert "demo &lt;pruned&gt;" in page
    for text in ("62", "50.0%", "0.0 to 100.0", "lmms-lab/GQA@0123456789abcdef", "K and V with 64 text tokens", "protocol llava"):
        assert text in page


def test_charts_take_the_pages_colour(page: str) -> None:
    assert "currentColor" in page
    assert "#010203" not in page
    assert not re.search(r"<svg[^>]* (width|height)=", page)


def test_ids_are_not_shared_between_charts(page: str) -> None:
    names = re.findall(r'<clipPath id="([^"]+)"', page)
    assert len(names) == len(set(names))


def test_markdown(report: Report) -> None:
    text = markdown(report, "Report")
    assert "| demo <pruned> | pruned | 12.0% | 50.00 | 0.0 to 100.0 | 50.0% | 25.0 to 100.0 | 2 / 0 | 0.5 | - |" in text
    assert "1 questions have an answer that changed; 1 of them lost a right one." in text


def test_maps_of_a_converted_file_are_put_back() -> None:
    """Head 3 alone is read: it comes first in the file."""
    sizes = Sizes(8, 8, 2, 4, 4, 2)
    plan = Plan(sizes, (LayerPlan((3,), (), ()),) * 2, (Grid(2, 2),))
    assert layouts(normalise(plan))[0].query_order[0] == 3
    maps = AttentionMaps([[float(head) for head in layout.query_order] for layout in layouts(normalise(plan))], [[0.0]] * 2, 1)
    assert in_dense_order(maps, plan).read == [[0.0, 1.0, 2.0, 3.0]] * 2


def test_what_is_no_part_of_a_report(tmp_path: Path) -> None:
    for text in ('{"a": 1}', "hello", ""):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(YopoError, match=r"is nothing that a report shows|is not JSON"):
            gathered([str(tmp_path / "x.json")])


def test_the_commands(converted_demo: Path, tmp_path: Path) -> None:
    asked = ["inspect", str(converted_demo), "--attention", str(tmp_path / "attention.json"), "--samples", "2"]
    shown = CliRunner().invoke(app, asked)
    assert shown.exit_code == 0, shown.stderr
    assert json.loads((tmp_path / "attention.json").read_text())["samples"] == 2
    for name in ("report.html", "report.md"):
        asked = ["report", str(converted_demo), str(tmp_path / "attention.json"), "-o", str(tmp_path / name)]
        assert CliRunner().invoke(app, asked).exit_code == 0
        assert (tmp_path / name).stat().st_size > 300
    refused = CliRunner().invoke(app, ["report", str(converted_demo), "-o", str(tmp_path / "report.pdf")])
    assert refused.exit_code == 1
    assert "neither .html nor .md" in refused.stderr


@pytest.fixture
def browser() -> str:
    name = next(filter(None, map(shutil.which, BROWSERS)), None)
    if name is None:
        pytest.skip("no browser")
    return name


ASKING = """<script>addEventListener("load", () => {
  const boxes = [...document.querySelectorAll("figure svg, .answer")].map(one => one.getBoundingClientRect());
  const fit = boxes.every(box => box.width > 100 && box.height > 50 && box.right <= innerWidth);
  parent.postMessage(`${innerWidth} ${boxes.length} ${fit} ${document.documentElement.scrollWidth <= innerWidth}`, "*");
})</script></body>"""
FRAME = """<!doctype html><title></title><link rel="icon" href="data:,">
<script>addEventListener("message", event => { document.title = event.data })</script>
<iframe src="page.html" style="border: 0; width: %dpx; height: 2000px"></iframe>"""


@pytest.mark.parametrize("width", [400, 1400])
def test_a_browser_draws_every_figure(page: str, browser: str, width: int, tmp_path: Path) -> None:
    """Sizes are asked of the browser itself: every figure has some, nothing is wider than the page, and the console is empty.

    The page is in a frame: a browser's own window is not as narrow as a telephone's.
    """
    (tmp_path / "page.html").write_text(page.replace("</body>", ASKING))
    (tmp_path / "frame.html").write_text(FRAME % width)
    options = (
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1500,2100", "--dump-dom",
    )  # fmt: skip
    command = [browser, *options, "--virtual-time-budget=10000", f"file://{tmp_path / 'frame.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    assert re.search(r"<title>([^<]*)</title>", done.stdout)[1] == f"{width} 7 true true"  # type: ignore[index]
