"""Do our metrics give LLaVA-1.5-13B's published figures from its published answers? POPE 85.9, ScienceQA 71.6, MMBench 67.7.

The answers are in LLaVA's own repository, at a commit that has its eval.zip unpacked; POPE's labels at the one that LLaVA used:

    git clone https://github.com/haotian-liu/LLaVA && git -C LLaVA checkout 32cebc3
    git clone https://github.com/RUCAIBox/POPE && git -C POPE checkout e3e3926
    python benchmarks/published_answers.py LLaVA/playground/data/eval POPE/output/coco
"""

import argparse
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from PIL import Image

from converters.data.pictures import Picture
from converters.evaluation.statistics import PictureCounts, intervals
from converters.evaluation.task import Question, Scored, Task
from converters.evaluation.tasks import task

ANSWERS = "llava-v1.5-13b"
BLANK = Picture("no picture", lambda: Image.new("RGB", (1, 1)))
SHEET = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def pope(folder: Path, labels: Path) -> Iterator[Scored]:
    """8,910 questions; the prompts that our task makes must be those that were asked."""
    pope = task("pope")
    said = {line["question_id"]: line["text"] for line in lines(folder / f"pope/answers/{ANSWERS}.jsonl")}
    truths = {split: iter(lines(labels / f"coco_pope_{split}.json")) for split in ("adversarial", "popular", "random")}
    for line in lines(folder / "pope/llava_pope_test.jsonl"):
        truth = next(truths[line["category"]])
        row = {**line, "question": truth["text"], "answer": truth["label"], "image_source": line["image"], "image": BLANK}
        yield _scored(pope, row, said[line["question_id"]], line["text"])


def scienceqa(folder: Path) -> Iterator[Scored]:
    """The 2,017 questions with a picture, as LLaVA's own evaluation sorted them."""
    sorted_answers = json.loads((folder / f"scienceqa/answers/{ANSWERS}_output.jsonl").read_text(encoding="utf-8"))
    for line in (*sorted_answers["correct"], *sorted_answers["incorrect"]):
        if line["is_multimodal"]:
            name = line["question_id"]
            options = tuple(re.findall(r"^[A-E]\. (.*)$", line["question"], re.MULTILINE))
            question = Question(name, line["question"], (BLANK,), (line["ground_truth"],), name, name, None, options)
            yield Scored(question, task("scienceqa").score(line["pred"], question))


def mmbench(folder: Path) -> Iterator[Scored]:
    """4,377 rows of what LLaVA uploaded, the truth beside the prediction."""
    mmbench = task("mmbench")
    first, *rows = _sheet(folder / f"mmbench/answers_upload/mmbench_dev_20230712/{ANSWERS}.xlsx")
    for cells in rows:
        row = dict(zip(first, cells, strict=True))
        yield _scored(mmbench, {"hint": None, **row, "image": BLANK}, row["prediction"] or "")


def _scored(asked: Task, row: dict[str, Any], answer: str, prompt: str | None = None) -> Scored:
    question = asked.question(row, "llava")
    if prompt is not None and prompt != question.prompt:
        raise SystemExit(f"{asked.name} asks {question.prompt!r}, LLaVA asked {prompt!r}")
    return Scored(question, asked.score(answer, question))


def _sheet(file: Path) -> Iterator[list[str | None]]:
    """Rows of the first sheet of a spreadsheet whose texts are in their cells."""
    with zipfile.ZipFile(file) as archive:
        sheet = ElementTree.fromstring(archive.read("xl/worksheets/sheet1.xml"))
    width = 0
    for row in sheet.iter(f"{SHEET}row"):
        cells = {_column(cell.attrib["r"]): "".join(cell.itertext()) for cell in row}
        width = max(width, *cells)
        yield [cells.get(place) or None for place in range(1, width + 1)]


def _column(reference: str) -> int:
    number = 0
    for letter in reference.rstrip("0123456789"):
        number = number * 26 + ord(letter) - ord("A") + 1
    return number


def show(name: str, scored: Iterator[Scored], published: float) -> None:
    answers = list(scored)
    found = intervals(PictureCounts.of(answers, task(name).measure))
    text = ", ".join(f"{figure} {one.value:.2f} ({one.low:.2f} to {one.high:.2f})" for figure, one in found.items())
    print(f"{name}, {len(answers)} questions, published {published}: {text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="LLaVA/playground/data/eval")
    parser.add_argument("labels", type=Path, help="POPE/output/coco")
    options = parser.parse_args()
    show("pope", pope(options.folder, options.labels), 85.9)
    show("scienceqa", scienceqa(options.folder), 71.6)
    show("mmbench", mmbench(options.folder), 67.7)


if __name__ == "__main__":
    main()
