"""Downsampling where a model's own processor can see less: fewer pixels of a picture (Qwen2-VL's max_pixels), or fewer tiles (InternVL's).

For each question the largest setting is taken at which all of its pictures together stay within the share of their visual FLOPs.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import Any

from ..planning.cost import dense_visual_flops
from ..runtime.plan import Grid, Sizes
from .schedule import Schedule


@dataclass(frozen=True)
class Smaller:
    """A processor whose pictures can be made smaller: by `most` visual tokens a picture, or by `most` tiles of the grid `tile`."""

    processor: Any
    sizes: Sizes
    tile: Grid | None
    share: float

    @classmethod
    def of(cls, processor: Any, sizes: Sizes, grid: Grid, share: float) -> "Smaller | None":
        """None where pictures are of one size. `grid` is the family's default one."""
        pictures = processor.image_processor
        if hasattr(pictures, "merge_size"):
            return cls(processor, sizes, None, share)
        return cls(processor, sizes, grid, share) if hasattr(pictures, "max_patches") else None

    @property
    def note(self) -> str:
        return "max_pixels of each question's pictures" if self.tile is None else "max_patches of each question's pictures"

    def encoded(self, sizes: Sequence[tuple[int, int]], encode: Callable[[], Any]) -> tuple[Any, Schedule]:
        """The inputs that `encode` makes of pictures of these sizes (height, width), made smaller, and what enters of them."""
        dense = self._grids(sizes)
        bound = floor(Fraction(self.share) * dense_visual_flops(self.sizes, dense))
        top = len(dense) if self.tile else max((grid.tokens for grid in dense), default=1)
        most = max(1, bisect_right(range(1, top + 1), bound, key=lambda most: dense_visual_flops(self.sizes, self._grids(sizes, most))))
        with self._set(most):
            inputs = encode()
        return inputs, self._schedule(self._grids(sizes, most), bound)

    def _schedule(self, left: Sequence[Grid], bound: int) -> Schedule:
        """Everything that is left enters; where that is a tile of each picture, and still too much, each is averaged over cells."""
        if self.tile is None or dense_visual_flops(self.sizes, left) <= bound:
            return Schedule("downsample", self.sizes, (), 0, note=self.note)
        cells = [Grid(max(1, count * self.tile.rows // self.tile.columns), count) for count in range(self.tile.columns, 0, -1)]
        coarse = next((grid for grid in cells if dense_visual_flops(self.sizes, [grid] * len(left)) <= bound), cells[-1])
        return Schedule("downsample", self.sizes, tuple(left), coarse.tokens * len(left), coarse=coarse, note=self.note)

    def _grids(self, sizes: Sequence[tuple[int, int]], most: int | None = None) -> list[Grid]:
        """What the pictures come to, in the processor's own words: tiles, or as many tokens."""
        pictures = self.processor.image_processor
        if self.tile is not None:
            options = {} if most is None else {"max_patches": most, "min_patches": 1}
            return [self.tile for size in sizes for _ in range(pictures.get_number_of_image_patches(*size, options))]
        area = (pictures.patch_size * pictures.merge_size) ** 2
        options = {} if most is None else {"min_pixels": area, "max_pixels": most * area}
        return [Grid(1, pictures.get_number_of_image_patches(*size, options) // pictures.merge_size**2) for size in sizes]

    @contextmanager
    def _set(self, most: int) -> Iterator[None]:
        """Within, the processor makes pictures of no more."""
        pictures = self.processor.image_processor
        if self.tile is not None:
            settings: dict[str, Any] = {"max_patches": most, "min_patches": 1}
        else:
            area = (pictures.patch_size * pictures.merge_size) ** 2
            settings = {"size": {"shortest_edge": area, "longest_edge": most * area}}
        before = {name: getattr(pictures, name) for name in settings}
        vars(pictures).update(settings)
        try:
            yield
        finally:
            vars(pictures).update(before)
