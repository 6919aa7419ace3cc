"""Projections of visual tokens alone: what they are called, what shapes they have, and in which layers they stand.

K and V of visual tokens, and queries where there is a rank, may be made by weights of their own.
"""

from collections.abc import Iterable

from ..families import Family
from ..runtime.layout import LayerLayout, layer_layout
from ..runtime.plan import Plan

PARTS = {"key": "self_attn.visual_k_proj", "value": "self_attn.visual_v_proj", "query": "self_attn.visual_q_proj"}
INNER = "self_attn.visual_kv_proj"
"""Where a plan has a rank, visual rows go through this one first, and the others start from what it gives."""


def refitted_layers(plan: Plan, layers: Iterable[int]) -> tuple[int, ...]:
    """Those of the layers that hold visual tokens: in the others there is nothing to refit. The plan must be normalised."""
    return tuple(index for index in sorted(layers) if layer_layout(plan.layers[index], plan.sizes).visual_kv_heads)


def refitted_shapes(family: Family, plan: Plan, layers: Iterable[int]) -> dict[str, tuple[int, ...]]:
    """Shapes of the projections of refitted layers, by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for index in layers:
        layout, inner = layer_layout(plan.layers[index], plan.sizes), plan.sizes.hidden_size
        parts = {
            PARTS[part]: (len(heads) * plan.sizes.head_dim, layout.kv_rank or inner) for part, heads in projected_heads(layout).items()
        }
        parts |= {INNER: (layout.kv_rank, inner)} if layout.kv_rank else {}
        for name, shape in parts.items():
            prefix = f"{family.text_prefix}layers.{index}.{name}"
            shapes |= {f"{prefix}.weight": shape, f"{prefix}.bias": shape[:1]}
    return shapes


def projected_heads(layout: LayerLayout) -> dict[str, list[int]]:
    """The dense model's heads that each refitted projection of a layer has, in the file's order."""
    kv_heads = list(layout.kv_order[: layout.visual_kv_heads])
    heads = {"key": kv_heads, "value": kv_heads}
    return heads | ({"query": [layout.query_order[place] for place in layout.computing]} if layout.ranked_queries else {})
