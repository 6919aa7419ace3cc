"""Which of many changes are made together: chosen greedily by what price tables predict, without running the model.

A plan's layers are settings here; what a setting adds to the logits' move under each gradient is a sum of its units' contributions, and
the predicted move is the sum of squares of what all add to the present one, question by question.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ...runtime.plan import LayerPlan, Plan, normalise
from ..cost import LayerCounts, counted_cost
from ..measure.prices import Knobs, LayerPrices, PlanPrices
from .moves import notches_fine

Array = NDArray[np.float32]

TRUST = 0.8
"""How far probes are believed where changes cancel, the rest counting as if each unit's change came alone: so few probes flatter what is
chosen by them."""


@dataclass(frozen=True)
class LayerSetting:
    """A layer: KV heads that text reads, self heads, how many neurons (the first in the layer's order), window (0: none), stride, rank."""

    read: frozenset[int]
    self_heads: frozenset[int]
    neurons: int
    window: int = 0
    stride: int = 1
    rank: int | None = None


class LayerTable:
    """What settings of a layer cost and add. `kept` is the layer as it is; neurons come in the order of what each is worth by itself."""

    def __init__(self, kept: LayerPlan, prices: LayerPrices, moved: Array, plan: Plan) -> None:
        self.kept, self.prices, self.moved, self.plan, self.sizes = kept, prices, moved, plan, plan.sizes
        self.questions = next(iter(prices.read.values())).shape[1:]
        self.start = LayerSetting(
            frozenset(head // self.sizes.group for head in kept.read_heads), frozenset(kept.self_heads), len(kept.neurons),
            kept.window or 0, kept.read_stride, kept.kv_rank,
        )  # fmt: skip
        self.order = self._order()
        self._sums = self._cumulated()
        squares = _squares(self.prices.neurons[list(self.order)][:, 1:]) if self._sums else np.zeros(1)
        self._squared = {count: float(squares[:count].sum()) for count in self.notches}
        self._known: dict[LayerSetting, Array] = {}
        self._owns: dict[LayerSetting, float] = {}
        self._costs: dict[tuple[LayerSetting, bool], int] = {}

    def _order(self) -> tuple[int, ...]:
        """Neurons, the kept ones first, each by the rise of the drift that it saves."""
        count, kept = self.sizes.intermediate_size, set(self.kept.neurons)
        if not len(self.prices.neurons):
            return (*self.kept.neurons, *(one for one in range(count) if one not in kept))
        sign = np.array([1.0 if one in kept else -1.0 for one in range(count)])
        worth = sign * _squares(self.prices.neurons) - 2 * self.prices.neurons[:, 0] @ self.moved
        return tuple(sorted(range(count), key=lambda one: (one not in kept, -worth[one])))

    def _cumulated(self) -> dict[int, Array]:
        """The sum of the first neurons, at every notch."""
        if not len(self.prices.neurons):
            return {}
        sums = self.prices.neurons[list(self.order)].cumsum(0, dtype=np.float64).astype(np.float32)
        return {count: sums[count - 1] if count else np.zeros_like(sums[0]) for count in self.notches}

    @cached_property
    def notches(self) -> tuple[int, ...]:
        """Counts of neurons, rising."""
        return tuple(sorted({*notches_fine(self.sizes.intermediate_size), self.start.neurons}))

    def held(self, setting: LayerSetting) -> frozenset[int]:
        """KV heads that self heads need."""
        return frozenset(head // self.sizes.group for head in setting.self_heads)

    def vector(self, setting: LayerSetting) -> Array:
        """`[gradients, questions]`: what the setting adds beyond what the layer as it is adds."""
        if setting not in self._known:
            self._known[setting] = self._absolute(setting) - (0 if setting == self.start else self._absolute(self.start))
            if setting == self.start:
                self._known[setting] = np.zeros(self.questions, np.float32)
        return self._known[setting]

    def own(self, setting: LayerSetting) -> float:
        """The squares of the units' changes from the layer as it is, each by itself, under the probes."""
        if setting not in self._owns:
            start, shared = self.start, setting.self_heads & self.start.self_heads
            reads, heads = (prices[key] for prices, key in ((self.prices.read, setting.stride), (self.prices.self_heads, setting.window)))
            changes = [reads[list(setting.read ^ start.read)]]
            changes.append(reads[list(setting.read & start.read)] - self.prices.read[start.stride][list(setting.read & start.read)])
            if len(heads):
                changes.append(heads[list(setting.self_heads ^ start.self_heads)])
                changes.append(heads[list(shared)] - self.prices.self_heads[start.window][list(shared)])
            through = list(self.held(setting) | setting.read)
            changes.append(self.prices.rank[setting.rank][through] - self.prices.rank[start.rank][through])
            total = sum(float(_squares(change[:, 1:]).sum()) for change in changes)
            if self._sums:
                total += abs(self._squared[setting.neurons] - self._squared[start.neurons])
            self._owns[setting] = total
        return self._owns[setting]

    def _absolute(self, setting: LayerSetting) -> Array:
        held, total = self.held(setting), np.zeros(self.questions, np.float32)
        reads = self.prices.read
        for head in setting.read:
            total = total + reads[1 if head in held else setting.stride][head]
        for vectors, units in (
            (self.prices.self_heads[setting.window], setting.self_heads),
            (self.prices.rank[setting.rank], held | setting.read),
            (self.prices.queries[setting.rank], setting.self_heads),
        ):
            if len(vectors) and units:
                total = total + vectors[list(units)].sum(0)
        return total + self._sums[setting.neurons] if self._sums else total

    def cost(self, setting: LayerSetting, dead: bool) -> int:
        """Visual FLOPs; of a layer whose updates nobody reads (`dead`) only what is read."""
        if (setting, dead) not in self._costs:
            held = 0 if dead else len(self.held(setting))
            only = len(setting.read) if dead else len(setting.read - self.held(setting))
            heads, neurons = (0, 0) if dead else (len(setting.self_heads), setting.neurons)
            window, stride = (setting.window or None) if heads else None, setting.stride if only else 1
            counts = LayerCounts(held, only, heads, neurons, window, stride, setting.rank if held or only else None)
            self._costs[setting, dead] = _cost(counts, self.plan)
        return self._costs[setting, dead]

    def layer(self, setting: LayerSetting) -> LayerPlan:
        """The setting as a layer of a plan; a KV head that stays keeps the query heads it had, one that is added comes with all."""
        group = self.sizes.group
        own = [head for head in self.kept.read_heads if head // group in setting.read]
        new = [head * group + member for head in setting.read - self.start.read for member in range(group)]
        return LayerPlan(
            tuple(sorted(own + new)), tuple(sorted(setting.self_heads)), tuple(sorted(self.order[: setting.neurons])),
            (setting.window or None), setting.stride, setting.rank,
        )  # fmt: skip


def _cost(counts: LayerCounts, plan: Plan) -> int:
    return counted_cost(counts, plan).total


def _squares(vectors: Array) -> Array:
    """Summed over gradients and questions, which are the last two dimensions."""
    squares: Array = np.einsum("...pq,...pq->...", vectors, vectors)
    return squares


def _trusted(vectors: Array) -> Array:
    """Vectors `[..., gradients, questions]`, probes less what they are not trusted with."""
    return np.concatenate([vectors[..., :1, :], TRUST * vectors[..., 1:, :]], -2)


def _trusted_squares(vectors: Array) -> Array:
    return _squares(vectors[..., :1, :]) + TRUST * _squares(vectors[..., 1:, :])


def lower(table: LayerTable, setting: LayerSetting, knobs: Knobs, without: Sequence[str]) -> Iterator[LayerSetting]:
    """Settings with less: a head less, a notch of neurons, all of a kind, both kinds of updates; a smaller window, a larger stride, a lower
    rank."""
    if setting.read:
        yield from (replace(setting, read=setting.read - {head}) for head in sorted(setting.read))
        yield replace(setting, read=frozenset())
    if setting.self_heads:
        yield from (replace(setting, self_heads=setting.self_heads - {head}) for head in sorted(setting.self_heads))
        yield replace(setting, self_heads=frozenset())
        for group in sorted(table.held(setting)) if table.sizes.group > 1 else ():
            yield replace(setting, self_heads=frozenset(head for head in setting.self_heads if head // table.sizes.group != group))
        if "window" not in without:
            sides = [side for side in knobs.windows if side and (not setting.window or side < setting.window)]
            yield from (replace(setting, window=side) for side in sides)
    fewer = [count for count in table.notches if count < setting.neurons]
    yield from (replace(setting, neurons=count) for count in {*fewer[-1:], *fewer[-3:-2], *fewer[:1]})
    if setting.neurons and setting.self_heads:
        yield replace(setting, neurons=0, self_heads=frozenset())
    if "stride" not in without and setting.read - table.held(setting):
        yield from (replace(setting, stride=stride) for stride in [one for one in sorted(knobs.strides) if one > setting.stride][:2])
    if setting.read or setting.self_heads:
        ranks = [rank for rank in knobs.ranks if rank is not None and (setting.rank is None or rank < setting.rank)]
        yield from (replace(setting, rank=rank) for rank in sorted(ranks, reverse=True)[:2])


def higher(table: LayerTable, setting: LayerSetting, knobs: Knobs, without: Sequence[str], dead: bool) -> Iterator[LayerSetting]:
    """Settings with more; what nobody reads is left alone."""
    for head in range(table.sizes.num_key_value_heads):
        if head not in setting.read:
            yield replace(setting, read=setting.read | {head})
    if setting.rank is not None:
        ranks = sorted(rank for rank in knobs.ranks if rank is not None and rank > setting.rank)
        yield from (replace(setting, rank=rank) for rank in [*ranks[:2], None][:2])
    if setting.stride > 1:
        yield from (replace(setting, stride=stride) for stride in [one for one in sorted(knobs.strides) if one < setting.stride][-2:])
    if dead or not len(table.prices.neurons):
        return
    for head in range(table.sizes.num_attention_heads):
        if head not in setting.self_heads:
            yield replace(setting, self_heads=setting.self_heads | {head})
    if setting.window and setting.self_heads:
        yield from (replace(setting, window=side) for side in knobs.windows if not side or side > setting.window)
    more = [count for count in table.notches if count > setting.neurons]
    yield from (replace(setting, neurons=count) for count in {*more[:1], *more[2:3]})


@dataclass(frozen=True)
class Candidates:
    """A layer's other settings, and by how much each changes the vectors `[settings, gradients, questions]` and the layer's cost.

    `alone` are the squares of these changes, `owns` by how much those of single units rise, where probes are few.
    """

    settings: tuple[LayerSetting, ...]
    changes: Array
    flops: NDArray[np.int64]
    alone: Array
    owns: Array


class Choice:
    """A set of changes as it is put together: settings of all layers, the sum of their vectors, and the cost."""

    def __init__(self, plan: Plan, prices: PlanPrices, knobs: Knobs, without: Sequence[str]) -> None:
        self.plan, self.knobs, self.without = normalise(plan), knobs, without
        self.tables = [LayerTable(layer, one, prices.moved, self.plan) for layer, one in zip(self.plan.layers, prices.layers, strict=True)]
        self.settings = [table.start for table in self.tables]
        self.total = np.zeros(self.tables[0].questions, np.float32)
        self.total[0] = prices.moved
        self.flops = self._flops()
        self._cached: dict[tuple[int, bool], Candidates] = {}

    @property
    def depth(self) -> int:
        return max((index + 1 for index, setting in enumerate(self.settings) if setting.read), default=0)

    @property
    def predicted(self) -> float:
        """The squared move, weighted by the slope of the drift, summed over questions."""
        return float(_squares(self.total))

    def result(self) -> Plan:
        """The plan with the changes, normalised."""
        layers = tuple(table.layer(setting) for table, setting in zip(self.tables, self.settings, strict=True))
        return normalise(replace(self.plan, layers=layers))

    def down(self, limit: int) -> None:
        """Take what costs the least drift per FLOP until the plan is within the limit; what is saved beyond it does not count."""
        while self.flops > limit:
            found = self._best(up=False, limit=limit)
            if found is None:
                return
            self._take(*found)

    def up(self, limit: int) -> None:
        """Add what lowers the drift the most per FLOP, as long as anything does within the limit."""
        while (found := self._best(up=True, limit=limit)) is not None:
            self._take(*found)

    def _take(self, index: int, setting: LayerSetting) -> None:
        depth = self.depth
        self.total = self.total + self.tables[index].vector(setting) - self.tables[index].vector(self.settings[index])
        self.settings[index] = setting
        self._cached = {key: one for key, one in self._cached.items() if key[0] != index and depth == self.depth}
        self.flops = self._flops()

    def _flops(self, index: int = -1, setting: LayerSetting | None = None) -> int:
        """The cost of all layers, one of which may have another setting."""
        settings = self.settings if setting is None else [*self.settings[:index], setting, *self.settings[index + 1 :]]
        depth = max((place + 1 for place, one in enumerate(settings) if one.read), default=0)
        return sum(table.cost(one, place >= depth - 1) for place, (table, one) in enumerate(zip(self.tables, settings, strict=True)))

    def candidates(self, index: int, up: bool) -> Candidates:
        """The settings above or below that of a layer."""
        if (index, up) not in self._cached:
            table, now = self.tables[index], self.settings[index]
            dead = index >= self.depth - 1
            settings = tuple(
                dict.fromkeys(higher(table, now, self.knobs, self.without, dead) if up else lower(table, now, self.knobs, self.without))
            )
            changes = np.array([table.vector(one) - table.vector(now) for one in settings], np.float32).reshape(-1, *table.questions)
            flops = np.array([table.cost(one, dead) - table.cost(now, dead) for one in settings], np.int64)
            self._cached[index, up] = Candidates(
                settings,
                changes,
                flops,
                _trusted_squares(changes),
                (1 - TRUST) * np.array([table.own(one) - table.own(now) for one in settings], np.float32),
            )
        return self._cached[index, up]

    def rises(self, found: Candidates) -> Array:
        """By how much each of these settings raises the predicted squared move."""
        rises: Array = found.alone + found.owns + 2 * np.einsum("spq,pq->s", found.changes, _trusted(self.total))
        return rises

    def _best(self, up: bool, limit: int) -> tuple[int, LayerSetting] | None:
        """The layer and setting with the lowest price; None where there is none."""
        best: tuple[float, int, LayerSetting] | None = None
        for index in range(len(self.tables)):
            found = self.candidates(index, up)
            if not found.settings:
                continue
            added = self.added(index, found)
            rise = self.rises(found)
            if up:
                allowed = (added > 0) & (self.flops + added <= limit) & (rise < 0)
                price = rise / np.maximum(added, 1)
            else:
                allowed = added < 0
                saved = np.minimum(-added, max(1, self.flops - limit))
                price = np.where(rise > 0, rise / np.maximum(saved, 1), rise)
            if not allowed.any():
                continue
            place = int(np.where(allowed, price, np.inf).argmin())
            if best is None or price[place] < best[0]:
                best = float(price[place]), index, found.settings[place]
        return None if best is None else (best[1], best[2])

    def added(self, index: int, found: Candidates) -> NDArray[np.int64]:
        """FLOPs that each setting of a layer adds, where it changes how deep visual tokens go too."""
        now = bool(self.settings[index].read)
        flops = found.flops.copy()
        if index >= self.depth - 1:
            for place, setting in enumerate(found.settings):
                if bool(setting.read) != now:
                    flops[place] = self._flops(index, setting) - self.flops
        return flops
