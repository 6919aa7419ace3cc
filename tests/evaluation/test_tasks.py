"""Every benchmark from its published schema: what is asked, word for word, and what counts as right."""

import os
from pathlib import Path

import pytest
from support.benchmarks import HUB, PICTURES, write_hub_folder, write_playground

pytest.importorskip("pyarrow")

from converters.errors import YopoError
from converters.evaluation.sources import Asked, ask_for, draw
from converters.evaluation.statistics import PictureCounts
from converters.evaluation.task import Scored
from converters.evaluation.tasks import TASKS

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
DATA = {
    "gqa": "GQA", "vqav2": "VQAv2", "pope": "POPE", "mmbench": "MMBench", "mmbench-cn": "MMBench", "scienceqa": "ScienceQA",
    "textvqa": "textvqa", "textvqa-ocr": "textvqa", "mme": "MME", "mmmu": "MMMU", "chartqa": "ChartQA", "docvqa": "DocVQA",
    "ocrbench": "OCRBench", "ai2d": "ai2d", "realworldqa": "RealWorldQA", "mmstar": "MMStar", "seed": "SEED-Bench",
}  # fmt: skip
PROMPTS = {
    "gqa": "Is there a red circle?" + SHORT,
    "vqav2": "What color is the circle?" + SHORT,
    "pope": "Is there a circle in the image?" + SHORT,
    "mmbench": "What color is the circle? There are several options:\nA. red\nB. blue\nC. green\n" + LETTER,
    "mmbench-cn": "What color is the circle? There are several options:\nA. red\nB. blue\nC. green\n\n"
    "请直接使用所提供的选项字母作为答案回答。",
    "scienceqa": "Which color?\nA. red\nB. blue" + LETTER,
    "textvqa": "What is the color?" + SHORT,
    "textvqa-ocr": "What is the color?\nReference OCR token: " + SHORT,
    "mme": "Is there a circle in the image?" + SHORT,
    "mmmu": "What color is <image 1>?\nA. red\nB. blue\n" + LETTER,
    "chartqa": "How many circles?\nAnswer the question with a single word.",
    "docvqa": "What color?" + SHORT,
    "ocrbench": "what is written in the image?",
    "ai2d": "Which color?\nA. red\nB. blue\nC. green\nD. yellow" + LETTER,
    "realworldqa": "Which color?\nA. red\nB. blue\nPlease answer directly with only the letter.",
    "mmstar": "Which?\nOptions: A: red, B: blue" + LETTER.rstrip("."),
    "seed": "Which color?\nA. red\nB. blue\nC. green\nD. yellow" + LETTER,
}


def from_folder(name: str, folder: Path, protocol: str = "checkpoint") -> Asked:
    return ask_for(f"{name}={write_hub_folder(folder, DATA[name])}", protocol)


def figures(asked: Asked, answers: list[str]) -> dict[str, float]:
    pairs = zip(asked.questions, answers, strict=True)
    return PictureCounts.of([Scored(question, asked.task.score(text, question)) for question, text in pairs], asked.task.measure).figures()


def test_all_have_a_fixture() -> None:
    assert DATA.keys() == PROMPTS.keys() == TASKS.keys()


@pytest.mark.parametrize("name", TASKS)
def test_from_parquet(name: str, tmp_path: Path) -> None:
    """The first prompt word for word; pictures open; the truth, said as it stands, gives full marks and nonsense none."""
    asked = from_folder(name, tmp_path)
    rows = max(HUB[DATA[name]].values(), key=len)
    assert len(asked.questions) == asked.origin["questions"] == len(rows)
    assert len({question.id for question in asked.questions}) == len(rows)
    assert asked.questions[0].prompt == PROMPTS[name]
    assert {image.open().size for question in asked.questions for image in question.images} == {(96, 96)}
    best = figures(asked, [max(question.accepted, key=question.accepted.count) for question in asked.questions])
    worst = figures(asked, ["qqq, no" if name == "pope" else "qqq"] * len(rows))
    full = {"mme": 200.0, "ocrbench": float(len(rows))}.get(name, 100.0)
    assert next(iter(best.values())) == pytest.approx(full)
    assert next(iter(worst.values())) == 0


def test_rows_that_are_scored_together(tmp_path: Path) -> None:
    mmbench, mme = from_folder("mmbench", tmp_path / "a"), from_folder("mme", tmp_path / "b")
    assert [question.unit for question in mmbench.questions] == ["0", "0", "0", "1", "1", "1"]
    assert figures(mmbench, ["A", "B", "C", "A", "B", "A"]) == pytest.approx({"circular": 50, "rows": 500 / 6})
    assert [question.unit for question in mme.questions][:4] == ["existence/0.png"] * 2 + ["existence/1.png"] * 2
    assert figures(mme, ["yes", "no", "yes", "yes", "No", "Yes", "no", "yes"]) == {"perception": 125, "cognition": 0}


def test_pictures_are_what_intervals_draw(tmp_path: Path) -> None:
    assert [question.picture for question in from_folder("gqa", tmp_path / "a").questions] == ["n0"] * 3 + ["n1"] * 3
    pope = from_folder("pope", tmp_path / "b").questions
    assert len({question.picture for question in pope}) == 2
    assert len({question.unit for question in pope}) == 12


def test_gqa_finds_the_picture_in_the_other_table(tmp_path: Path) -> None:
    from io import BytesIO

    from PIL import Image

    last = from_folder("gqa", tmp_path).questions[-1].images[0].open()
    assert last.tobytes() == Image.open(BytesIO(PICTURES[1])).convert("RGB").tobytes()


def test_llava_words(tmp_path: Path) -> None:
    """Where LLaVA's prompts and lmms-eval's differ."""
    mmbench = from_folder("mmbench", tmp_path / "a", "llava").questions
    assert mmbench[0].prompt == "What color is the circle?\nA. red\nB. blue\nC. green" + LETTER
    assert mmbench[3].prompt == "Look.\nWhat color is the circle?\nA. red\nB. blue\nC. green" + LETTER
    assert from_folder("mmbench", tmp_path / "b").questions[3].prompt.startswith("Look. What color is the circle? There are several")
    assert from_folder("mmbench-cn", tmp_path / "c", "llava").questions[0].prompt.endswith("C. green\n请直接回答选项字母。")
    textvqa = from_folder("textvqa-ocr", tmp_path / "d", "llava").questions
    assert textvqa[0].prompt == "what is THE color?\nReference OCR token: " + SHORT
    assert textvqa[1].prompt == "what is THE color?\nReference OCR token: RED, BLUE" + SHORT


def test_scienceqa_context_and_mmmu_pictures(tmp_path: Path) -> None:
    assert from_folder("scienceqa", tmp_path / "a").questions[1].prompt == "Context: Look.\nWhich color?\nA. red\nB. blue" + LETTER
    mmmu = from_folder("mmmu", tmp_path / "b").questions
    assert mmmu[1].prompt == "What color is <image 2>?\n" + SHORT
    assert [len(question.images) for question in mmmu] == [1, 1]
    assert [len(question.images) for question in from_folder("seed", tmp_path / "c").questions] == [1, 2]


@pytest.mark.parametrize("name", ["gqa", "vqav2", "pope", "mmbench", "scienceqa", "textvqa-ocr", "mme"])
def test_from_the_playground(name: str, tmp_path: Path) -> None:
    """LLaVA's layout gives the prompts of its own question files."""
    asked = ask_for(f"{name}={write_playground(tmp_path)}", "llava")
    first = {
        "gqa": "Is it red?" + SHORT,
        "vqav2": "What?" + SHORT,
        "pope": "Is there a dog 0?" + SHORT,
        "mmbench": "What color?\nA. red\nB. blue" + LETTER,
        "scienceqa": "Context: Look.\nWhich color?\nA. red\nB. blue" + LETTER,
        "textvqa-ocr": "What is it?\nReference OCR token: RED, BLUE" + SHORT,
        "mme": "Is there one?" + SHORT,
    }
    assert asked.questions[0].prompt == first[name]
    truth = {"gqa": "yes", "vqav2": "red", "pope": "yes", "mmbench": "A", "scienceqa": "B", "textvqa-ocr": "red", "mme": "yes"}
    assert asked.questions[0].accepted[0] == truth[name]
    assert {image.open().size for question in asked.questions for image in question.images} == {(96, 96)}
    assert len(asked.questions) == {"gqa": 2, "vqav2": 1, "pope": 6, "mmbench": 2, "scienceqa": 1, "textvqa-ocr": 2, "mme": 4}[name]
    folder = tmp_path / {"textvqa-ocr": "textvqa", "mme": "MME"}.get(name, name)
    assert len(ask_for(f"{name}={folder}", "llava").questions) == len(asked.questions)


def test_whole_units_are_drawn(tmp_path: Path) -> None:
    questions = list(from_folder("mme", tmp_path).questions)
    drawn = draw(questions, 3, seed=1)
    assert len(drawn) == 4
    assert len({question.unit for question in drawn}) == 2
    assert drawn == draw(questions, 3, seed=1)
    assert draw(questions, 100, seed=1) == questions


class TestSaysWhatIsWrong:
    def test_forms(self, tmp_path: Path) -> None:
        with pytest.raises(YopoError, match=r"There is no .*nowhere"):
            ask_for(f"pope={tmp_path / 'nowhere'}", "checkpoint")
        with pytest.raises(YopoError, match="a revision and a place"):
            ask_for(f"pope@main={tmp_path}", "checkpoint")
        with pytest.raises(YopoError, match="There are no files data/test"):
            ask_for(f"pope={tmp_path}", "checkpoint")

    def test_another_schema(self, tmp_path: Path) -> None:
        folder = write_hub_folder(tmp_path, "ChartQA")
        with pytest.raises(YopoError, match=r"Row 0 of pope has no 'category', but type, question, answer"):
            ask_for(f"pope={folder}", "checkpoint")

    def test_not_parquet(self, tmp_path: Path) -> None:
        (tmp_path / "test-0.parquet").write_bytes(b"no")
        with pytest.raises(YopoError, match="cannot be read as parquet"):
            ask_for(f"pope={tmp_path}", "checkpoint")

    def test_a_picture_that_is_none(self, tmp_path: Path) -> None:
        import pyarrow
        from pyarrow import parquet

        table = pyarrow.Table.from_pylist(
            [{"type": "human", "question": "?", "answer": "2", "image": {"bytes": b"no picture", "path": None}}]
        )
        parquet.write_table(table, tmp_path / "test-0.parquet")
        question = ask_for(f"chartqa={tmp_path}", "checkpoint").questions[0]
        with pytest.raises(YopoError, match=r"column image of test-0.parquet, row 0 cannot be read: cannot identify image file"):
            question.images[0].open()

    def test_labels_of_other_questions(self, tmp_path: Path) -> None:
        labels = write_playground(tmp_path) / "pope/coco/coco_pope_random.json"
        labels.write_text(labels.read_text().replace("dog 1", "cat"))
        with pytest.raises(YopoError, match=r"is 'Is there a dog 1\?' here and 'Is there a cat\?' among the labels"):
            ask_for(f"pope={tmp_path}", "llava")

    def test_a_playground_without_pictures(self, tmp_path: Path) -> None:
        os.remove(write_playground(tmp_path) / "gqa/data/images/n1.jpg")
        with pytest.raises(YopoError, match="There is no picture"):
            ask_for(f"gqa={tmp_path}", "llava")
