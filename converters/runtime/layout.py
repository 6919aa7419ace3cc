"""Kept first: the order of heads and neurons in a converted file, and what each layer's heads are for.

KV heads come in the order *used by self heads and read*, *used by self heads only*, *read only*, *unread*, each by offset; query
heads follow inside and with their groups; neurons that visual tokens compute come first. What visual tokens need is then a
leading slice of the dense matrices, and the file stays a valid dense checkpoint of the same function.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from .plan import LayerPlan, Plan, Sizes

TEXT_ONLY = 0
"""In the place of a stride: a KV head that holds no visual token."""


@dataclass(frozen=True)
class Range:
    """Neighbouring KV heads of a file, `first` to `last`, that hold the same visual tokens: those at one offset of `stride`, all
    where that is 1, none where it is TEXT_ONLY."""

    first: int
    last: int
    stride: int
    offset: int


@dataclass(frozen=True)
class LayerLayout:
    """One layer of a plan in the file's order. Head and neuron numbers on the right-hand side are the dense model's.

    `kv_order[i]` is the dense KV head at place i of the file, and so on. Counts give the leading parts: `own_read` KV heads
    used by self heads and read, `own` of these and the self-only ones, `read_only` heads after them, the rest unread.
    `offsets[i]` is the offset of KV head i of the file within `read_stride` where it is read only, else 0. `reads[h]` and
    `computes[h]` tell for the query head at place h of the file whether text reads visual tokens in it and whether visual tokens compute
    it. `ranges` are the KV heads, cut where what they hold changes.
    """

    kv_order: tuple[int, ...]
    query_order: tuple[int, ...]
    neuron_order: tuple[int, ...]
    own_read: int
    own: int
    read_only: int
    offsets: tuple[int, ...]
    ranges: tuple[Range, ...]
    reads: tuple[bool, ...]
    computes: tuple[bool, ...]
    neurons: int
    window: int | None
    read_stride: int
    kv_rank: int | None

    @property
    def ranked_queries(self) -> bool:
        """Whether visual queries are made through the dimensions of K and V."""
        return self.kv_rank is not None and self.own > 0

    @property
    def visual_ranges(self) -> tuple[Range, ...]:
        """The ranges that hold visual tokens: their K and V are one product each."""
        return tuple(part for part in self.ranges if part.stride != TEXT_ONLY)

    @property
    def held(self) -> int:
        """Leading KV heads that hold visual tokens."""
        return self.own + self.read_only

    @property
    def computing(self) -> tuple[int, ...]:
        """Places in the file of the query heads that visual tokens compute."""
        return tuple(place for place, computes in enumerate(self.computes) if computes)

    @property
    def cached_own(self) -> int:
        """Leading KV heads of self heads that keep K and V of visual tokens in the cache (unwindowed ones: a later image sees them)."""
        return self.own if self.window is None else self.own_read

    def first(self, stride: int) -> int:
        """The first KV head of a stride."""
        return next(part.first for part in self.ranges if part.stride == stride)

    @property
    def updates(self) -> bool:
        """Whether visual tokens change in this layer."""
        return self.own > 0 or self.neurons > 0


def head_offsets(layer: LayerPlan, index: int, sizes: Sizes) -> dict[int, int]:
    """The offset of each read-only KV head of layer `index`, in ascending order of the dense model's heads."""
    return {head: head_offset(index, place) % layer.read_stride for place, head in enumerate(layer.kv_heads(sizes)[1])}


def head_offset(index: int, place: int) -> int:
    """Before the modulus: read-only KV heads follow one another in their layer, and every layer begins one offset further."""
    return index + place


def layer_layout(layer: LayerPlan, index: int, sizes: Sizes) -> LayerLayout:
    """The layout of layer `index` (counted from 0) of a normalised plan."""
    own, read_only = layer.kv_heads(sizes)
    reads, computes = set(layer.read_heads), set(layer.self_heads)
    read_groups = {head // sizes.group for head in reads}
    offset = dict.fromkeys(own, 0) | head_offsets(layer, index, sizes)
    first = sorted(own, key=lambda head: (head not in read_groups, head))
    first += sorted(read_only, key=lambda head: (offset[head], head))
    kv_order = first + [head for head in range(sizes.num_key_value_heads) if head not in set(first)]
    query_order = [
        head
        for kv_head in kv_order
        for head in sorted(
            range(kv_head * sizes.group, (kv_head + 1) * sizes.group),
            key=lambda head: (head not in computes, head not in reads, head),
        )
    ]
    unread = len(kv_order) - len(first)
    strides = [1] * len(own) + [layer.read_stride] * len(read_only) + [TEXT_ONLY] * unread
    kept = set(layer.neurons)
    neuron_order = list(layer.neurons) + [neuron for neuron in range(sizes.intermediate_size) if neuron not in kept]
    return LayerLayout(
        kv_order=tuple(kv_order),
        query_order=tuple(query_order),
        neuron_order=tuple(neuron_order),
        own_read=sum(head in read_groups for head in own),
        own=len(own),
        read_only=len(read_only),
        offsets=tuple(offset[head] for head in first),
        ranges=tuple(_ranges(strides, [*(offset[head] for head in first), *[0] * unread])),
        reads=tuple(head in reads for head in query_order),
        computes=tuple(head in computes for head in query_order),
        neurons=len(layer.neurons),
        window=layer.window,
        read_stride=layer.read_stride,
        kv_rank=layer.kv_rank,
    )


def _ranges(strides: Sequence[int], offsets: Sequence[int]) -> Iterator[Range]:
    for (stride, offset), group in groupby(range(len(strides)), key=lambda place: (strides[place], offsets[place])):
        places = list(group)
        yield Range(places[0], places[-1] + 1, stride, offset)


def layouts(plan: Plan) -> tuple[LayerLayout, ...]:
    """The layout of every layer. The plan must be normalised."""
    return tuple(layer_layout(layer, index, plan.sizes) for index, layer in enumerate(plan.layers))
