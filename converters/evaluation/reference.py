"""The masked reference: the same plan written the obvious way, with every mask spelled out and nothing skipped.

Slow on purpose, the twin that the runtime is held against: from the plan's definition alone, with none of what the runtime makes of
it. No cache, all rows, one boolean mask per layer.
"""

from collections.abc import Sequence
from functools import cache
from itertools import combinations, product
from typing import Any

import torch
from torch import Tensor

from ..runtime.offloaded import at_hand
from ..runtime.plan import Grid, LayerPlan, Plan, Sizes, from_json, normalise


def masked_logits(model: Any, inputs: Any, plan: Plan | None = None, grids: list[list[Grid]] | None = None) -> Tensor:
    """Logits `[batch, length, vocabulary]` of a prompt under a plan.

    `model` is a converted model, or a dense one in the dense model's order together with a `plan`. `grids` are the grids of each
    sample's images; by default those of the family's default resolution.
    """
    converted = plan is None
    plan = normalise(from_json(model.config.yopo["plan"]) if plan is None else plan)
    placeholders = [getattr(model.config, name, None) for name in ("image_token_id", "video_token_id")]
    visual = sum((inputs["input_ids"] == token for token in placeholders if token is not None), start=torch.tensor(False))
    valid = inputs["attention_mask"].bool() if "attention_mask" in inputs else torch.ones_like(visual)
    rows, positions, deepstack = _entering(model, inputs)
    where = _coordinates(visual, _default_grids(model, visual & valid, positions, rows) if grids is None else grids)
    text_model = model.get_decoder()
    rotary = text_model.rotary_emb(rows, _rotary_positions(text_model, rows, positions))
    for index, (layer, kept) in enumerate(zip(text_model.layers, plan.layers, strict=True)):
        query_heads, neurons = _file_order(kept, plan.sizes) if converted else _dense_order(plan.sizes)
        with at_hand(layer):
            rows = _layer(layer, rows, rotary, plan, kept, query_heads, neurons, visual, valid, where)
        if index < len(deepstack):
            rows = rows.clone()
            rows[visual] += deepstack[index]
    logits: Tensor = model.lm_head(text_model.norm(rows))
    return logits


class _EnteredError(Exception):
    """Carries what reaches the language model."""


def _entering(model: Any, inputs: Any) -> tuple[Tensor, Tensor | None, Sequence[Tensor]]:
    """What the model itself hands to its language model: embeddings with the visual features in place, positions, and what is added to
    visual rows `[visual tokens, hidden]` after each of the first layers."""

    def stop(module: Any, arguments: Any, keywords: dict[str, Any]) -> None:
        embeds = keywords.get("inputs_embeds")
        if embeds is None:
            words = module.embed_tokens(keywords["input_ids"])
            embeds = words.masked_scatter(keywords["visual_mask"][..., None], keywords["features"])
        raise _EnteredError(embeds, keywords.get("position_ids"), keywords.get("deepstack_visual_embeds") or ())

    hook = model.get_decoder().register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model(**inputs)
    except _EnteredError as entered:
        rows, positions, deepstack = entered.args
        return rows, positions, deepstack
    finally:
        hook.remove()
    raise RuntimeError("the language model was never called")


def _rotary_positions(text_model: Any, rows: Tensor, positions: Tensor | None) -> Tensor:
    """Positions of a direct call by default; multimodal ones are of t, h and w, equal for text."""
    positions = torch.arange(rows.shape[1], device=rows.device)[None] if positions is None else positions
    if "mrope_section" not in (text_model.config.rope_parameters or {}):
        return positions
    return positions[-3:] if positions.dim() == 3 else positions[None].expand(3, -1, -1)


def _default_grids(model: Any, visual: Tensor, positions: Tensor | None, rows: Tensor) -> list[list[Grid]]:
    if hasattr(model.model, "images"):
        images = model.model.images(visual, positions, rows) if visual.any() else ()
        return [[image.grid for image in images if image.sample == sample] for sample in range(visual.shape[0])]
    side = model.config.vision_config.image_size // model.config.vision_config.patch_size
    return [[Grid(side, side)] * (count // side**2) for count in visual.sum(1).tolist()]


def _coordinates(visual: Tensor, grids: list[list[Grid]]) -> Tensor:
    """`[batch, length, 4]`: image, frame, row and column of every visual token, -1 for text."""
    where = torch.full((*visual.shape, 4), -1, device=visual.device)
    for sample, images in enumerate(grids):
        places = iter(visual[sample].nonzero()[:, 0].tolist())
        for image, grid in enumerate(images):
            for token in range(grid.tokens):
                area = grid.rows * grid.columns
                spot = (image, token // area, token % area // grid.columns, token % grid.columns)
                where[sample, next(places)] = torch.tensor(spot)
    return where


def _dense_order(sizes: Sizes) -> tuple[list[int], list[int]]:
    """Query heads and neurons of a dense model's layer."""
    return list(range(sizes.num_attention_heads)), list(range(sizes.intermediate_size))


def _file_order(kept: LayerPlan, sizes: Sizes) -> tuple[list[int], list[int]]:
    """Query heads and neurons of a converted model's layer, by their numbers in the dense model: what visual tokens keep comes first.

    KV heads come in the order *for self heads and read*, *for self heads only*, *read only*, *unread*; the query heads of each in the order
    *computed by visual tokens*, *read*, *others*; always by number where they are alike.
    """
    query_heads, neurons = _dense_order(sizes)
    needed = {head // sizes.group for head in kept.self_heads}
    read = {head // sizes.group for head in kept.read_heads}

    def place(head: int) -> tuple[Any, ...]:
        kv_head = head // sizes.group
        return kv_head not in needed, kv_head not in read, kv_head, head not in kept.self_heads, head not in kept.read_heads, head

    return sorted(query_heads, key=place), sorted(neurons, key=lambda neuron: (neuron not in set(kept.neurons), neuron))


def _layer(
    layer: Any, rows: Tensor, rotary: tuple[Tensor, Tensor], plan: Plan, kept: LayerPlan, query_heads: list[int], neurons: list[int],
    visual: Tensor, valid: Tensor, where: Tensor,
) -> Tensor:  # fmt: skip
    sizes = plan.sizes
    mask = torch.stack([_head_mask(head, kept, plan, visual, valid, where) for head in query_heads], 1)
    heads = torch.tensor([head in kept.self_heads for head in query_heads], device=rows.device)
    active = torch.tensor([neuron in set(kept.neurons) for neuron in neurons], device=rows.device)

    attention = layer.self_attn
    normed = layer.input_layernorm(rows)
    elements = heads.repeat_interleave(sizes.head_dim)
    parts = _refitted(attention, normed, visual, _qkv(attention, normed, sizes), elements)
    query, key, value = (part.unflatten(-1, (-1, sizes.head_dim)).transpose(1, 2) for part in parts)
    if hasattr(attention, "q_norm"):
        query, key = attention.q_norm(query), attention.k_norm(key)
    query, key = _rotated(query, rotary), _rotated(key, rotary)
    key, value = key.repeat_interleave(sizes.group, 1), value.repeat_interleave(sizes.group, 1)
    scores = (query @ key.transpose(2, 3) * attention.scaling).masked_fill(~mask, float("-inf"))
    seen = (scores.softmax(-1).nan_to_num() @ value).transpose(1, 2)  # who sees nothing is given nothing
    seen = seen.masked_fill(visual[..., None, None] & ~heads[:, None], 0.0)
    update: Tensor = attention.o_proj(seen.flatten(2))
    rows = rows + (update.masked_fill(visual[..., None], 0.0) if not kept.self_heads else update)

    ffn = layer.mlp
    normed = layer.post_attention_layernorm(rows)
    activation = _activation(ffn, normed)
    update = ffn.down_proj(activation.masked_fill(visual[..., None] & ~active, 0.0))
    return rows + (update.masked_fill(visual[..., None], 0.0) if not kept.neurons else update)


def _qkv(attention: Any, rows: Tensor, sizes: Sizes) -> Sequence[Tensor]:
    if hasattr(attention, "qkv_proj"):
        heads = (sizes.num_attention_heads, sizes.num_key_value_heads, sizes.num_key_value_heads)
        parts: Sequence[Tensor] = attention.qkv_proj(rows).split([count * sizes.head_dim for count in heads], -1)
        return parts
    return [projection(rows) for projection in (attention.q_proj, attention.k_proj, attention.v_proj)]


def _refitted(attention: Any, rows: Tensor, visual: Tensor, parts: Sequence[Tensor], computed: Tensor) -> Sequence[Tensor]:
    """The same with K and V of visual rows from their own projections, where a layer has them; these lack the heads that nobody reads.

    Queries may have one too, of the `computed` elements alone.
    """
    if not hasattr(attention, "visual_k_proj"):
        return parts
    query, *key_value = parts
    rows = attention.visual_kv_proj(rows) if hasattr(attention, "visual_kv_proj") else rows
    made = attention.visual_k_proj(rows), attention.visual_v_proj(rows)
    whole = [torch.cat([part, other[..., part.shape[-1] :]], -1) for part, other in zip(made, key_value, strict=True)]
    if hasattr(attention, "visual_q_proj"):
        alone = torch.zeros_like(query)
        alone[..., computed] = attention.visual_q_proj(rows)
        query = alone.where(visual[..., None], query)
    return [query, *(part.where(visual[..., None], other) for part, other in zip(whole, key_value, strict=True))]


def _activation(ffn: Any, rows: Tensor) -> Tensor:
    if hasattr(ffn, "gate_up_proj"):
        gate, up = ffn.gate_up_proj(rows).chunk(2, -1)
        fused: Tensor = ffn.activation_fn(gate) * up
        return fused
    separate: Tensor = ffn.act_fn(ffn.gate_proj(rows)) * ffn.up_proj(rows)
    return separate


def _head_mask(head: int, kept: LayerPlan, plan: Plan, visual: Tensor, valid: Tensor, where: Tensor) -> Tensor:
    """`[batch, length, length]`: which keys each query sees in one (dense) head of a layer.

    A head that shares its KV head with no self head shows text every so many-th visual token.
    """
    length, group = visual.shape[1], plan.sizes.group
    shared = any(other // group == head // group for other in kept.self_heads)
    _, frame, row, column = where.unbind(-1)
    shown = visual if shared else visual & ((row + _skew(kept.read_stride) * column + frame) % kept.read_stride == 0)
    earlier = torch.ones(length, length, dtype=torch.bool, device=visual.device).tril()
    visible = earlier & valid[:, None]
    text_key = ~visual[:, None]
    readable = shown & (head in kept.read_heads)
    by_text = visible & (text_key | readable[:, None])
    in_window = visible if kept.window is None else _near(kept.window, plan, where) & valid[:, None]
    by_visual = (visible & text_key) | (in_window & visual[:, None])
    return torch.where(visual[..., None], by_visual, by_text)


@cache
def _skew(stride: int) -> int:
    """The lowest of the skews that keep the shown tokens of a grid farthest apart."""

    def smallest_distance(skew: int) -> int:
        shown = [(row, column) for row, column in product(range(2 * stride), repeat=2) if (row + skew * column) % stride == 0]
        return min((first[0] - second[0]) ** 2 + (first[1] - second[1]) ** 2 for first, second in combinations(shown, 2))

    return max(range(1, stride), key=lambda skew: (smallest_distance(skew), -skew)) if stride > 1 else 0


def _near(window: int, plan: Plan, where: Tensor) -> Tensor:
    """`[batch, length, length]`: whether a visual key is in a visual query's window, by coordinates."""
    query, key = where[:, :, None], where[:, None]
    image, frame, row, column = (query - key).unbind(-1)
    near = (image == 0) & (row.abs() <= window // 2) & (column.abs() <= window // 2)
    before = (row > 0) | ((row == 0) & (column >= 0))
    own_frame = (frame == 0) & (before if plan.locality == "causal" else torch.ones_like(before))
    earlier_frame = frame > 0
    return near & (own_frame | earlier_frame)


def _rotated(heads: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    cosine, sine = rotary[0][:, None], rotary[1][:, None]
    first, second = heads.chunk(2, -1)
    return heads * cosine + torch.cat([-second, first], -1) * sine
