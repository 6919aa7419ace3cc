"""Strides: which visual tokens a head shows that reads every so many-th token of a grid.

A token is at `offset = (row + skew * column + frame) mod stride`, and a head shows the tokens at one offset. The skew is the one that
keeps these farthest apart.
"""

from functools import cache

MAX_STRIDE = 16


@cache
def skew(stride: int) -> int:
    """The skew that maximises the smallest distance between tokens at one offset, the lowest on ties: 1, 1, 2, 2 for strides 2 to 5.

    Distances are those of the infinite lattice `row + skew * column = 0 (mod stride)`, whose shortest vectors lie within
    `stride` rows and columns of the origin.
    """

    def smallest_distance(candidate: int) -> int:
        return min(
            row * row + column * column
            for row in range(stride + 1)
            for column in range(-stride, stride + 1)
            if (row, column) != (0, 0) and (row + candidate * column) % stride == 0
        )

    return max(range(1, stride), key=lambda candidate: (smallest_distance(candidate), -candidate)) if stride > 1 else 0


def offset_of(row: int, column: int, frame: int, stride: int) -> int:
    """The offset that a visual token is at; in a video every frame begins one offset further."""
    return (row + skew(stride) * column + frame) % stride


@cache
def offset_sizes(rows: int, columns: int, frames: int, stride: int) -> tuple[int, ...]:
    """Visual tokens at each offset of a grid; these differ by little on large grids, by much on small ones."""
    sizes = [0] * stride
    for frame in range(frames):
        for row in range(rows):
            for column in range(columns):
                sizes[offset_of(row, column, frame, stride)] += 1
    return tuple(sizes)
