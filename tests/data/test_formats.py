"""Questions in the forms that people have them in, and what is said of other files."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from converters.data.formats import read_samples
from converters.data.sample import Sample
from converters.data.samples import samples_of
from converters.errors import YopoError

LLAVA = {
    "id": "000000033471",
    "image": "a.png",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat color is it?"},
        {"from": "gpt", "value": "Red."},
        {"from": "human", "value": "Is it round?"},
        {"from": "gpt", "value": "Yes."},
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / name)
    return tmp_path


def written(folder: Path, data: Any, name: str = "questions.json") -> Path:
    (folder / name).write_text(json.dumps(data))
    return folder / name


def test_llava_conversations_as_a_list_and_as_lines(folder: Path) -> None:
    """Each turn is a question about the picture."""
    as_list = read_samples(written(folder, [LLAVA]))
    (folder / "lines.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(LLAVA).encode() + b"\r\n\n \n")
    as_lines = read_samples(folder / "lines.jsonl")
    expected = [("What color is it?", "Red."), ("Is it round?", "Yes.")]
    for found in (as_list, as_lines):
        assert [(one.question, one.answer) for one in found] == expected
        assert [one.picture().getpixel((0, 0)) for one in found] == [(255, 0, 0)] * 2
    assert as_list[1].place == f"{folder / 'questions.json'}, entry 1, turn 2"


def test_chats(folder: Path) -> None:
    parts = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Which is red?"}]
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}, {"role": "assistant", "content": "Both."}]
    (found,) = read_samples(written(folder, [{"messages": turns, "images": ["a.png", "b.png"]}]))
    assert (found.question, found.answer) == ("Which is red?", "Both.")
    assert len(found.pictures()) == 2


def test_videos(folder: Path) -> None:
    """Of conversations, chats and lines of ours: a file, frames in a list, several, beside a picture, in the line itself."""
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 100, 200)]
    frames[0].save(folder / "v.gif", save_all=True, append_images=frames[1:], duration=500)
    coded = "data:video/gif;base64," + base64.b64encode((folder / "v.gif").read_bytes()).decode()
    asked = [{"from": "human", "value": "<video>\nWhat moves?"}, {"from": "gpt", "value": "Nothing."}]
    lines = [
        {"id": 1, "video": "v.gif", "conversations": asked},
        {"video": ["a.png", "b.png"], "question": "b?"},
        {"videos": ["v.gif", ["a.png"]], "image": "a.png", "question": "c?"},
        {"video": coded, "question": "d?"},
    ]
    found = read_samples(written(folder, lines))
    assert [one.question for one in found] == ["What moves?", "b?", "c?", "d?"]
    assert [([len(video.frames) for video in one.footage()], len(one.pictures())) for one in found] == [
        ([8], 0), ([2], 0), ([8, 1], 1), ([8], 0)
    ]  # fmt: skip
    shades = [frame.getpixel((0, 0))[0] for frame in found[0].footage()[0].frames]
    assert shades == [frame.getpixel((0, 0))[0] for frame in found[3].footage()[0].frames]
    assert shades[0] < shades[4] < shades[7]
    assert samples_of(folder / "questions.json", answers=False).count == 4


def test_llavas_question_files(folder: Path) -> None:
    (found,) = read_samples(written(folder, [{"question_id": 1, "image": "a.png", "text": "Is it red?", "category": "color"}]))
    assert (found.question, found.answer, found.kind) == ("Is it red?", None, "color")


@pytest.mark.parametrize(
    ("record", "answer"),
    [
        ({"answer": 2}, "2"),
        ({"answer": 2.5}, "2.5"),
        ({"answers": ["red", "dark red", "dark red"]}, "dark red"),
        ({"answers": [{"answer": "two", "answer_confidence": "yes", "answer_id": 1}, {"answer": "2"}]}, "two"),  # as many: the first
        ({"answers": [3, 3, 4]}, "3"),
        ({}, None),
    ],
)
def test_answers(folder: Path, record: dict[str, Any], answer: str | None) -> None:
    (found,) = read_samples(written(folder, [{"image": "a.png", "question": "What?", **record}]))
    assert found.answer == answer


def test_pictures_in_the_line_several_and_none(folder: Path) -> None:
    coded = "data:image/png;base64," + base64.b64encode((folder / "a.png").read_bytes()).decode()
    lines = [{"image": coded, "question": "a?"}, {"image": ["a.png", "b.png"], "question": "b?"}, {"question": "c?", "answer": "c"}]
    found = read_samples(written(folder, lines))
    assert [len(one.pictures()) for one in found] == [1, 2, 0]
    assert found[0].picture().getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(YopoError, match="entry 2 has 2 pictures"):
        found[1].picture()


def test_text_alone_teaches_nothing_about_pictures(folder: Path) -> None:
    file = written(folder, [{"image": "a.png", "question": "a?", "answer": "a"}, {"question": "b?", "answer": "b"}])
    assert (samples_of(file, answers=True).count, samples_of(file, answers=True).left_out) == (2, 0)
    calibrating = samples_of(file, answers=False)
    assert (calibrating.count, calibrating.left_out) == (1, 1)
    with pytest.raises(YopoError, match="has no question about a picture"):
        samples_of(written(folder, [{"question": "b?"}]), answers=False)


def test_parquet(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    picture = {"bytes": (folder / "a.png").read_bytes(), "path": None}
    rows = [{"image": picture, "question": f"{n}?", "answer": str(n), "source": "ours"} for n in range(3)]
    (folder / "data").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "data" / "train.parquet", row_group_size=2)
    for place in (folder / "data", folder / "data" / "train.parquet"):
        found = read_samples(place)
        assert [(one.question, one.answer) for one in found] == [("0?", "0"), ("1?", "1"), ("2?", "2")]
        assert found[2].picture().getpixel((0, 0)) == (255, 0, 0)
    Image.new("RGB", (8, 8)).save(folder / "v.gif", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")])
    filmed = {"video": {"bytes": (folder / "v.gif").read_bytes(), "path": None}, "question": "what moves?"}
    parquet.write_table(pyarrow.Table.from_pylist([filmed]), folder / "filmed.parquet")
    (footage,) = read_samples(folder / "filmed.parquet")[0].footage()
    assert [frame.getpixel((0, 0)) for frame in footage.frames] == [(0, 0, 0)] * 4 + [(255, 0, 0)] * 4
    named = {"image": {"bytes": None, "path": "../a.png"}, "question": "which?"}
    parquet.write_table(pyarrow.Table.from_pylist([named]), folder / "data" / "named.parquet")
    assert read_samples(folder / "data" / "named.parquet")[0].picture().size == (8, 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"questions": [{"image_id": 1, "question": "?", "question_id": 1}]}', "looks like the question file of VQAv2"),
        ('{"info": {}, "annotations": []}', "looks like annotations of VQAv2 or COCO"),
        ("index\tquestion\tA\tB\n1\t?\ta\tb\n", "looks like a table, as MMBench's"),
        ('[{"video": "a.mp4", "conversations": []}]', "entry 1: the video .*a.mp4 does not exist"),
        ('[{"video": 3, "question": "?"}]', "entry 1: video is 3, but input should be a valid string, or a list of frames"),
        ('[{"video": [], "question": "?"}]', "entry 1: the video has no frames"),
        ('[{"image": "c.png", "question": "?"}]', "entry 1: there is no image .*c.png"),
        ('[{"image": "a.png", "question": "?", "answer": true}]', "entry 1: answer is True, but input should be a valid string"),
        ('[{"image": "a.png", "question": "?", "imgae": "b.png"}]', "entry 1 has an unknown key: imgae"),
        ("[1]", "entry 1: it is 1, but"),
        ("\n \n", "is empty"),
    ],
)
def test_what_it_looks_like(folder: Path, text: str, message: str) -> None:
    (folder / "file.json").write_text(text)
    with pytest.raises(YopoError, match=message) as caught:
        read_samples(folder / "file.json")
    assert caught.value.hint


def test_hub_names() -> None:
    with pytest.raises(YopoError, match="names no data set"):
        read_samples("hub:someone")


def test_samples_of_several_pictures_in_a_list(folder: Path) -> None:
    with pytest.raises(YopoError, match=r"sample 0: there is no image .*c.png"):
        samples_of([Sample((folder / "a.png", folder / "c.png"), "?")], answers=False)
