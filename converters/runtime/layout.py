"""The order of heads and neurons in a converted file, those that visual tokens need first; and what each layer's heads are for.

KV heads come in the order *used by self heads and read*, *used by self heads only*, *read only*, *unread*; query
heads follow inside and with their groups; neurons that visual tokens compute come first. What visual tokens need is then a
leading slice of the dense matrices, and the file stays a valid dense checkpoint of the same function.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from .plan import LayerPlan, Plan, Sizes

TEXT_ONLY = 0
"""In the place of a stride: a KV head that holds no visual token."""


@dataclass(frozen=True)
class Range:
    """Neighbouring KV heads of a file, `first` to `last`, that hold the same visual tokens: every `stride`-th, all where that is 1, none
    where it is TEXT_ONLY."""

    first: int
    last: int
    stride: int


@dataclass(frozen=True)
class HeadKind:
    """KV heads of a layer that keep the same visual tokens in the cache, by their places in the file, and their query heads.

    `stride` is the cache's key: TEXT_ONLY, 1 for all visual tokens, or more. `reads` has one entry per query head: False where the K and V
    are there for visual queries alone.
    """

    stride: int
    kv_heads: tuple[int, ...]
    query_heads: tuple[int, ...]
    reads: tuple[bool, ...]


@dataclass(frozen=True)
class LayerLayout:
    """One layer of a plan in the file's order. Head and neuron numbers on the right-hand side are the dense model's.

    `kv_order[i]` is the dense KV head at place i of the file, and so on. The counts of KV heads are of leading ones: those that are
    `self_and_read_kv_heads` come first, `self_kv_heads` counts these and the self-only ones, then come `read_only_kv_heads`; the rest is
    unread. `reads[h]` and `computes[h]` tell for the query head at place h of the file whether text reads visual tokens in it and whether
    visual tokens compute it.
    """

    kv_order: tuple[int, ...]
    query_order: tuple[int, ...]
    neuron_order: tuple[int, ...]
    self_and_read_kv_heads: int
    self_kv_heads: int
    read_only_kv_heads: int
    reads: tuple[bool, ...]
    computes: tuple[bool, ...]
    neurons: int
    window: int | None
    read_stride: int
    kv_rank: int | None

    def __post_init__(self) -> None:
        """Make what is cached: a compiler cannot trace the first use of a cached property, which takes a lock."""
        _ = self.ranges, self.query_runs, self.head_kinds

    @property
    def ranked_queries(self) -> bool:
        """Whether visual queries are made through the dimensions of K and V."""
        return self.kv_rank is not None and self.self_kv_heads > 0

    @cached_property
    def ranges(self) -> tuple[Range, ...]:
        """The KV heads, cut where what they hold changes."""
        unread = len(self.kv_order) - self.visual_kv_heads
        strides = [1] * self.self_kv_heads + [self.read_stride] * self.read_only_kv_heads + [TEXT_ONLY] * unread
        groups = [(stride, list(places)) for stride, places in groupby(range(len(strides)), key=strides.__getitem__)]
        return tuple(Range(places[0], places[-1] + 1, stride) for stride, places in groups)

    @property
    def visual_ranges(self) -> tuple[Range, ...]:
        """The ranges that hold visual tokens: their K and V are one product each."""
        return tuple(part for part in self.ranges if part.stride != TEXT_ONLY)

    @property
    def visual_kv_heads(self) -> int:
        """Leading KV heads that hold visual tokens."""
        return self.self_kv_heads + self.read_only_kv_heads

    @property
    def computing(self) -> tuple[int, ...]:
        """Places in the file of the query heads that visual tokens compute."""
        return tuple(place for place, computes in enumerate(self.computes) if computes)

    @cached_property
    def query_runs(self) -> tuple[tuple[int, int, bool], ...]:
        """Neighbouring query heads of the file, first to last, that visual tokens compute, or do not."""
        runs = []
        for computed, places in groupby(range(len(self.computes)), key=self.computes.__getitem__):
            heads = list(places)
            runs.append((heads[0], heads[-1] + 1, computed))
        return tuple(runs)

    @property
    def cached_self_kv_heads(self) -> int:
        """Leading KV heads of self heads that keep K and V of visual tokens in the cache (unwindowed ones: a later image sees them)."""
        return self.self_kv_heads if self.window is None else self.self_and_read_kv_heads

    @cached_property
    def head_kinds(self) -> tuple[HeadKind, ...]:
        """The kinds of the layer's KV heads, at most three, each with at least one head."""
        group = len(self.query_order) // len(self.kv_order)
        strides = [part.stride for part in self.ranges for _ in range(part.first, part.last)]
        strides[self.cached_self_kv_heads : self.self_kv_heads] = [TEXT_ONLY] * (self.self_kv_heads - self.cached_self_kv_heads)
        kinds = []
        for stride, places in groupby(sorted(range(len(strides)), key=lambda place: -strides[place]), key=strides.__getitem__):
            kv_heads = tuple(sorted(places))
            query_heads = tuple(kv_head * group + member for kv_head in kv_heads for member in range(group))
            kinds.append(HeadKind(stride, kv_heads, query_heads, tuple(self.reads[head] for head in query_heads)))
        return tuple(kinds)

    def range_of(self, stride: int) -> Range:
        """The KV heads of a stride."""
        return next(part for part in self.ranges if part.stride == stride)

    @property
    def updates(self) -> bool:
        """Whether visual tokens change in this layer."""
        return self.self_kv_heads > 0 or self.neurons > 0


def layer_layout(layer: LayerPlan, sizes: Sizes) -> LayerLayout:
    """The layout of a layer of a normalised plan."""
    self_kv_heads, read_only = layer.kv_heads(sizes)
    reads, computes = set(layer.read_heads), set(layer.self_heads)
    read_groups = {head // sizes.group for head in reads}
    first = sorted(self_kv_heads, key=lambda head: (head not in read_groups, head)) + list(read_only)
    kv_order = first + [head for head in range(sizes.num_key_value_heads) if head not in set(first)]
    query_order = [
        head
        for kv_head in kv_order
        for head in sorted(
            range(kv_head * sizes.group, (kv_head + 1) * sizes.group),
            key=lambda head: (head not in computes, head not in reads, head),
        )
    ]
    kept = set(layer.neurons)
    neuron_order = list(layer.neurons) + [neuron for neuron in range(sizes.intermediate_size) if neuron not in kept]
    return LayerLayout(
        kv_order=tuple(kv_order),
        query_order=tuple(query_order),
        neuron_order=tuple(neuron_order),
        self_and_read_kv_heads=sum(head in read_groups for head in self_kv_heads),
        self_kv_heads=len(self_kv_heads),
        read_only_kv_heads=len(read_only),
        reads=tuple(head in reads for head in query_order),
        computes=tuple(head in computes for head in query_order),
        neurons=len(layer.neurons),
        window=layer.window,
        read_stride=layer.read_stride,
        kv_rank=layer.kv_rank,
    )


def layouts(plan: Plan) -> tuple[LayerLayout, ...]:
    """The layout of every layer. The plan must be normalised."""
    return tuple(layer_layout(layer, plan.sizes) for layer in plan.layers)
