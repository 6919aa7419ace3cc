"""What the runtime uses of a decoder layer of transformers."""

from dataclasses import dataclass, fields
from typing import Any

from .projection import Adapted, Part, Projection, has_hooks, projection


@dataclass(frozen=True)
class Projections:
    """The linear layers of one decoder layer, and the activation between them; fused ones appear as views of their parts."""

    query: Projection | Part
    key: Projection | Part
    value: Projection | Part
    output: Projection
    gate: Projection | Part
    up: Projection | Part
    down: Projection
    activation: Any


@dataclass(frozen=True)
class LayerParts:
    """A decoder layer: its norms, its projections, and in a refitted layer those that make K and V (and queries) of visual rows.

    `query_norm` and `key_norm` are norms of each head before it is turned, None where there are none. `visual_inner` is what the last
    start from where a plan has them go through a rank.
    """

    input_layernorm: Any
    post_attention_layernorm: Any
    head_dim: int
    scaling: float
    projections: Projections
    query_norm: Any = None
    key_norm: Any = None
    visual_inner: Projection | None = None
    visual_key: Projection | None = None
    visual_value: Projection | None = None
    visual_query: Projection | None = None


def layer_parts(layer: Any, projections: Projections) -> LayerParts:
    """The parts of a decoder layer. Raises ValueError for hooks that the runtime, which calls no more than its parts, would skip."""
    for name, module in (("", layer), (".self_attn", layer.self_attn), (".mlp", layer.mlp)):
        if has_hooks(module):
            raise ValueError(
                f"A hook on a decoder layer{name and f's {name[1:]}'} would be skipped: text and visual rows go through its projections "
                "apart. Put it on the projections or norms, or use `with model.dense():`."
            )
    attention = layer.self_attn
    names = ("visual_kv_proj", "visual_k_proj", "visual_v_proj", "visual_q_proj")
    refitted = [projection(getattr(attention, name)) if hasattr(attention, name) else None for name in names]
    norms = layer.input_layernorm, layer.post_attention_layernorm
    return LayerParts(*norms, attention.head_dim, attention.scaling, projections, *head_norms(attention), *refitted)


def head_norms(attention: Any) -> tuple[Any, Any]:
    """The norms of an attention layer's query and key heads, None where it has none."""
    return getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)


def separate(layer: Any) -> Projections:
    """The projections of a layer that has a matrix for each."""
    attention, ffn = layer.self_attn, layer.mlp
    return Projections(
        query=projection(attention.q_proj),
        key=projection(attention.k_proj),
        value=projection(attention.v_proj),
        output=projection(attention.o_proj),
        gate=projection(ffn.gate_proj),
        up=projection(ffn.up_proj),
        down=projection(ffn.down_proj),
        activation=ffn.act_fn,
    )


def whole_layers(projections: Projections) -> list[Any]:
    """What a decoder layer's rows go through, each once, without adapters and not by parts."""
    wholes = [getattr(projections, field.name) for field in fields(projections) if field.name != "activation"]
    wholes = [one.whole if isinstance(one, Part) else one for one in wholes]
    return list({id(getattr(one, "module", one)): one.base if isinstance(one, Adapted) else one for one in wholes}.values())
