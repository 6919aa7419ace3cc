"""Which layers keep no slots for visual tokens in the KV cache, and which blocks that spares. Needs no vLLM."""

from collections.abc import Iterable, Sequence

from .work import LayerWork

MOST_GROUPS = 8
"""Each group of layers has a table of blocks of its own, which every step fills in."""


def slotless_layers(works: Sequence[LayerWork]) -> tuple[int, ...]:
    """The layers whose visual tokens get no slots, the last ones of those that have no K and V of them.

    An engine deals out blocks for groups of equally many layers: the number is the greatest for which no group needs filling up, on
    either side.
    """
    without = [index for index, work in enumerate(works) if not work.parts]
    layers = len(works)
    fitting = [few for few in range(1, min(len(without), layers - 1) + 1) if _groups(few, layers - few) <= MOST_GROUPS]
    return tuple(without[-max(fitting) :]) if fitting else ()


def _groups(one: int, other: int) -> int:
    """How many groups of the size of the smaller part both make; more than there may be, where one does not come out even."""
    size = min(one, other)
    return MOST_GROUPS + 1 if one % size or other % size else (one + other) // size


def visual_blocks(spans: Iterable[tuple[int, int]], block_size: int) -> frozenset[int]:
    """The blocks of a request whose tokens are all visual; `spans` are the first and last places of unbroken runs of visual tokens."""
    blocks: set[int] = set()
    for first, last in _joined(spans):
        blocks.update(range(-(-first // block_size), (last + 1) // block_size))
    return frozenset(blocks)


def _joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans that touch, as one."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if joined and first == joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    return joined
