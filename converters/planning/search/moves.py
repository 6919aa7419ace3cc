"""Moves: one knob of a layer, or of neighbouring layers, set to less or to more; and the plan that this makes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from ...runtime.plan import MAX_STRIDE, Grid, LayerPlan, Plan, Sizes, normalise
from ..cost import layer_cost
from ..importance import ImportanceOrder

SHARES = (1.0, 0.75, 0.5, 0.375, 0.25, 0.18, 0.125, 0.06, 0.0)
WINDOWS = (5, 3)
RANKS = (0.375, 0.25, 0.125, 0.0625, 0.03125)
"""Of the hidden size."""


@dataclass(frozen=True, order=True)
class Move:
    """`knob` of these layers set to `to`: KV heads that text reads (`read`), self heads, neurons, the window's side (0: none), the
    read stride (`stride`), the rank of visual K and V (`rank`; 0: none).

    `freeze` empties self heads and neurons. Counts keep the best units by rank, or add the best of the others.
    """

    layers: tuple[int, ...]
    knob: str
    to: int = 0


def moved(plan: Plan, move: Move, order: ImportanceOrder) -> Plan:
    """The plan after a move, normalised."""
    layers = list(plan.layers)
    for index in move.layers:
        layers[index] = _changed(layers[index], index, move, order, plan.sizes)
    return normalise(replace(plan, layers=tuple(layers)))


def _changed(layer: LayerPlan, index: int, move: Move, order: ImportanceOrder, sizes: Sizes) -> LayerPlan:
    if move.knob == "read":
        return replace(layer, read_heads=_reading(layer.read_heads, order.read_kv_heads[index], move.to, sizes.group))
    if move.knob == "self":
        return replace(layer, self_heads=resized(layer.self_heads, by_group(order.self_heads[index], sizes.group), move.to))
    if move.knob == "neurons":
        return replace(layer, neurons=resized(layer.neurons, order.neurons[index], move.to))
    if move.knob == "window":
        return replace(layer, window=move.to or None)
    if move.knob == "stride":
        return replace(layer, read_stride=move.to)
    if move.knob == "rank":
        return replace(layer, kv_rank=move.to or None)
    return replace(layer, self_heads=(), neurons=())


def _reading(heads: tuple[int, ...], order: Sequence[int], count: int, group: int) -> tuple[int, ...]:
    """Query heads of `count` KV heads; a KV head that stays keeps the query heads it had, one that is added comes with all."""
    groups = tuple(sorted({head // group for head in heads}))
    kept = resized(groups, order, count)
    whole = [head for kv_head in set(kept) - set(groups) for head in range(kv_head * group, (kv_head + 1) * group)]
    return tuple(sorted([head for head in heads if head // group in kept] + whole))


def resized(kept: tuple[int, ...], order: Sequence[int], count: int) -> tuple[int, ...]:
    """`count` units: the best of those kept, or all of them and the best of the others. Sorted."""
    if count == len(kept):
        return kept
    present = set(kept)
    if count < len(kept):
        return tuple(sorted([unit for unit in order if unit in present][:count]))
    others = [unit for unit in order if unit not in present][: count - len(kept)]
    return tuple(sorted([*kept, *others]))


def by_group(order: tuple[int, ...], group: int) -> tuple[int, ...]:
    """Query heads in the order of their KV heads (by the mean place of a group's heads), since these are paid for once."""
    if group == 1:
        return order
    place = {head: number for number, head in enumerate(order)}
    total = {head: sum(place[other] for other in range(head - head % group, head - head % group + group)) for head in order}
    return tuple(sorted(order, key=lambda head: (total[head], head // group, place[head])))


@lru_cache
def notches(units: int) -> tuple[int, ...]:
    """The counts that a knob of so many units stops at, falling."""
    return tuple(sorted({max(1, round(share * units)) if share else 0 for share in SHARES}, reverse=True))


@lru_cache
def notches_fine(units: int) -> tuple[int, ...]:
    """More of them, rising: for changes that cost no measurement."""
    return tuple(sorted({round(units * 0.8**step) for step in range(24)} | {0}))


def counts(layer: LayerPlan, sizes: Sizes) -> dict[str, int]:
    """How many KV heads are read, self heads and neurons computed in a layer."""
    read = len({head // sizes.group for head in layer.read_heads})
    return {"read": read, "self": len(layer.self_heads), "neurons": len(layer.neurons)}


def units(sizes: Sizes) -> dict[str, int]:
    """How many of each a layer has at most."""
    return {"read": sizes.num_key_value_heads, "self": sizes.num_attention_heads, "neurons": sizes.intermediate_size}


def moves_down(plan: Plan, layers: tuple[int, ...]) -> Iterator[tuple[Move, ...]]:
    """Moves of neighbouring layers to less, knob by knob, each from the smallest change to the largest. The plan must be normalised."""
    sizes = plan.sizes
    stands = {index: counts(plan.layers[index], sizes) for index in layers}
    for knob, total in units(sizes).items():
        highest = max(stand[knob] for stand in stands.values())
        if highest:
            yield tuple(Move(layers, knob, count) for count in notches(total) if count < highest)
    if any(stand["self"] for stand in stands.values()) and any(stand["neurons"] for stand in stands.values()):
        yield (Move(layers, "freeze"),)
    yield from _window_moves(plan, layers)
    reading = [index for index in layers if plan.layers[index].kv_heads(sizes)[1]]
    yield from _stride_moves({index: plan.layers[index].read_stride for index in reading})
    yield from _rank_moves(
        {index: rank_of(plan.layers[index], sizes) for index in layers if any(plan.layers[index].kv_heads(sizes))}, sizes
    )


def _stride_moves(stands: Mapping[int, int]) -> Iterator[tuple[Move, ...]]:
    """The layers that have the smallest stride get a larger one."""
    stride = min(stands.values(), default=MAX_STRIDE)
    if stride < MAX_STRIDE:
        lowest = tuple(index for index, stand in stands.items() if stand == stride)
        yield tuple(Move(lowest, "stride", more) for more in range(stride + 1, MAX_STRIDE + 1))


@lru_cache
def rank_notches(sizes: Sizes) -> tuple[int, ...]:
    """The ranks that K and V of visual tokens stop at, falling: those that cost less than the whole projections."""
    width = 2 * sizes.num_key_value_heads * sizes.head_dim
    useful = {max(1, round(share * sizes.hidden_size)) for share in RANKS}
    return tuple(sorted((rank for rank in useful if rank * (sizes.hidden_size + width) < sizes.hidden_size * width), reverse=True))


def rank_of(layer: LayerPlan, sizes: Sizes) -> int:
    """Dimensions that K and V of visual tokens come through: all without a rank."""
    return layer.kv_rank or sizes.hidden_size


def _rank_moves(stands: Mapping[int, int], sizes: Sizes) -> Iterator[tuple[Move, ...]]:
    """The layers that have the highest rank have a lower one."""
    highest = max(stands.values(), default=0)
    there = tuple(index for index, stand in stands.items() if stand == highest)
    if lower := [rank for rank in rank_notches(sizes) if rank < highest]:
        yield tuple(Move(there, "rank", rank) for rank in lower)


def _window_moves(plan: Plan, layers: tuple[int, ...]) -> Iterator[tuple[Move, ...]]:
    seeing = [index for index in layers if plan.layers[index].self_heads]
    for side in WINDOWS:
        wider = tuple(index for index in seeing if (plan.layers[index].window or side + 1) > side)
        if wider:
            yield (Move(wider, "window", side),)
            return


def moves_worth(plan: Plan, layers: tuple[int, ...], order: ImportanceOrder, grain: float) -> Iterator[tuple[Move, Plan]]:
    """For each knob of these layers the nearest move that saves at least a share `grain` of the plan, and the one that empties it.

    An emptying move may save less. Each comes with its plan.
    """
    flops = visual_flops(plan)
    for moves in moves_down(plan, layers):
        near = None
        for move in moves:
            lower = moved(plan, move, order)
            if flops - visual_flops(lower) >= grain * flops and flops > visual_flops(lower):
                near = move
                yield move, lower
                break
        if moves[-1] != near and moves[-1].to == 0:
            lower = moved(plan, moves[-1], order)
            if visual_flops(lower) < flops:
                yield moves[-1], lower


def moves_up(plan: Plan, layers: tuple[int, ...]) -> Iterator[Move]:
    """Moves of neighbouring layers of a normalised plan to one notch more, and to the next; a wider window, or none; a higher rank, or
    none. Of the layers those move that have less."""
    sizes = plan.sizes
    stands = {index: counts(plan.layers[index], sizes) for index in layers}
    for knob, total in units(sizes).items():
        open_ones = {index: stand[knob] for index, stand in stands.items() if knob == "read" or index < plan.visual_depth - 1}
        lowest = min(open_ones.values(), default=total)
        for count in [count for count in reversed(notches(total)) if count > lowest][:2]:
            yield Move(tuple(index for index, stand in open_ones.items() if stand < count), knob, count)
    windows = {index: plan.layers[index].window or 0 for index in layers if plan.layers[index].window and plan.layers[index].self_heads}
    if windows:
        sides = [side for side in (*reversed(WINDOWS), 0) if side > min(windows.values()) or not side]
        yield from (Move(tuple(index for index, window in windows.items() if window < side or not side), "window", side) for side in sides)
    now = {index: plan.layers[index].read_stride for index in layers}
    most = max(now.values())
    for stride in dict.fromkeys((most - 1, most * 3 // 4, most // 2)):
        if stride:
            yield Move(tuple(index for index, current in now.items() if current > stride), "stride", stride)
    through = {index: rank for index in layers if (rank := plan.layers[index].kv_rank) is not None}
    if through:
        lowest = min(through.values())
        for rank in [*reversed([rank for rank in rank_notches(sizes) if rank > lowest]), 0][:2]:
            yield Move(tuple(index for index, current in through.items() if current < rank or not rank), "rank", rank)


def visual_flops(plan: Plan) -> int:
    """The visual FLOPs of a normalised plan, as `cost` counts them; layers that stay are not counted again."""
    shared = (plan.sizes, plan.grids, plan.locality)
    return sum(_layer_flops(layer, *shared) for layer in plan.layers)


@lru_cache(maxsize=1 << 14)
def _layer_flops(layer: LayerPlan, sizes: Sizes, grids: tuple[Grid, ...], locality: str) -> int:
    return layer_cost(layer, Plan(sizes, (layer,), grids, locality)).total


def blocks(layers: int, size: int) -> list[tuple[int, ...]]:
    """Neighbouring layers that move together."""
    return [tuple(range(start, min(layers, start + size))) for start in range(0, layers, size)]
