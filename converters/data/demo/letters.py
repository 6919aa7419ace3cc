"""Capital letters as bitmaps of five by seven dots, so that every machine draws the same ones."""

from PIL import ImageDraw

COLUMNS, ROWS = 5, 7
LETTERS: dict[str, tuple[str, ...]] = {
    "e": ("#####", "#....", "#....", "####.", "#....", "#....", "#####"),
    "f": ("#####", "#....", "#....", "####.", "#....", "#....", "#...."),
    "h": ("#...#", "#...#", "#...#", "#####", "#...#", "#...#", "#...#"),
    "k": ("#...#", "#..#.", "#.#..", "##...", "#.#..", "#..#.", "#...#"),
    "l": ("#....", "#....", "#....", "#....", "#....", "#....", "#####"),
    "n": ("#...#", "##..#", "##..#", "#.#.#", "#..##", "#..##", "#...#"),
    "t": ("#####", "..#..", "..#..", "..#..", "..#..", "..#..", "..#.."),
    "z": ("#####", "....#", "...#.", "..#..", ".#...", "#....", "#####"),
}


def draw_letter(
    pen: ImageDraw.ImageDraw, letter: str, center: tuple[float, float], radius: float, paint: int | tuple[int, int, int]
) -> None:
    """A letter as high as a circle of this radius around the centre."""
    dot = 2 * radius / ROWS
    left, top = center[0] - COLUMNS / 2 * dot, center[1] - radius
    for row, line in enumerate(LETTERS[letter]):
        for column, mark in enumerate(line):
            if mark == "#":
                x, y = left + column * dot, top + row * dot
                pen.rectangle((x, y, x + dot, y + dot), fill=paint)
