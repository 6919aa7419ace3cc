"""Made-up rows in the schemas that the benchmarks are published in, small, with the demo's pictures."""

import base64
import json
from collections.abc import Iterable
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

from converters.data.demo.shapes import samples

Row = dict[str, Any]


def jpegs(count: int, seed: int = 0) -> list[bytes]:
    """Pictures of coloured shapes, as JPEG files."""
    files = []
    for sample in islice(samples(count, seed, "eval"), count):
        stream = BytesIO()
        sample.image.save(stream, "JPEG")
        files.append(stream.getvalue())
    return files


PICTURES = jpegs(4)


def image(number: int) -> dict[str, Any]:
    """A picture as `datasets` writes it."""
    return {"bytes": PICTURES[number % len(PICTURES)], "path": None}


def _choice(number: int) -> Row:
    return {"options": ["red", "blue", "green", "yellow"], "answer": str(number % 4)}


PEOPLE = [["red"] * 10, ["2"] * 6 + ["two"] * 4, ["yes"] * 10, ["blue"] * 3 + ["dark blue"] * 7]

HUB: dict[str, dict[str, list[Row]]] = {
    "GQA": {
        "testdev_balanced_instructions/testdev-00000-of-00001.parquet": [
            {
                "id": f"20{n}",
                "imageId": f"n{n // 3}",
                "question": "Is there a red circle?",
                "answer": "yes",
                "fullAnswer": "Yes.",
                "isBalanced": True,
            }
            | {"types": {"structural": "verify" if n % 2 else "query", "semantic": "obj", "detailed": "existC"}, "semanticStr": "select"}
            for n in range(6)
        ],
        "testdev_balanced_images/testdev-00000-of-00001.parquet": [{"id": f"n{n}", "image": image(n)} for n in range(2)],
    },
    "VQAv2": {
        "data/validation-00000-of-00001.parquet": [
            {"question_type": "what color", "multiple_choice_answer": people[0], "image_id": n // 2, "question_id": 100 + n}
            | {"answers": [{"answer": one, "answer_confidence": "yes", "answer_id": i + 1} for i, one in enumerate(people)]}
            | {"answer_type": "other" if n % 2 else "number", "question": "What color is the circle?", "image": image(n // 2)}
            for n, people in enumerate(PEOPLE)
        ]
    },
    "POPE": {
        "data/test-00000-of-00002.parquet": [],
        "data/test-00001-of-00002.parquet": [
            {"id": str(n), "question_id": str(n % 4 + 1), "question": "Is there a circle in the image?", "answer": "yes" if n % 2 else "no"}
            | {"image_source": f"COCO_val2014_{n % 4 // 2:012d}", "image": image(n % 4 // 2), "category": category}
            for n, category in enumerate(["adversarial"] * 4 + ["popular"] * 4 + ["random"] * 4)
        ],
    },
    "MMBench": {
        f"{language}/dev-00000-of-00001.parquet": [
            {"index": turn * 1_000_000 + question, "question": "What color is the circle?", "hint": "Look." if question else "nan"}
            | {"answer": "ABC"[turn], "A": "red", "B": "blue", "C": "green", "D": "nan" if question else None, "category": "color"}
            | {"image": image(question), "source": "made", "L2-category": f"part {question}", "comment": "nan", "split": "dev"}
            for question in range(2)
            for turn in range(3)
        ]
        for language in ("en", "cn")
    },
    "ScienceQA": {
        "ScienceQA-IMG/test-00000-of-00001.parquet": [
            {"image": image(n), "question": "Which color?", "choices": ["red", "blue"], "answer": n % 2, "hint": "Look." if n else ""}
            | {"task": "closed choice", "grade": "grade2", "subject": "natural science", "topic": "t", "category": "c", "skill": "s"}
            | {"lecture": "", "solution": ""}
            for n in range(4)
        ]
    },
    "textvqa": {
        "data/validation-00000-of-00001.parquet": [
            {"image_id": f"img{n // 2}", "question_id": 34602 + n, "question": "what is THE color?", "question_tokens": ["what"]}
            | {"image": image(n // 2), "image_width": 96, "image_height": 96, "flickr_original_url": "", "flickr_300k_url": ""}
            | {"answers": people, "image_classes": ["Circle"], "set_name": "val", "ocr_tokens": ["RED", "BLUE"] if n else []}
            for n, people in enumerate(PEOPLE)
        ]
    },
    "MME": {
        "data/test-00000-of-00001.parquet": [
            {"question_id": f"{category}/{n}.png", "image": image(n), "category": category, "answer": "No" if turn else "Yes"}
            | {"question": f"Is there a {'square' if turn else 'circle'} in the image? Please answer yes or no."}
            for category in ("existence", "code_reasoning")
            for n in range(2)
            for turn in range(2)
        ]
    },
    "MMMU": {
        "data/validation-00000-of-00001.parquet": [
            {"id": f"validation_Art_{n}", "question": f"What color is <image {1 + n}>?", "explanation": "", "image_1": image(n)}
            | {"options": "['red', 'blue']" if n == 0 else "[]", "image_2": image(1) if n else None, "img_type": "['Other']"}
            | {"answer": "B" if n == 0 else "red", "topic_difficulty": "Easy", "subfield": "Drawing"}
            | {"question_type": "open" if n else "multiple-choice"}
            for n in range(2)
        ]
    },
    "ChartQA": {
        "data/test-00000-of-00001.parquet": [
            {"type": "human_test" if n else "augmented_test", "question": "How many circles?", "answer": "2", "image": image(n)}
            for n in range(2)
        ]
    },
    "DocVQA": {
        "DocVQA/validation-00000-of-00001.parquet": [
            {"questionId": str(n), "question": "What color?", "question_types": ["figure/diagram"], "image": image(n), "docId": n}
            | {"ucsf_document_id": "abc", "ucsf_document_page_no": "1", "answers": ["red", "Red"], "data_split": "val"}
            for n in range(2)
        ]
    },
    "OCRBench": {
        "data/test-00000-of-00001.parquet": [
            {"dataset": "IIIT5K" if n else "HME100k", "question": "what is written in the image?", "answer": ["red"], "image": image(n)}
            | {"question_type": "Regular Text Recognition"}
            for n in range(2)
        ]
    },
    "ai2d": {
        "data/test-00000-of-00001.parquet": [{"question": "Which color?", "image": image(n)} | _choice(n) for n in range(4)],
    },
    "RealWorldQA": {
        "data/test-00000-of-00001.parquet": [
            {"question": "Which color?\nA. red\nB. blue\nPlease answer directly with only the letter.", "answer": "A", "image": image(0)},
            {"question": "How many circles? Please answer with a single word or number.", "answer": "2", "image": image(1)},
        ]
    },
    "MMStar": {
        "mmstar.parquet": [
            {"index": n, "question": "Which?\nOptions: A: red, B: blue", "image": image(n), "answer": "AB"[n % 2], "category": "math"}
            | {"l2_category": f"part {n % 2}", "meta_info": {"source": "made", "split": "val", "image_path": "x.jpg"}}
            for n in range(3)
        ]
    },
    "SEED-Bench": {
        "data/test-00000-of-00001.parquet": [
            {"answer": "A", "choice_a": "red", "choice_b": "blue", "choice_c": "green", "choice_d": "yellow", "data_id": str(n)}
            | {
                "data_type": "video" if n else "image",
                "question": "Which color?",
                "question_id": str(n),
                "question_type_id": 1,
                "segment": [],
            }
            | {"image": [image(0), image(1)] if n else [image(0)]}
            for n in range(2)
        ]
    },
}
"""Rows by file, by the data set's name on the Hub."""

REPOSITORIES = {"OCRBench": "echo840/OCRBench", "MMStar": "Lin-Chen/MMStar"}


def repository(name: str, owner: str = "lmms-lab-encoder") -> str:
    return REPOSITORIES.get(name, f"{owner}/{name}")


def parquet(rows: Iterable[Row]) -> bytes:
    """The rows as a parquet file of `datasets`, in row groups of two."""
    import pyarrow
    from pyarrow import parquet

    rows = list(rows)
    picture = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = pyarrow.Table.from_pylist(rows) if rows else pyarrow.table({"id": pyarrow.array([], pyarrow.string())})
    for name in table.column_names:
        if name.startswith("image") and name not in ("image_id", "imageId", "image_source", "image_width", "image_height", "image_classes"):
            kind = pyarrow.list_(picture) if isinstance(rows[0][name], list) else picture
            table = table.set_column(table.column_names.index(name), name, pyarrow.array([row[name] for row in rows], kind))
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(table, sink, row_group_size=2)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def data_sets() -> dict[str, dict[str, bytes]]:
    """The files of every data set."""
    return {name: {file: parquet(rows) for file, rows in files.items()} for name, files in HUB.items()}


def write_hub_folder(folder: Path, name: str) -> Path:
    """One data set as `hf download` leaves it."""
    for file, rows in HUB[name].items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(parquet(rows))
    return folder


SHORT = "\nAnswer the question using a single word or phrase."


def write_playground(folder: Path) -> Path:
    """LLaVA's `playground/data/eval`, with two questions of each benchmark."""
    for write in (_write_gqa, _write_pope, _write_textvqa, _write_scienceqa, _write_mme, _write_vqav2, _write_mmbench):
        write(folder)
    return folder


def _jsonl(file: Path, lines: Iterable[Row]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _plain(file: Path, data: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(data))


def _picture(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(PICTURES[0])


def _write_gqa(folder: Path) -> None:
    _jsonl(folder / "gqa/llava_gqa_testdev_balanced.jsonl", [
        {"question_id": f"20{n}", "image": "n1.jpg", "text": f"Is it red?{SHORT}", "category": "default"} for n in range(2)
    ])  # fmt: skip
    truth = {"question": "Is it red?", "answer": "yes", "imageId": "n1", "types": {"structural": "verify"}}
    _plain(folder / "gqa/data/questions1.2/testdev_balanced_questions.json", {f"20{n}": truth for n in range(2)})
    _picture(folder / "gqa/data/images/n1.jpg")


def _write_pope(folder: Path) -> None:
    categories = ("adversarial", "popular", "random")
    asked = [(category, n) for category in categories for n in range(2)]
    _jsonl(folder / "pope/llava_pope_test.jsonl", [
        {"question_id": place + 1, "image": "COCO_val2014_1.jpg", "text": f"Is there a dog {n}?{SHORT}", "category": category}
        for place, (category, n) in enumerate(asked)
    ])  # fmt: skip
    for category in categories:
        _jsonl(folder / f"pope/coco/coco_pope_{category}.json", [
            {"question_id": n + 1, "image": "COCO_val2014_1.jpg", "text": f"Is there a dog {n}?", "label": "no" if n else "yes"}
            for n in range(2)
        ])  # fmt: skip
    _picture(folder / "pope/val2014/COCO_val2014_1.jpg")


def _write_textvqa(folder: Path) -> None:
    lines = (f"What is it?\nReference OCR token: RED, BLUE{SHORT}", f"Who is it?\nReference OCR token: {SHORT}")
    _jsonl(folder / "textvqa/llava_textvqa_val_v051_ocr.jsonl", [
        {"question_id": "img1", "image": "img1.jpg", "text": text, "category": "default"} for text in lines
    ])  # fmt: skip
    _plain(folder / "textvqa/TextVQA_0.5.1_val.json", {"data": [
        {"image_id": "img1", "question": "What is it?", "answers": ["red"] * 10, "question_id": 1},
        {"image_id": "img1", "question": "Who is it?", "answers": ["me"] * 10, "question_id": 2},
    ]})  # fmt: skip
    _picture(folder / "textvqa/train_images/img1.jpg")


def _write_scienceqa(folder: Path) -> None:
    problem = {"question": "Which color?", "choices": ["red", "blue"], "answer": 1, "hint": "Look.", "subject": "natural science"}
    _plain(folder / "scienceqa/problems.json", {"4": problem | {"image": None}, "5": problem | {"image": "image.png"}})
    _plain(folder / "scienceqa/pid_splits.json", {"test": ["4", "5"]})
    _picture(folder / "scienceqa/images/test/5/image.png")


def _write_mme(folder: Path) -> None:
    _jsonl(folder / "MME/llava_mme.jsonl", [
        {"question_id": f"{category}/1.jpg", "image": f"{category}/1.jpg", "text": f"{text}{SHORT}", "category": category}
        for category in ("count", "posters")
        for text in ("Is there one?", "Are there two?")
    ])  # fmt: skip
    said = "Is there one? Please answer yes or no.\tYes\nAre there two?  Please answer yes or no.\tNo\n"
    release = "MME/MME_Benchmark_release_version"
    _picture(folder / f"{release}/count/1.jpg")
    (folder / release / "count/1.txt").write_text(said)
    _picture(folder / f"{release}/posters/images/1.jpg")
    (folder / release / "posters/questions_answers_YN").mkdir()
    (folder / release / "posters/questions_answers_YN/1.txt").write_text(said)


def _write_vqav2(folder: Path) -> None:
    _plain(
        folder / "vqav2/v2_OpenEnded_mscoco_val2014_questions.json",
        {"questions": [{"image_id": 42, "question": "What?", "question_id": 420}]},
    )
    _plain(folder / "vqav2/v2_mscoco_val2014_annotations.json", {"annotations": [
        {"question_id": 420, "image_id": 42, "question_type": "what", "answer_type": "other", "multiple_choice_answer": "red"}
        | {"answers": [{"answer": "red", "answer_confidence": "yes", "answer_id": n} for n in range(1, 11)]}
    ]})  # fmt: skip
    _picture(folder / "vqav2/val2014/COCO_val2014_000000000042.jpg")


def _write_mmbench(folder: Path) -> None:
    columns = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category", "comment", "split")
    rows = [
        ("5", "What color?", "", "red", "blue", "", "", "A", "color", base64.b64encode(PICTURES[0]).decode(), "made", "part", "", "dev"),
        ("1000005", "What color?", "", "blue", "red", "", "", "B", "color", "5", "made", "part", "", "dev"),
    ]
    (folder / "mmbench").mkdir()
    (folder / "mmbench/mmbench_dev_20230712.tsv").write_text("".join("\t".join(row) + "\n" for row in (columns, *rows)))
