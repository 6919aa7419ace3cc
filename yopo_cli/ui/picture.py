"""A plan drawn with letters, one line a layer, at most 80 columns: readable in a terminal, in a pipe and in a log."""

from converters.planning.cost import dense_visual_flops, layer_cost
from converters.runtime.plan import LayerPlan, Plan, Sizes, normalise

MAP_WIDTH = 32
LEGEND = "r read by text, s computed for visual, # both, . none"


def picture(plan: Plan) -> list[str]:
    """The lines: a header, one for each layer, a legend."""
    plan = normalise(plan)
    heads = plan.sizes.num_attention_heads
    width = max(5, len(head_map(LayerPlan((), (), ()), heads)))
    lines = [f"layer {'heads':<{width}} read self neurons  sees every  rank  cost"]
    layer_dense = dense_visual_flops(plan.sizes, plan.grids) / plan.sizes.num_hidden_layers
    for index, layer in enumerate(plan.layers):
        share = layer_cost(layer, plan).total / layer_dense
        lines.append(
            f"{index:>5} {head_map(layer, heads):<{width}} {len(layer.read_heads):>4} {len(layer.self_heads):>4} "
            f"{len(layer.neurons):>7} {_sees(layer):>5} {_every(layer, plan.sizes):>5} {_rank(layer, plan.sizes):>5} {share:>5.0%}"
        )
    each = heads // len(head_map(plan.layers[0], heads))
    several = f" ({each} a letter)" if each > 1 else ""
    return [*lines, f"heads{several}: {LEGEND}", *_notes(plan)]


def head_map(layer: LayerPlan, heads: int) -> str:
    """One letter a head, in the dense model's order, or one for each few neighbours where there are many."""
    each = next(each for each in range(1, heads + 1) if heads % each == 0 and heads // each <= MAP_WIDTH)
    read, updated = set(layer.read_heads), set(layer.self_heads)
    groups = (range(first, first + each) for first in range(0, heads, each))
    return "".join(_letter(not read.isdisjoint(group), not updated.isdisjoint(group)) for group in groups)


def _letter(read: bool, updated: bool) -> str:
    return "#" if read and updated else "r" if read else "s" if updated else "."


def _every(layer: LayerPlan, sizes: Sizes) -> str:
    """How many of the visual tokens a read-only head shows to text."""
    return "-" if not layer.kv_heads(sizes)[1] else _share(layer.read_stride)


def _rank(layer: LayerPlan, sizes: Sizes) -> str:
    if not any(layer.kv_heads(sizes)):
        return "-"
    return "all" if layer.kv_rank is None else str(layer.kv_rank)


def _sees(layer: LayerPlan) -> str:
    """What a visual token sees of the others."""
    if not layer.self_heads:
        return "-"
    return f"{layer.window}x{layer.window}" if layer.window else "all"


def _share(stride: int) -> str:
    return "all" if stride == 1 else f"1/{stride}"


def _notes(plan: Plan) -> list[str]:
    windows = f", or its {plan.locality} grid window" if any(layer.window for layer in plan.layers) else ""
    depth = plan.visual_depth
    return [
        f"sees: earlier visual tokens that a self head shows a visual token{windows}",
        "every: share of the visual tokens that a read-only head shows text",
        "rank: dimensions that K, V and Q of visual tokens come through",
        "cost: visual FLOPs as a share of the dense layer's",
        f"visual tokens leave after layer {depth} of {len(plan.layers)}" if depth else "text reads no visual token",
    ]
