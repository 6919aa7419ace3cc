"""The harder questions: five to nine small objects, a third of them letters, in a 4x4 grid; most answers need two places at once."""

from math import hypot
from random import Random

from converters.data.demo.letters import LETTERS
from converters.data.demo.shapes import (
    CANVAS_SIZE,
    COLORS,
    SHAPES,
    Asker,
    PlacedShape,
    Scene,
    article,
    noun,
    plural,
    random_background,
    random_object,
    relation_question,
    unique_names,
)

CELLS = 4
CELL = CANVAS_SIZE // CELLS
MIN_OBJECTS, MAX_OBJECTS = 5, 9
RADII = (7.0, 9.5)
MARGIN = 12.0  # pixels by which "left of" must hold: half a cell
NEARER = 1.25  # the second nearest object is at least this many times as far away


def random_scene(source: Random) -> Scene:
    """Objects in different cells; few colours, shapes and letters, so that one word seldom names one object."""
    colors = source.sample(list(COLORS), source.randint(3, 6))
    kinds = source.sample(SHAPES, source.randint(2, 4)) + source.sample(list(LETTERS), source.randint(1, 3))
    cells = source.sample(range(CELLS * CELLS), source.randint(MIN_OBJECTS, MAX_OBJECTS))
    objects = (random_object(source, source.choice(kinds), source.choice(colors), divmod(cell, CELLS), RADII, CELL) for cell in cells)
    return Scene(background=random_background(source), objects=tuple(objects), rows=CELLS, columns=CELLS, cell=CELL)


def _named(scene: Scene, source: Random) -> tuple[PlacedShape, str] | None:
    """An object and a phrase that means no other one."""
    placed = source.choice(scene.objects)
    names = unique_names(scene, placed)
    return (placed, source.choice(names)) if names else None


def _letter_question(scene: Scene, source: Random) -> tuple[str, str] | None:
    """The only letter of a colour; shapes may share its colour."""
    letters = [placed for placed in scene.objects if placed.shape in LETTERS]
    colors = [placed.color for placed in letters]
    unique = [placed for placed in letters if colors.count(placed.color) == 1]
    if not unique:
        return None
    placed = source.choice(unique)
    return f"Which letter is {placed.color}?", placed.shape


def _count_question(scene: Scene, source: Random) -> tuple[str, str] | None:
    topic = source.choice(("letters", "color", "shape"))
    seen = source.choice(scene.objects)
    if topic == "letters":
        return "How many letters are there?", str(sum(placed.shape in LETTERS for placed in scene.objects))
    if topic == "color":
        return f"How many {seen.color} shapes are there?", str(sum(placed.color == seen.color for placed in scene.objects))
    if seen.shape in LETTERS:
        return None
    return f"How many {plural(seen.shape)} are there?", str(sum(placed.shape == seen.shape for placed in scene.objects))


def _presence_question(scene: Scene, source: Random) -> tuple[str, str] | None:
    """Yes and no are equally likely; an absent pair joins a colour and a shape that are both in the picture."""
    present = {(placed.color, placed.shape) for placed in scene.objects}
    absent = sorted({(first.color, second.shape) for first in scene.objects for second in scene.objects} - present)
    if not absent:
        return None
    answer = source.choice(("yes", "no"))
    color, shape = source.choice(sorted(present) if answer == "yes" else absent)
    return f"Is there {article(color)} {color} {noun(shape)}?", answer


def _cell_question(scene: Scene, source: Random) -> tuple[str, str] | None:
    found = _named(scene, source)
    if found is None:
        return None
    placed, name = found
    line = source.choice(("row", "column"))
    return f"Which {line} is {name} in?", str(1 + int((placed.y if line == "row" else placed.x) // CELL))


def _relation_question(scene: Scene, source: Random) -> tuple[str, str] | None:
    return relation_question(scene, source, MARGIN)


def _nearest_question(scene: Scene, source: Random) -> tuple[str, str] | None:
    """Colour of the nearest other object, which is nearer than the next by a margin."""
    found = _named(scene, source)
    if found is None:
        return None
    placed, name = found
    others = [other for other in scene.objects if other is not placed]
    distances = sorted((hypot(other.x - placed.x, other.y - placed.y), other.color) for other in others)
    if distances[1][0] < NEARER * distances[0][0]:
        return None
    return f"What color is nearest to {name}?", distances[0][1]


ASKERS: dict[str, Asker] = {
    "letter": _letter_question,
    "count": _count_question,
    "presence": _presence_question,
    "cell": _cell_question,
    "relation": _relation_question,
    "nearest": _nearest_question,
}


def vocabulary() -> list[str]:
    """The words that the demo's questions do not have, in a fixed order."""
    return ["letter", "letters", "row", "column", "nearest", "to", *LETTERS]
