"""The demo's pictures, asked about in English as people write it, and answered in words and sentences."""

import re
from collections.abc import Callable, Mapping
from random import Random

from converters.data.demo import shapes
from converters.data.demo.sets import QuestionSet
from converters.data.demo.shapes import Asker, Scene, article

NUMBERS = ("None", "One", "Two", "Three", "Four")
FARTHEST = {
    "leftmost": "farthest to the left",
    "rightmost": "farthest to the right",
    "highest": "closest to the top",
    "lowest": "closest to the bottom",
}
DIRECTIONS = {"left of": "to the left of", "right of": "to the right of", "above": "above", "below": "below"}
# The demo's question as a pattern, ways to ask the same, and how the answer is given.
Wording = tuple[str, tuple[str, ...], Callable[[Mapping[str, str], str], str]]


def _yes_or_no(_: Mapping[str, str], answer: str) -> str:
    return f"{answer.capitalize()}."


WORDINGS: dict[str, Wording] = {
    "color": (
        r"What color is (?P<it>.+)\?",
        (
            "What color is {it}?",
            "What is the color of {it}?",
            "Can you tell me the color of {it}?",
            "Which color does {it} have?",
        ),
        lambda said, answer: f"{said['it'].capitalize()} is {answer}.",
    ),
    "shape": (
        r"What shape is (?P<color>.+)\?",
        ("What is the {color} shape?", "Which shape in the picture is {color}?", "Tell me what kind of shape the {color} one is."),
        lambda said, answer: f"The {said['color']} shape is a {answer}.",
    ),
    "count": (
        r"How many (?P<things>.+) are there\?",
        (
            "How many {things} are there?",
            "How many {things} can you see?",
            "Count the {things}, please.",
            "What number of {things} is there?",
        ),
        lambda said, answer: f"{NUMBERS[int(answer)]}.",
    ),
    "presence": (
        r"Is there (?P<it>.+)\?",
        ("Is there {it} in the picture?", "Can you see {it}?", "Does the picture show {it}?", "Do you find {it} anywhere?"),
        _yes_or_no,
    ),
    "extreme": (
        r"(?P<what>Which shape|What color) is (?:the )?(?P<farthest>\w+)(?: shape)?\?",
        ("{what} is {farthest}?", "Look at what is {farthest}. {what} is that?", "{what} do you see {farthest}?"),
        lambda said, answer: f"The {answer}." if said["what"] == "Which shape" else f"It is {answer}.",
    ),
    "where": (
        r"Where is (?P<it>.+)\?",
        ("Where is {it}?", "In which part of the picture is {it}?", "Where do you see {it}?"),
        lambda said, answer: f"At the {answer}.",
    ),
    "relation": (
        r"Is (?P<first>the .+?) (?P<direction>left of|right of|above|below) (?P<second>the .+)\?",
        ("Is {first} {direction} {second}?", "Does {first} lie {direction} {second}?", "Would you say {first} is {direction} {second}?"),
        _yes_or_no,
    ),
}
DESCRIBE = (
    "What does the picture show?",
    "Describe the picture in one sentence.",
    "What can you see here?",
    "List the shapes by row.",
)


def _asker(kind: str) -> Asker:
    pattern, ways, answered = WORDINGS[kind]

    def asked(scene: Scene, source: Random) -> tuple[str, str] | None:
        found = shapes.ASKERS[kind](scene, source)
        if found is None:
            return None
        match = re.fullmatch(pattern, found[0])
        assert match
        said = match.groupdict()
        said |= {"farthest": FARTHEST.get(said.get("farthest", ""), ""), "direction": DIRECTIONS.get(said.get("direction", ""), "")}
        return source.choice(ways).format(**said), answered(said, found[1])

    return asked


def _description(scene: Scene, source: Random) -> tuple[str, str]:
    """What is there, row by row, with its place."""
    ordered = sorted(scene.objects, key=lambda placed: (placed.y // scene.cell, placed.x // scene.cell))
    places = (shapes.place(placed.x, placed.y, scene) for placed in ordered)
    parts = [f"{article(one.color)} {one.color} {one.shape} at the {where}" for one, where in zip(ordered, places, strict=True)]
    text = " and ".join([*([", ".join(parts[:-1])] if parts[1:] else []), parts[-1]])
    return source.choice(DESCRIBE), f"{text[0].upper()}{text[1:]}."


ENGLISH = QuestionSet(shapes.random_scene, {**{kind: _asker(kind) for kind in WORDINGS}, "describe": _description})
