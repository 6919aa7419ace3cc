"""Strides: which visual tokens are shown by a head that shows every so many-th one.

Those with `(row + skew * column + frame) mod stride == 0`; the skew is the one that keeps them farthest apart.
"""

from functools import cache

from .plan import Grid


@cache
def skew(stride: int) -> int:
    """The skew that maximises the smallest distance between shown tokens, the lowest on ties: 1, 1, 2, 2 for strides 2 to 5.

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


@cache
def shown_tokens(grid: Grid, stride: int) -> tuple[int, ...]:
    """Numbers of the tokens of a grid that a stride shows; the first one always is."""
    across = skew(stride)
    return tuple(
        (frame * grid.rows + row) * grid.columns + column
        for frame in range(grid.frames)
        for row in range(grid.rows)
        for column in range(grid.columns)
        if (row + across * column + frame) % stride == 0
    )
