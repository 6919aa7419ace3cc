"""Layers without slots for visual tokens, and the blocks that they spare."""

from dataclasses import replace

import pytest

from converters.runtime.plan import Grid, LayerPlan, Plan, Sizes
from converters.serving.slots import slotless_layers, visual_blocks
from converters.serving.work import LayerWork, layer_works

READ, UNREAD = LayerPlan((0, 1), (), ()), LayerPlan((), (), ())


def works(read: int, unread: int) -> tuple[LayerWork, ...]:
    sizes = Sizes(8, 6, read + unread, 2, 1, 4)
    return layer_works(Plan(sizes, (READ,) * read + (UNREAD,) * unread, (Grid(2, 2),)))


@pytest.mark.parametrize(
    ("read", "unread", "found"),
    [(6, 2, (6, 7)), (7, 1, (7,)), (8, 0, ()), (8, 4, (8, 9, 10, 11)), (20, 12, (24, 25, 26, 27, 28, 29, 30, 31)), (30, 2, ())],
)
def test_layers_that_groups_come_out_even_with(read: int, unread: int, found: tuple[int, ...]) -> None:
    """Of 32 layers a quarter, not the twelve for which twenty others would take two groups of twelve; two in sixteen are too few."""
    assert slotless_layers(works(read, unread)) == found


def test_where_most_layers_read_nothing() -> None:
    assert slotless_layers(works(2, 6)) == tuple(range(2, 8))
    assert slotless_layers(works(3, 5)) == (4, 5, 6, 7)


def test_layers_between_others() -> None:
    some = list(works(6, 2))
    some[1], some[7] = some[7], some[1]
    assert slotless_layers(some) == (1, 6)
    some[6] = replace(some[6], parts=some[0].parts)
    assert slotless_layers(some) == (1,)


def test_blocks_whose_tokens_are_all_visual() -> None:
    """Two pictures that touch, of 20 and 50 tokens from the sixth on: 5 to 74."""
    assert visual_blocks([(25, 74), (5, 24)], 16) == {1, 2, 3}
    assert visual_blocks([(0, 15), (17, 31)], 16) == {0}
    assert visual_blocks([(3, 14)], 16) == frozenset()
