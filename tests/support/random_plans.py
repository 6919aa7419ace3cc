"""Random plans, and models permuted by them in memory with nothing but indexing."""

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from converters.families import Layer
from converters.planning.compensation import LinearCompensation
from converters.runtime.layout import layouts
from converters.runtime.plan import Grid, LayerPlan, Plan, Sizes, normalise, to_json


def random_plan(sizes: Sizes, seed: int, grids: tuple[Grid, ...]) -> Plan:
    """Random heads, neurons, windows and strides; about every fourth set is empty."""
    choose = random.Random(seed)

    def some(limit: int) -> tuple[int, ...]:
        count = choose.choice([0, choose.randint(1, limit), choose.randint(1, limit), limit])
        return tuple(sorted(choose.sample(range(limit), count)))

    def layer() -> LayerPlan:
        heads = some(sizes.num_attention_heads), some(sizes.num_attention_heads)
        window = choose.choice([None, None, 1, 3, 5])
        return LayerPlan(*heads, some(sizes.intermediate_size), window, choose.choice([1, 2, 3, 5]))

    layers = tuple(layer() for _ in range(sizes.num_hidden_layers))
    return Plan(sizes, layers, grids, choose.choice(["causal", "symmetric"]))


def ranked(plan: Plan, seed: int) -> Plan:
    """The plan with a random rank in about half of its layers."""
    choose = random.Random(seed)
    ranks = [choose.choice([None, choose.randint(1, plan.sizes.hidden_size)]) for _ in plan.layers]
    return replace(plan, layers=tuple(replace(layer, kv_rank=rank) for layer, rank in zip(plan.layers, ranks, strict=True)))


def random_refits(plan: Plan, seed: int) -> dict[int, LinearCompensation]:
    """Maps for most of the layers that hold visual tokens, not far from one that changes nothing; for all that have a rank."""
    generator, width = torch.Generator().manual_seed(seed), plan.sizes.hidden_size
    found: dict[int, LinearCompensation] = {}

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    for index, layout in enumerate(layouts(normalise(plan))):
        if rank := layout.kv_rank:
            scale = width**-0.5
            found[index] = LinearCompensation(scale * some(width, rank), some(width), (scale * some(rank, width), some(rank)))
        elif layout.visual_kv_heads and index % 4 != seed % 4:
            found[index] = LinearCompensation(torch.eye(width) + 0.1 * some(width, width), some(width))
    return found


def permuted(
    model: Any, plan: Plan, config_class: Any, model_class: Any, names: Layer, refits: Mapping[int, LinearCompensation] = {}
) -> Any:  # fmt: skip
    """The converted model of a dense one."""
    plan = normalise(plan)
    sizes, size = plan.sizes, plan.sizes.head_dim
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for index, layout in enumerate(layouts(plan)):
        queries = [head * size + element for head in layout.query_order for element in range(size)]
        kv = [head * size + element for head in layout.kv_order for element in range(size)]
        neurons = list(layout.neuron_order)
        if names.query == names.key:  # fused: q rows, then k, then v; gate rows, then up
            keys = sizes.num_attention_heads * size
            values = keys + sizes.num_key_value_heads * size
            rows = {names.query: queries + [keys + place for place in kv] + [values + place for place in kv]}
            rows[names.gate] = neurons + [sizes.intermediate_size + place for place in neurons]
        else:
            rows = {names.query: queries, names.key: kv, names.value: kv, names.gate: neurons, names.up: neurons}
        prefix = f"model.language_model.layers.{index}."
        for name, order in rows.items():
            for ending in ("weight", "bias"):
                if f"{prefix}{name}.{ending}" in state:
                    state[f"{prefix}{name}.{ending}"] = state[f"{prefix}{name}.{ending}"][order]
        if refit := refits.get(index):
            visual, fused = list(range(layout.visual_kv_heads * size)), names.query == names.key
            if refit.inner is not None:
                for ending, tensor in zip(("weight", "bias"), refit.inner, strict=True):
                    state[f"{prefix}self_attn.visual_kv_proj.{ending}"] = tensor
            parts = [(names.key, "k", keys if fused else 0, visual), (names.value, "v", values if fused else 0, visual)]
            if layout.ranked_queries:
                computed = [place * size + element for place, computes in enumerate(layout.computes) if computes for element in range(size)]
                parts.append((names.query, "q", 0, computed))
            for name, kind, first, places in parts:
                chosen = [first + place for place in places]
                weight = state[f"{prefix}{name}.weight"][chosen]
                bias = state[f"{prefix}{name}.bias"][chosen] if f"{prefix}{name}.bias" in state else torch.zeros(len(chosen))
                state[f"{prefix}self_attn.visual_{kind}_proj.weight"] = weight @ refit.matrix
                state[f"{prefix}self_attn.visual_{kind}_proj.bias"] = weight @ refit.offset + bias
        for name, order in ((names.output, queries), (names.down, neurons)):
            state[f"{prefix}{name}.weight"] = state[f"{prefix}{name}.weight"][:, order]
    data = model.config.to_dict()
    own = model_class(config_class(**{**data, "yopo": {"plan": to_json(plan), "refitted": sorted(refits)}})).eval()
    own.load_state_dict(state)
    return own
