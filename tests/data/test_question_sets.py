"""The bundled question sets: the same for ever, answers that follow from the scene, and no picture in two splits."""

import hashlib
from random import Random

import pytest

from converters.data.demo import harder
from converters.data.demo.letters import COLUMNS, LETTERS, ROWS
from converters.data.demo.sets import CANVASES, SETS, samples
from converters.data.demo.shapes import PlacedShape, Scene, draw, place, unique_names
from tools.demo.architecture import build_tokenizer

# A 4x4 grid of 24 pixels: a red circle at the top left, a red K below it, a blue T and a green ring at the bottom right.
OBJECTS = (
    PlacedShape("circle", "red", 12, 12, 8, (220, 30, 30)),
    PlacedShape("k", "red", 12, 36, 8, (220, 30, 30)),
    PlacedShape("t", "blue", 84, 60, 8, (40, 70, 220)),
    PlacedShape("ring", "green", 84, 84, 8, (30, 160, 50)),
)
SCENE = Scene((128, 128, 128), OBJECTS, rows=4, columns=4, cell=24)
ANSWERS = {
    "Which letter is blue?": "t",
    "Which letter is red?": "k",
    "How many letters are there?": "2",
    "How many red shapes are there?": "2",
    "How many circles are there?": "1",
    "Is there a red letter k?": "yes",
    "Is there a blue letter k?": "no",
    "Which row is the letter k in?": "2",
    "Which column is the green ring in?": "4",
    "Is the circle above the ring?": "yes",
    "Is the red letter k right of the blue shape?": "no",
    "What color is nearest to the green shape?": "blue",
    "What color is nearest to the circle?": "red",
}
DIGESTS = {"demo": "5f7a709b", "sizes": "cc0d8130", "harder": "cdf6e7f6"}  # of fourteen questions and answers


def test_harder_answers() -> None:
    source = Random(0)
    asked = {one.question: one.answer for _ in range(40) for one in SETS["harder"].questions(SCENE, source, 60)}
    assert ANSWERS.items() <= asked.items()


def test_a_name_means_one_object() -> None:
    assert unique_names(SCENE, OBJECTS[0]) == ["the red circle", "the circle"]
    assert unique_names(SCENE, OBJECTS[2]) == ["the blue letter t", "the letter t", "the blue shape"]


@pytest.mark.parametrize("name", SETS)
def test_samples_are_the_same_for_ever(name: str) -> None:
    first, again = ([(one.question, one.answer, one.image.tobytes()) for one in samples(name, 14, 0, "eval")] for _ in range(2))
    assert first == again
    other = [[one.image.tobytes() for one in samples(name, 14, seed, split)] for seed, split in ((1, "eval"), (0, "train"))]
    assert not {image for _, _, image in first} & {image for images in other for image in images}
    assert hashlib.sha256(repr([text[:2] for text in first]).encode()).hexdigest()[:8] == DIGESTS[name]


def test_all_kinds_are_equally_frequent() -> None:
    for questions in SETS.values():
        kinds = [one.kind for one in questions.samples(2 * len(questions.askers), 0)]
        assert all(kinds.count(kind) == 2 for kind in questions.askers)


def test_pictures_of_several_sizes() -> None:
    sizes = {one.image.size for one in samples("sizes", 40, 0)}
    assert sizes == {(32 * columns, 32 * rows) for rows, columns in CANVASES}
    flat = Scene((0, 0, 0), (), rows=2, columns=3)
    places = [place(x, y, flat) for y in (16, 48) for x in (16, 48, 80)]
    assert places == [
        "top left",
        "top",
        "top right",
        "bottom left",
        "bottom",
        "bottom right",
    ]


def test_many_small_objects() -> None:
    scenes = [harder.random_scene(Random(number)) for number in range(50)]
    assert {len(scene.objects) for scene in scenes} == {5, 6, 7, 8, 9}
    assert all(2 * placed.radius < scene.cell for scene in scenes for placed in scene.objects)


def test_letters_differ_and_are_drawn() -> None:
    assert len(set(LETTERS.values())) == len(LETTERS)
    assert {(len(lines), *map(len, lines)) for lines in LETTERS.values()} == {(ROWS, *[COLUMNS] * ROWS)}
    picture = draw(Scene((0, 0, 0), (PlacedShape("l", "red", 12, 12, 7, (255, 0, 0)),), rows=1, columns=1, cell=24))
    assert picture.getpixel((8, 8)) == (255, 0, 0)  # the stroke on the left
    assert picture.getpixel((15, 8)) == (0, 0, 0)


def test_every_word_has_a_token() -> None:
    tokenizer = build_tokenizer(harder.vocabulary())
    for name in SETS:
        for one in samples(name, 60, 0):
            assert tokenizer.unk_token_id not in tokenizer(f"{one.question} {one.answer}").input_ids
