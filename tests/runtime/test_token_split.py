"""Where pictures begin among a sample's visual rows."""

import pytest
import torch

from converters.runtime.plan import Grid
from converters.runtime.token_split import Image, images_of_one_grid, images_of_runs


def test_three_pictures_of_a_sample() -> None:
    """Runs of 2 x 2, 1 x 3 and 2 x 1 visual tokens, text between them; positions are rows and columns."""
    grids, visual, places = [Grid(2, 2), Grid(1, 3), Grid(2, 1)], [], []
    for grid in grids:
        places += [(row, column) for row in range(grid.rows) for column in range(grid.columns)] + [(0, 0)]
        visual += [True] * grid.tokens + [False]
    positions = torch.tensor([[(0, *place) for place in places]]).movedim(-1, 0)
    assert images_of_runs(torch.tensor([visual]), positions) == (Image(0, 0, grids[0]), Image(0, 4, grids[1]), Image(0, 7, grids[2]))


def test_a_prompt_is_not_cut_inside_its_second_picture() -> None:
    grid = Grid(2, 2)
    assert images_of_one_grid([8, 4], grid) == (Image(0, 0, grid), Image(0, 4, grid), Image(1, 0, grid))
    for count in (3, 6):
        with pytest.raises(ValueError, match=f"{count} visual tokens in this call, which is no multiple of the 4"):
            images_of_one_grid([count], grid)
