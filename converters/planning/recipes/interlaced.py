"""The recipe `interlaced`: visual tokens are read everywhere, every so many-th, and updated with what that leaves of the budget."""

from dataclasses import replace

from ...runtime.plan import MAX_STRIDE, Grid, LayerPlan, Plan, Sizes
from .paper import WINDOW
from .target import Path, Target, by_layer, first_to_reach, follow, largest


def interlaced(target: Target) -> Plan:
    """Freeze all, read all, interlaced: all heads of all layers read with as small a stride as fits, later layers with one more.

    When every head reads every token, the rest goes to self heads and neurons alike, evenly over the layers, the best of each
    first; self heads have a causal window of 5, where windows are wanted and use the budget up. Where all heads do not fit with the
    largest stride, the best KV heads of each layer read, those of the earliest layers first (of layer 0 last: nothing can be
    updated before it).
    """
    reading = _reading(target)
    step = largest(lambda step: target.fits(reading.at(step)), reading.steps)
    if step == reading.steps:
        paths = (_updating(target, reading.at(step), window) for window in ((WINDOW, None) if target.windows else (None,)))
        return follow(first_to_reach(target, paths), target)
    return target.filled(reading.at(step)) if target.fits(reading.at(step)) else smallest_plan(target.sizes, target.grids)


def _reading(target: Target) -> Path:
    """KV heads that text reads, one more at a time at the largest stride, then all with smaller and smaller ones."""
    sizes = target.sizes
    layers = sizes.num_hidden_layers
    order = [
        (layer, target.order.read_kv_heads[layer][place]) for place in range(sizes.num_key_value_heads) for layer in (*range(1, layers), 0)
    ]

    def at(step: int) -> Plan:
        heads = by_layer(order[: step + 1], layers)
        lowered = max(0, step + 1 - len(order))
        read = [tuple(sizes.group * kv_head + place for kv_head in kv_heads for place in range(sizes.group)) for kv_heads in heads]
        strides = [MAX_STRIDE - (lowered + layers - 1 - layer) // layers for layer in range(layers)]
        return Plan(sizes, tuple(map(lambda heads, stride: LayerPlan(heads, (), (), read_stride=stride), read, strides)), target.grids)

    return Path(len(order) - 1 + (MAX_STRIDE - 1) * layers, at)


def _updating(target: Target, reading: Plan, window: int | None) -> Path:
    """Self heads on top of a plan that reads everywhere, one more at a time, evenly over the layers that are read later."""
    sizes = target.sizes
    order = [
        (layer, target.order.self_heads[layer][place])
        for place in range(sizes.num_attention_heads)
        for layer in range(sizes.num_hidden_layers - 1)
    ]

    def at(step: int) -> Plan:
        heads = by_layer(order[:step], sizes.num_hidden_layers)
        layers = [replace(layer, self_heads=kept, window=window) for layer, kept in zip(reading.layers, heads, strict=True)]
        return replace(reading, layers=tuple(layers))

    return Path(len(order), at)


def smallest_plan(sizes: Sizes, grids: tuple[Grid, ...]) -> Plan:
    """One reading KV head of layer 0, at the largest stride."""
    first = LayerPlan(tuple(range(sizes.group)), (), (), read_stride=MAX_STRIDE)
    return Plan(sizes, (first,) + (LayerPlan((), (), ()),) * (sizes.num_hidden_layers - 1), grids)
