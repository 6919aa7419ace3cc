"""Kept first: the order of heads and neurons in a converted file, and what each layer's heads are for.

KV heads come in the order *used by self heads and read*, *used by self heads only*, *read only, by phase*, *unread*; query
heads follow inside and with their groups; neurons that visual tokens compute come first. What visual tokens need is then a
leading slice of the dense matrices, and the file stays a valid dense checkpoint of the same function.
"""

from dataclasses import dataclass

from .plan import LayerPlan, Plan, Sizes


@dataclass(frozen=True)
class LayerLayout:
    """One layer of a plan in the file's order. Head and neuron numbers on the right-hand side are the dense model's.

    `kv_order[i]` is the dense KV head at place i of the file, and so on. Counts give the leading parts: `own_read` KV heads
    used by self heads and read, `own` of these and the self-only ones, `read_only` heads after them, the rest unread.
    `phases[i]` is the lattice of the i-th read-only KV head of the file. `reads[h]` and `computes[h]` tell for the query head
    at place h of the file whether text reads visual tokens in it and whether visual tokens compute it.
    """

    kv_order: tuple[int, ...]
    query_order: tuple[int, ...]
    neuron_order: tuple[int, ...]
    own_read: int
    own: int
    read_only: int
    phases: tuple[int, ...]
    reads: tuple[bool, ...]
    computes: tuple[bool, ...]
    neurons: int
    window: int | None
    read_phases: int

    @property
    def cached_whole(self) -> int:
        """Leading KV heads that keep K and V of all visual tokens in the cache (unwindowed ones: a later image sees them)."""
        return self.own if self.window is None else self.own_read

    @property
    def updates(self) -> bool:
        """Whether visual tokens change in this layer."""
        return self.own > 0 or self.neurons > 0


def read_only_phases(layer: LayerPlan, index: int, sizes: Sizes) -> dict[int, int]:
    """The lattice of each read-only KV head of layer `index`, in ascending order of the dense model's heads."""
    return {head: (index + place) % layer.read_phases for place, head in enumerate(layer.kv_heads(sizes)[1])}


def layer_layout(layer: LayerPlan, index: int, sizes: Sizes) -> LayerLayout:
    """The layout of layer `index` (counted from 0) of a normalised plan."""
    own, read_only = layer.kv_heads(sizes)
    reads, computes = set(layer.read_heads), set(layer.self_heads)
    read_groups = {head // sizes.group for head in reads}
    own_read = [head for head in own if head in read_groups]
    phase = read_only_phases(layer, index, sizes)
    by_phase = sorted(read_only, key=lambda head: (phase[head], head))
    first = own_read + [head for head in own if head not in read_groups] + by_phase
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
        own_read=len(own_read),
        own=len(own),
        read_only=len(by_phase),
        phases=tuple(phase[head] for head in by_phase),
        reads=tuple(head in reads for head in query_order),
        computes=tuple(head in computes for head in query_order),
        neurons=len(layer.neurons),
        window=layer.window,
        read_phases=layer.read_phases,
    )


def layouts(plan: Plan) -> tuple[LayerLayout, ...]:
    """The layout of every layer. The plan must be normalised."""
    return tuple(layer_layout(layer, index, plan.sizes) for index, layer in enumerate(plan.layers))
