"""Lattices of interlaced reading: how a visual grid is dealt out to the heads that read it by turns.

`phase = (row + skew * column) mod phases`; the skew is the one that keeps the tokens of one lattice farthest apart.
"""

from functools import cache

MAX_PHASES = 16


@cache
def skew(phases: int) -> int:
    """The skew that maximises a lattice's smallest distance, the lowest on ties: 1, 1, 2, 2 for 2..5 phases.

    Distances are those of the infinite lattice `row + skew * column = 0 (mod phases)`, whose shortest vectors lie within
    `phases` rows and columns of the origin.
    """

    def smallest_distance(candidate: int) -> int:
        return min(
            row * row + column * column
            for row in range(phases + 1)
            for column in range(-phases, phases + 1)
            if (row, column) != (0, 0) and (row + candidate * column) % phases == 0
        )

    return max(range(1, phases), key=lambda candidate: (smallest_distance(candidate), -candidate)) if phases > 1 else 0


def phase_of(row: int, column: int, frame: int, phases: int) -> int:
    """The lattice that a visual token belongs to; in a video every frame starts one lattice further."""
    return (row + skew(phases) * column + frame) % phases


@cache
def phase_sizes(rows: int, columns: int, frames: int, phases: int) -> tuple[int, ...]:
    """Visual tokens in each lattice of a grid; they differ by little on large grids, by much on small ones."""
    sizes = [0] * phases
    for frame in range(frames):
        for row in range(rows):
            for column in range(columns):
                sizes[phase_of(row, column, frame, phases)] += 1
    return tuple(sizes)
