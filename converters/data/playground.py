"""LLaVA's own layout of the benchmarks (`playground/data/eval`, docs/Evaluation.md), as rows in the columns that the Hub has."""

import csv
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import YopoError
from ..json_files import object_of, read_bytes
from .pictures import Picture, picture_base64, picture_file

Row = dict[str, Any]
LAYOUT = "See https://github.com/haotian-liu/LLaVA/blob/main/docs/Evaluation.md for what lies where."
MAX_BYTES = 1 << 30
OCR_LINE = "Reference OCR token: "
YES_OR_NO = "Please answer yes or no."


def _lines(file: Path) -> Iterator[Row]:
    lines = enumerate(_bytes(file).split(b"\n"), 1)
    return (object_of(line, f"{file}, line {number}", LAYOUT) for number, line in lines if line.strip())


def _bytes(file: Path) -> bytes:
    if not file.exists():
        raise YopoError(f"There is no {file}.", LAYOUT)
    return read_bytes(file, LAYOUT, MAX_BYTES).removeprefix(b"\xef\xbb\xbf")


def _text(file: Path) -> str:
    try:
        return _bytes(file).decode("utf-8")
    except UnicodeDecodeError:
        raise YopoError(f"{file} is not UTF-8.", LAYOUT) from None


def _object(file: Path) -> Row:
    return object_of(_bytes(file), str(file), LAYOUT)


def explained(rows: Iterator[Row], place: Path) -> Iterator[Row]:
    """The rows of a layout. Raises YopoError where its files are not as they were published."""
    try:
        yield from rows
    except YopoError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        raise YopoError(f"The files in {place} are not as they were published: {type(error).__name__} {error}.", LAYOUT) from error


def _picture(folder: Path, name: str) -> Picture:
    file = folder / name
    if not file.is_file():
        raise YopoError(f"There is no picture {file}.", LAYOUT)
    return picture_file(file)


def _bare(text: str) -> str:
    """The question without the line of instructions."""
    return text.rpartition("\n")[0]


def gqa(folder: Path) -> Iterator[Row]:
    """Questions and pictures of `gqa/data`; the question file's instructions are put back by the task."""
    truths = _object(next(_found(folder, "testdev_balanced_questions.json")))
    for line in _lines(folder / "llava_gqa_testdev_balanced.jsonl"):
        truth = truths[line["question_id"]]
        picture = _picture(folder / "data" / "images", line["image"])
        yield {**truth, "id": line["question_id"], "image": picture}


def _found(folder: Path, name: str) -> Iterator[Path]:
    yield from folder.rglob(name)
    raise YopoError(f"There is no {name} below {folder}.", LAYOUT)


def pope(folder: Path) -> Iterator[Row]:
    """Labels lie in `coco/`, in the order of the question file within each category."""
    splits = ("adversarial", "popular", "random")
    labels = {split: _lines(folder / "coco" / f"coco_pope_{split}.json") for split in splits}
    for line in _lines(folder / "llava_pope_test.jsonl"):
        truth, question = next(labels[line["category"]]), _bare(line["text"])
        if truth["text"] != question:
            raise YopoError(f"Question {line['question_id']} is {question!r} here and {truth['text']!r} among the labels.", LAYOUT)
        picture = _picture(folder / "val2014", line["image"])
        yield {**line, "question": question, "answer": truth["label"], "image_source": line["image"], "image": picture}


def textvqa(folder: Path) -> Iterator[Row]:
    """Joined on picture and question: the question file's ids are those of pictures."""
    data = _object(folder / "TextVQA_0.5.1_val.json")["data"]
    truths = {(row["image_id"], row["question"].lower()): row for row in data}
    for line in _lines(folder / "llava_textvqa_val_v051_ocr.jsonl"):
        question, tokens = line["text"].split("\n")[:2]
        truth = truths[line["question_id"], question.lower()]
        picture = _picture(folder / "train_images", line["image"])
        read = tokens.removeprefix(OCR_LINE.rstrip()).strip()
        yield {**truth, "question": question, "ocr_tokens": read.split(", ") if read else [], "image": picture}


def scienceqa(folder: Path) -> Iterator[Row]:
    """Questions that have a picture."""
    problems, splits = _object(folder / "problems.json"), _object(folder / "pid_splits.json")
    for name in splits["test"]:
        if (row := problems[name]).get("image"):
            yield row | {"id": name, "image": _picture(folder / "images" / "test" / name, row["image"])}


def mme(folder: Path) -> Iterator[Row]:
    """Pictures and answers lie in `MME_Benchmark_release_version/CATEGORY`, of some categories in a sub-folder each."""
    for line in _lines(folder / "llava_mme.jsonl"):
        place, name = folder / "MME_Benchmark_release_version" / line["category"], Path(line["image"])
        texts = place / "questions_answers_YN"
        file = (texts if texts.is_dir() else place) / f"{name.stem}.txt"
        answers = dict(row.rsplit("\t", 1) for row in _text(file).splitlines() if row.strip())
        asked = _bare(line["text"])
        answer = next((said for question, said in answers.items() if question.removesuffix(YES_OR_NO).strip() == asked), None)
        if answer is None:
            raise YopoError(f"{file} has no answer to {asked!r}.", LAYOUT)
        pictures = place / "images"
        picture = _picture(pictures if pictures.is_dir() else place, name.name)
        question = {"question_id": line["question_id"], "question": f"{asked} {YES_OR_NO}", "category": line["category"]}
        yield question | {"answer": answer.strip(), "image": picture}


def vqav2(folder: Path) -> Iterator[Row]:
    """The originals of the validation set: questions, annotations and `val2014/`."""
    questions = _object(folder / "v2_OpenEnded_mscoco_val2014_questions.json")["questions"]
    annotations = _object(folder / "v2_mscoco_val2014_annotations.json")["annotations"]
    truths = {row["question_id"]: row for row in annotations}
    for row in questions:
        picture = _picture(folder / "val2014", f"COCO_val2014_{row['image_id']:012d}.jpg")
        yield row | truths[row["question_id"]] | {"image": picture}


def mmbench(file: Path) -> Iterator[Row]:
    """OpenCompass's TSV, pictures in base64; VLMEvalKit's has the index of the row that has the picture instead."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with file.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    written = {row["index"]: row["image"] for row in rows}
    for row in rows:
        text = row["image"] if len(row["image"]) > 64 else written.get(row["image"], "")
        yield row | {"image": picture_base64(text, f"The picture of row {row['index']} of {file.name}")}


LAYOUTS: dict[str, tuple[str, Callable[[Path], Iterator[Row]]]] = {
    "gqa": ("llava_gqa_testdev_balanced.jsonl", gqa),
    "vqav2": ("v2_OpenEnded_mscoco_val2014_questions.json", vqav2),
    "pope": ("llava_pope_test.jsonl", pope),
    "scienceqa": ("problems.json", scienceqa),
    "textvqa": ("llava_textvqa_val_v051_ocr.jsonl", textvqa),
    "MME": ("llava_mme.jsonl", mme),
}
"""By the folder's name in the playground: the file by which the layout is known, and its reader."""
