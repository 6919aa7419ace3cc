"""Pictures of coloured shapes on a canvas, with questions whose answers depend on what is where.

Everything is drawn from a string seed, so a split, a seed and an index name one picture for ever. Needs Pillow only.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from PIL import Image, ImageDraw

from converters.data.demo.letters import LETTERS, draw_letter
from converters.data.sample import Sample

Paint = TypeVar("Paint", int, tuple[int, int, int])

CANVAS_SIZE = 96
SUPERSAMPLING = 2  # drawn at twice the size and averaged down: smooth edges, as a resized photograph has
SPLITS = ("train", "calibration", "eval")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (40, 70, 220),
    "yellow": (240, 220, 40),
    "purple": (140, 40, 170),
    "orange": (245, 135, 20),
    "cyan": (50, 205, 220),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
MAX_OBJECTS = 4
CELLS = 3  # an object stands in one cell of a 3x3 grid, a little off its middle
MIN_RADIUS, MAX_RADIUS = 10.0, 13.0
CELL_GAP = 1.0  # pixels between an object and the edge of its cell
MARGIN = 16.0  # pixels by which "leftmost" or "left of" must hold: more than two objects of one column ever differ
DIRECTIONS: dict[str, tuple[int, int]] = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
EXTREMES: dict[str, tuple[int, int]] = {"leftmost": (0, -1), "rightmost": (0, 1), "highest": (1, -1), "lowest": (1, 1)}


@dataclass(frozen=True)
class PlacedShape:
    """One object: its centre (x to the right, y down, in canvas pixels), radius of its bounding circle, name and paint."""

    shape: str
    color: str
    x: float
    y: float
    radius: float
    paint: tuple[int, int, int]

    def coordinate(self, axis: int) -> float:
        return self.y if axis else self.x


@dataclass(frozen=True)
class Scene:
    """What a picture shows, before it is drawn, on a canvas of rows x columns square cells of `cell` pixels."""

    background: tuple[int, int, int]
    objects: tuple[PlacedShape, ...]
    rows: int = CELLS
    columns: int = CELLS
    cell: int = CANVAS_SIZE // CELLS

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.columns * self.cell, self.rows * self.cell


@dataclass(frozen=True)
class ShapeQuestion:
    """A question about a scene, with its only right answer."""

    question: str
    answer: str
    kind: str


def random_source(seed: int, split: str, index: int) -> Random:
    """The randomness of one picture; the split is part of the seed, so two splits never share a picture."""
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}: expected one of {', '.join(SPLITS)}.")
    return Random(f"{split}/{seed}/{index}")


def random_scene(source: Random, rows: int = CELLS, columns: int = CELLS) -> Scene:
    """One to four objects in different cells; half of the scenes repeat few colours and shapes, so that counting is needed."""
    colors = source.sample(list(COLORS), source.choice((2, 3, len(COLORS))))
    shapes = source.sample(SHAPES, source.choice((2, 3, len(SHAPES))))
    cells = source.sample(range(rows * columns), source.randint(1, MAX_OBJECTS))
    radii, size = (MIN_RADIUS, MAX_RADIUS), CANVAS_SIZE // CELLS
    objects = tuple(
        random_object(source, source.choice(shapes), source.choice(colors), divmod(cell, columns), radii, size) for cell in cells
    )
    return Scene(random_background(source), objects, rows, columns)


def random_background(source: Random) -> tuple[int, int, int]:
    """A shade of grey, slightly tinted."""
    shade = source.randint(70, 250)
    return (_jitter(source, shade, 6), _jitter(source, shade, 6), _jitter(source, shade, 6))


def random_object(source: Random, shape: str, color: str, cell: tuple[int, int], radii: tuple[float, float], size: float) -> PlacedShape:
    """An object within its cell (row, column) of `size` pixels, of a radius between the two."""
    radius = source.uniform(*radii)
    slack = size / 2 - radius - CELL_GAP
    row, column = cell
    x, y = ((number + 0.5) * size + source.uniform(-slack, slack) for number in (column, row))
    red, green, blue = COLORS[color]
    paint = (_jitter(source, red, 14), _jitter(source, green, 14), _jitter(source, blue, 14))
    return PlacedShape(shape, color, x, y, radius, paint)


def _jitter(source: Random, value: int, amount: int) -> int:
    return min(255, max(0, value + source.randint(-amount, amount)))


def draw(scene: Scene) -> Image.Image:
    """The RGB picture of a scene."""
    width, height = scene.size
    image = Image.new("RGB", (width * SUPERSAMPLING, height * SUPERSAMPLING), scene.background)
    pen = ImageDraw.Draw(image)
    for placed in scene.objects:
        draw_object(pen, placed, placed.paint, scene.background, SUPERSAMPLING)
    return image.reduce(SUPERSAMPLING)


def draw_object(pen: ImageDraw.ImageDraw, placed: PlacedShape, paint: Paint, background: Paint, scale: int) -> None:
    """Draw one object at `scale` times the canvas size; a ring's hole is filled with the background."""
    x, y, radius = placed.x * scale, placed.y * scale, placed.radius * scale
    if placed.shape in ("circle", "ring"):
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=paint)
    if placed.shape == "ring":
        hole = radius * 0.55
        pen.ellipse((x - hole, y - hole, x + hole, y + hole), fill=background)
    if placed.shape == "square":
        side = radius * 0.84
        pen.rectangle((x - side, y - side, x + side, y + side), fill=paint)
    if placed.shape == "triangle":
        pen.polygon([(x, y - radius), (x + radius * 0.95, y + radius * 0.75), (x - radius * 0.95, y + radius * 0.75)], fill=paint)
    if placed.shape == "diamond":
        pen.polygon([(x, y - radius), (x + radius * 0.8, y), (x, y + radius), (x - radius * 0.8, y)], fill=paint)
    if placed.shape == "cross":
        arm = radius * 0.3
        pen.rectangle((x - radius, y - arm, x + radius, y + arm), fill=paint)
        pen.rectangle((x - arm, y - radius, x + arm, y + radius), fill=paint)
    if placed.shape in LETTERS:
        draw_letter(pen, placed.shape, (x, y), radius, paint)


def article(color: str) -> str:
    return "an" if color[0] in "aeiou" else "a"


def plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def noun(shape: str) -> str:
    """How a shape is called in a sentence."""
    return f"letter {shape}" if shape in LETTERS else shape


def unique_names(scene: Scene, placed: PlacedShape) -> list[str]:
    """Every phrase that means this object and no other one of the scene."""
    others = [other for other in scene.objects if other is not placed]
    names = []
    if all((other.shape, other.color) != (placed.shape, placed.color) for other in others):
        names.append(f"the {placed.color} {noun(placed.shape)}")
    if all(other.shape != placed.shape for other in others):
        names.append(f"the {noun(placed.shape)}")
    if all(other.color != placed.color for other in others):
        names.append(f"the {placed.color} shape")
    return names


def _color_question(scene: Scene, source: Random) -> tuple[str, str] | None:
    shapes = [placed.shape for placed in scene.objects]
    unique = [placed for placed in scene.objects if shapes.count(placed.shape) == 1]
    if not unique:
        return None
    placed = source.choice(unique)
    return f"What color is the {placed.shape}?", placed.color


def _shape_question(scene: Scene, source: Random) -> tuple[str, str] | None:
    colors = [placed.color for placed in scene.objects]
    unique = [placed for placed in scene.objects if colors.count(placed.color) == 1]
    if not unique:
        return None
    placed = source.choice(unique)
    return f"What shape is {placed.color}?", placed.shape


def _count_question(scene: Scene, source: Random) -> tuple[str, str] | None:
    topic = source.choice(("all", "color", "shape"))
    seen = source.choice(scene.objects) if source.random() < 0.85 else None
    if topic == "all":
        return "How many shapes are there?", str(len(scene.objects))
    if topic == "color":
        color = seen.color if seen else source.choice(list(COLORS))
        return f"How many {color} shapes are there?", str(sum(placed.color == color for placed in scene.objects))
    shape = seen.shape if seen else source.choice(SHAPES)
    return f"How many {plural(shape)} are there?", str(sum(placed.shape == shape for placed in scene.objects))


def _presence_question(scene: Scene, source: Random) -> tuple[str, str] | None:
    """Yes and no are equally likely; most absent pairs join a colour and a shape that are both in the picture."""
    present = {(placed.color, placed.shape) for placed in scene.objects}
    if source.random() < 0.5:
        placed = source.choice(scene.objects)
        color, shape, answer = placed.color, placed.shape, "yes"
    else:
        near = sorted({(first.color, second.shape) for first in scene.objects for second in scene.objects} - present)
        far = [(color, shape) for color in COLORS for shape in SHAPES if (color, shape) not in present]
        color, shape = source.choice(near if near and source.random() < 0.7 else far)
        answer = "no"
    return f"Is there {article(color)} {color} {shape}?", answer


def _extreme_question(scene: Scene, source: Random) -> tuple[str, str] | None:
    word = source.choice(list(EXTREMES))
    axis, sign = EXTREMES[word]
    ranked = sorted(scene.objects, key=lambda placed: -sign * placed.coordinate(axis))
    if len(ranked) < 2 or abs(ranked[0].coordinate(axis) - ranked[1].coordinate(axis)) < MARGIN:
        return None
    if source.random() < 0.5:
        return f"Which shape is {word}?", ranked[0].shape
    return f"What color is the {word} shape?", ranked[0].color


def place(x: float, y: float, scene: Scene) -> str:
    """The cell that holds a point, in words, on a canvas of two or three rows and columns."""
    row = ("top", "", "bottom")[:: 1 if scene.rows == CELLS else 2][int(y // scene.cell)]
    column = ("left", "", "right")[:: 1 if scene.columns == CELLS else 2][int(x // scene.cell)]
    return f"{row} {column}".strip() or "center"


def _where_question(scene: Scene, source: Random) -> tuple[str, str] | None:
    placed = source.choice(scene.objects)
    names = unique_names(scene, placed)
    if not names:
        return None
    return f"Where is {source.choice(names)}?", place(placed.x, placed.y, scene)


def _relation_question(scene: Scene, source: Random) -> tuple[str, str] | None:
    return relation_question(scene, source, MARGIN)


def relation_question(scene: Scene, source: Random, margin: float) -> tuple[str, str] | None:
    """Each direction and its opposite are equally likely, so yes and no are too."""
    if len(scene.objects) < 2:
        return None
    first, second = source.sample(scene.objects, 2)
    first_names, second_names = unique_names(scene, first), unique_names(scene, second)
    words = source.choice(list(DIRECTIONS))
    axis, sign = DIRECTIONS[words]
    distance = first.coordinate(axis) - second.coordinate(axis)
    if not first_names or not second_names or abs(distance) < margin:
        return None
    return f"Is {source.choice(first_names)} {words} {source.choice(second_names)}?", "yes" if distance * sign > 0 else "no"


Asker = Callable[[Scene, Random], tuple[str, str] | None]
ASKERS: dict[str, Asker] = {
    "color": _color_question,
    "shape": _shape_question,
    "count": _count_question,
    "presence": _presence_question,
    "extreme": _extreme_question,
    "where": _where_question,
    "relation": _relation_question,
}


KINDS = tuple(ASKERS)


def ask(scene: Scene, kind: str, source: Random, attempts: int = 4, askers: Mapping[str, Asker] = ASKERS) -> ShapeQuestion | None:
    """A question of this kind that has one clear answer in this scene, or None when none was found in a few attempts."""
    for _ in range(attempts):
        found = askers[kind](scene, source)
        if found is not None:
            return ShapeQuestion(found[0], found[1], kind)
    return None


def questions(scene: Scene, source: Random, count: int, askers: Mapping[str, Asker] = ASKERS) -> list[ShapeQuestion]:
    """Up to `count` different questions about one scene, the kinds equally likely where the scene allows them."""
    found: dict[str, ShapeQuestion] = {}
    kinds = tuple(askers)
    for _ in range(3 * count):
        question = ask(scene, source.choice(kinds), source, askers=askers)
        if question is not None:
            found.setdefault(question.question, question)
        if len(found) == count:
            break
    return list(found.values())


def samples(
    count: int, seed: int, split: str = "train", scenes: Callable[[Random], Scene] = random_scene, askers: Mapping[str, Asker] = ASKERS
) -> Iterator[Sample]:
    """`count` pictures with one question each, the same ones for the same seed and split; all kinds are equally frequent."""
    kinds = tuple(askers)
    for index in range(count):
        source = random_source(seed, split, index)
        kind = kinds[index % len(kinds)]
        question = None
        while question is None:
            scene = scenes(source)
            question = ask(scene, kind, source, askers=askers)
        yield Sample(draw(scene), question.question, question.answer, kind)


def vocabulary() -> list[str]:
    """Every word of the questions and answers, in a fixed order."""
    asking = "what color is the shape which how many shapes are there a an where of above below in picture first second , ? ."
    places = "left right top bottom center leftmost rightmost highest lowest"
    words = [*asking.split(), *places.split(), "yes", "no", "background", *map(str, range(10))]
    words += [*COLORS, *SHAPES, *(plural(shape) for shape in SHAPES)]
    return list(dict.fromkeys(words))
