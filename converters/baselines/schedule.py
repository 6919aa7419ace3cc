"""Schedules of token pruners: how many visual tokens are left in every layer, for a share of the dense visual FLOPs.

A schedule is counted as a plan is (`planning.cost`): each layer on the visual tokens that are left in it, and the keys of all
tokens where a layer ranks them before it runs. Its layers are the published ones wherever the budget can be met so; where fewer
tokens than a quarter of what the budget pays for on average were left at the end, they move to earlier ones, and `note` says so.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache, partial
from math import floor, isqrt

from ..errors import YopoError
from ..planning.cost import dense_flops, dense_visual_flops
from ..runtime.plan import Grid, Sizes

ENOUGH = Fraction(1, 4)
"""Of the average number of tokens, those left at the end; 0.27 in the published settings of PyramidDrop and SparseVLM."""

PUBLISHED = "as published"


@dataclass(frozen=True)
class Stage:
    """Before layer `layer` runs, `kept` visual tokens stay and `recycled` new ones are merged from those that leave.

    They are ranked by the attention of the layer before, in its own pass, or, with `ranks_itself`, by queries and keys of layer
    `layer` on the tokens that it is about to get.
    """

    layer: int
    kept: int
    recycled: int = 0
    ranks_itself: bool = False

    @property
    def left(self) -> int:
        return self.kept + self.recycled


@dataclass(frozen=True)
class Schedule:
    """One method's setting for a model of these sizes and one prompt's visual grids.

    `entering` visual tokens enter the language model (fewer than the grids have where the method works before it), `coarse` is
    their grid where they still have one. `note` is "as published", or what had to be moved.
    """

    method: str
    sizes: Sizes
    grids: tuple[Grid, ...]
    entering: int
    stages: tuple[Stage, ...] = ()
    coarse: Grid | None = None
    note: str = PUBLISHED

    @property
    def tokens(self) -> int:
        """Visual tokens of the dense model."""
        return sum(grid.tokens for grid in self.grids)

    @property
    def by_layer(self) -> tuple[int, ...]:
        """Visual tokens that take part in each layer."""
        left = [self.entering] * self.sizes.num_hidden_layers
        for stage in self.stages:
            left[stage.layer :] = [stage.left] * (len(left) - stage.layer)
        return tuple(left)

    @property
    def flops(self) -> int:
        """Visual FLOPs of a prefill."""
        layer = replace(self.sizes, num_hidden_layers=1)
        key = 2 * self.sizes.hidden_size * self.sizes.num_key_value_heads * self.sizes.head_dim
        before = [self.entering, *(stage.left for stage in self.stages)]
        ranking = sum(key * tokens for tokens, stage in zip(before, self.stages, strict=False) if stage.ranks_itself)
        return sum(dense_flops(layer, part) for tokens in self.by_layer for part in split(tokens, self.grids)) + ranking

    @property
    def share(self) -> float:
        """Visual FLOPs as a share of the dense model's, comparable with a plan's budget."""
        return self.flops / dense_visual_flops(self.sizes, self.grids)


def split(count: int, grids: Sequence[Grid]) -> list[int]:
    """`count` visual tokens over grids by their size, what is left over to the first ones."""
    tokens = sum(grid.tokens for grid in grids)
    counts = [count * grid.tokens // tokens for grid in grids]
    return [part + (place < count - sum(counts)) for place, part in enumerate(counts)]


@dataclass(frozen=True)
class PrunerTarget:
    """What a schedule is made for."""

    sizes: Sizes
    grids: tuple[Grid, ...]
    share: float

    @property
    def tokens(self) -> int:
        return sum(grid.tokens for grid in self.grids)

    @property
    def layers(self) -> int:
        return self.sizes.num_hidden_layers

    def make(self, method: str, stages: Iterable[Stage], note: str = PUBLISHED) -> Schedule:
        return Schedule(method, self.sizes, self.grids, self.tokens, tuple(stages), note=note)

    def fits(self, schedule: Schedule) -> bool:
        return schedule.flops <= floor(Fraction(self.share) * dense_visual_flops(self.sizes, self.grids))

    def enough(self, schedule: Schedule) -> bool:
        return schedule.by_layer[-1] >= ENOUGH * Fraction(self.share) * self.tokens


def after(method: str) -> Callable[[PrunerTarget], Schedule]:
    """The schedule of a method that ranks once: all tokens in the first K = 2 layers, from then on those that it keeps.

    FastV (arXiv 2403.06764) keeps those that layer K attended to most, DART (arXiv 2502.11494) those least like others.
    """

    def schedule(target: PrunerTarget) -> Schedule:
        def at(first: int, kept: int) -> Schedule:
            moved = f"K = {first} instead of 2" + (", ranked by layer 0 before it runs" if first == 0 else "")
            return target.make(method, [Stage(first, kept, ranks_itself=first == 0)], PUBLISHED if first == 2 else moved)

        return _latest(target, at, range(min(2, target.layers - 1), -1, -1), method)

    return schedule


def pyramiddrop(target: PrunerTarget) -> Schedule:
    """PyramidDrop (arXiv 2410.17247): stages before L/4, L/2 and 3L/4, each keeps the same ratio (published: 0.5).

    Stages move earlier together, to s, 2 s and 3 s; in layer 0 all three are one.
    """
    published = max(1, target.layers // 4)

    def at(first: int, last: int) -> Schedule:
        ratio = (last / target.tokens) ** (1 / 3)
        counts = [max(1, int(target.tokens * ratio)), max(1, int(target.tokens * ratio**2)), last]
        stages = [Stage(first * place, kept, ranks_itself=True) for place, kept in enumerate(counts, 1) if first * place < target.layers]
        where = f"stages before layers {first}, {2 * first}, {3 * first}" if first else "one stage before layer 0"
        moved = "" if first == published else f"{where} instead of {published}, {2 * published}, {3 * published}; "
        return target.make("pyramiddrop", stages if first else stages[-1:], f"{moved}ratio {ratio:.3f}")

    return _latest(target, at, range(published, -1, -1), "pyramiddrop")


SPARSEVLM_LAYERS = (2, 6, 15)
"""Layers of 32 after which SparseVLM drops tokens."""

SPARSEVLM_KEPT = ((0, 0, 0), (66, 30, 17), (238, 48, 26), (303, 110, 36), (300, 200, 110), (576, 576, 576))
"""Of 576 tokens, those kept there in the published settings of 64, 96, 128 and 192 tokens; between nothing and all."""


def sparsevlm(target: PrunerTarget) -> Schedule:
    """SparseVLM (arXiv 2410.04417): after layers 2, 6 and 15 of 32, ranked by the text tokens that attend to the picture.

    Kept tokens are interpolated between the published settings; a part of those that leave is recycled into merged ones. The
    paper's other way, as many tokens as the rank of the attention matrix, has no budget.
    """
    published = [round(layer * target.layers / 32) + 1 for layer in SPARSEVLM_LAYERS]

    def at(shift: int, last: int) -> Schedule:
        layers = [layer - shift for layer in published]
        counts = [round(count * target.tokens / 576) for count in _interpolated(last * 576 / target.tokens)]
        moved = f"drops before layers {', '.join(map(str, layers))} instead of {', '.join(map(str, published))}"
        return target.make("sparsevlm", _recycling(target.tokens, counts, layers), moved if shift else PUBLISHED)

    shifts = [shift for shift in range(published[0] + 1) if published[-1] - shift < target.layers]
    return _latest(target, at, shifts, "sparsevlm")


def _interpolated(last: float) -> list[float]:
    """Tokens of 576 kept at the three places when `last` are kept at the third."""
    place = bisect_left(SPARSEVLM_KEPT, last, key=lambda kept: kept[2], lo=1, hi=len(SPARSEVLM_KEPT) - 1)
    low, high = SPARSEVLM_KEPT[place - 1], SPARSEVLM_KEPT[place]
    part = (last - low[2]) / (high[2] - low[2])
    return [a + part * (b - a) for a, b in zip(low, high, strict=True)]


def _recycling(tokens: int, counts: list[int], layers: list[int]) -> Iterator[Stage]:
    for layer, count in dict(zip(layers, counts, strict=True)).items():  # of several in one layer, as a shallow model has, the last
        kept = min(max(1, count), tokens - 1)
        yield Stage(layer, kept, recycled(tokens - kept)[1], ranks_itself=layer == 0)
        tokens = kept + recycled(tokens - kept)[1]


def recycled(leaving: int) -> tuple[int, int]:
    """Of tokens that leave, how many are worth recycling (the best 30 %), and into how many they are merged (a tenth)."""
    worth = min(leaving, int(leaving * 0.3) + 1)
    return worth, worth // 10 + 1


def before(method: str, note: str = PUBLISHED) -> Callable[[PrunerTarget], Schedule]:
    """The schedule of a method that hands fewer tokens to the language model: as many as the budget pays for."""

    def schedule(target: PrunerTarget) -> Schedule:
        return _latest(target, lambda _, kept: Schedule(method, target.sizes, target.grids, kept, note=note), [0], method)

    return schedule


def by_tower(method: str, name: str) -> Callable[[PrunerTarget], Schedule]:
    """The same for a method that goes by the vision tower's attention: pictures of one tile each."""

    def schedule(target: PrunerTarget) -> Schedule:
        _check_grids(target, name)
        return before(method)(target)

    return schedule


def _check_grids(target: PrunerTarget, method: str) -> None:
    if len(set(target.grids)) != 1 or target.grids[0].frames != 1:
        raise YopoError(f"{method} takes pictures of one size.", "Give one grid.")


def downsample(target: PrunerTarget) -> Schedule:
    """A coarser grid of the same shape, as a smaller picture would have."""
    _check_grids(target, "Downsampling")
    grid, pictures = target.grids[0], len(target.grids)

    def at(_: int, kept: int) -> Schedule:
        columns = max(1, isqrt(kept * grid.columns // grid.rows))
        coarse = Grid(max(1, min(kept // columns, round(columns * grid.rows / grid.columns))), columns)
        return Schedule("downsample", target.sizes, target.grids, pictures * coarse.tokens, coarse=coarse)

    return _latest(target, at, [0], "downsample", grid.tokens)


SCHEDULES: dict[str, Callable[[PrunerTarget], Schedule]] = {
    "fastv": after("fastv"),
    "pyramiddrop": pyramiddrop,
    "sparsevlm": sparsevlm,
    "visionzip": by_tower("visionzip", "VisionZip"),
    "divprune": before("divprune"),
    "cdpruner": before("cdpruner", "relevance by the language model's word embeddings"),
    "dart": after("dart"),
    "scope": by_tower("scope", "SCOPE"),
    "downsample": downsample,
    "random": before("random"),
}


@cache
def schedule(method: str, sizes: Sizes, grids: tuple[Grid, ...], share: float) -> Schedule:
    """The method's schedule of at most this share of the dense visual FLOPs. Raises YopoError for an unknown method, or when it cannot."""
    if method not in SCHEDULES:
        raise YopoError(f"There is no token pruner {method!r}.", f"Token pruners: {', '.join(SCHEDULES)}.")
    if not 0 < share < 1:
        raise YopoError(f"The share is {share:g}, not between 0 and 1.", "It is the kept share of dense visual FLOPs, such as 0.25.")
    return SCHEDULES[method](PrunerTarget(sizes, grids, share))


def _latest(
    target: PrunerTarget, at: Callable[[int, int], Schedule], choices: Iterable[int], method: str, settings: int | None = None
) -> Schedule:
    """The largest setting `at(choice, 1..)` within budget of the first choice that leaves enough tokens, else of the last that fits.

    Raises YopoError when not even the smallest fits.
    """
    found = []
    for choice in choices:
        exceeds = partial(_exceeds, target, at, choice)
        if fitting := bisect_left(range(1, settings or target.tokens), True, key=exceeds):
            found.append(at(choice, fitting))
            if target.enough(found[-1]):
                return found[-1]
    if not found:
        raise YopoError(f"{method} cannot stay within {target.share:g} of the visual FLOPs.", "Give a larger budget, or leave it out.")
    return found[-1]


def _exceeds(target: PrunerTarget, at: Callable[[int, int], Schedule], choice: int, kept: int) -> bool:
    return not target.fits(at(choice, kept))
