"""The masked reference: the same plan written the obvious way, with every mask spelled out and nothing skipped.

Slow on purpose, the twin that the runtime is held against. No cache, all rows, one boolean mask per layer.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..runtime.layout import LayerLayout, head_offsets, layouts
from ..runtime.plan import Grid, LayerPlan, Plan, Sizes, from_json, normalise
from ..runtime.stride import offset_of


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
    rows, positions = _entering(model, inputs)
    where = _coordinates(visual, _default_grids(model, visual & valid, positions) if grids is None else grids)
    text_model = model.model.language_model
    rotary = text_model.rotary_emb(rows, _rotary_positions(text_model, rows, positions))
    for index, layer in enumerate(text_model.layers):
        layout = layouts(plan)[index] if converted else None
        rows = _layer(layer, rows, rotary, plan, index, layout, visual, valid, where)
    logits: Tensor = model.lm_head(text_model.norm(rows))
    return logits


class _EnteredError(Exception):
    """Carries what reaches the language model."""


def _entering(model: Any, inputs: Any) -> tuple[Tensor, Tensor | None]:
    """Embeddings with the visual features in place, and positions, as the model itself hands them to its language model."""

    def stop(module: Any, arguments: Any, keywords: dict[str, Any]) -> None:
        embeds = keywords.get("inputs_embeds")
        if embeds is None:
            words = module.embed_tokens(keywords["input_ids"])
            embeds = words.masked_scatter(keywords["visual_mask"][..., None], keywords["features"])
        raise _EnteredError(embeds, keywords.get("position_ids"))

    hook = model.model.language_model.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model(**inputs)
    except _EnteredError as entered:
        rows, positions = entered.args
        return rows, positions
    finally:
        hook.remove()
    raise RuntimeError("the language model was never called")


def _rotary_positions(text_model: Any, rows: Tensor, positions: Tensor | None) -> Tensor:
    """Positions of a direct call by default; multimodal ones are of t, h and w, equal for text."""
    positions = torch.arange(rows.shape[1], device=rows.device)[None] if positions is None else positions
    if "mrope_section" not in (text_model.config.rope_parameters or {}):
        return positions
    return positions[-3:] if positions.dim() == 3 else positions[None].expand(3, -1, -1)


def _default_grids(model: Any, visual: Tensor, positions: Tensor | None) -> list[list[Grid]]:
    if hasattr(model.model, "images"):
        images = model.model.images(visual, positions) if visual.any() else ()
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


def _layer(
    layer: Any, rows: Tensor, rotary: tuple[Tensor, Tensor], plan: Plan, index: int, layout: LayerLayout | None,
    visual: Tensor, valid: Tensor, where: Tensor,
) -> Tensor:  # fmt: skip
    sizes, kept = plan.sizes, plan.layers[index]
    query_heads = list(layout.query_order) if layout else list(range(sizes.num_attention_heads))
    neurons = list(layout.neuron_order) if layout else list(range(sizes.intermediate_size))
    mask = torch.stack([_head_mask(head, kept, plan, index, visual, valid, where) for head in query_heads], 1)
    heads = torch.tensor([head in kept.self_heads for head in query_heads], device=rows.device)
    active = torch.tensor([neuron in set(kept.neurons) for neuron in neurons], device=rows.device)

    attention = layer.self_attn
    normed = layer.input_layernorm(rows)
    elements = heads.repeat_interleave(sizes.head_dim)
    parts = _refitted(attention, normed, visual, _qkv(attention, normed, sizes), elements)
    query, key, value = (part.unflatten(-1, (-1, sizes.head_dim)).transpose(1, 2) for part in parts)
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
    query, *own = parts
    rows = attention.visual_kv_proj(rows) if hasattr(attention, "visual_kv_proj") else rows
    made = attention.visual_k_proj(rows), attention.visual_v_proj(rows)
    whole = [torch.cat([part, other[..., part.shape[-1] :]], -1) for part, other in zip(made, own, strict=True)]
    if hasattr(attention, "visual_q_proj"):
        alone = torch.zeros_like(query)
        alone[..., computed] = attention.visual_q_proj(rows)
        query = alone.where(visual[..., None], query)
    return [query, *(part.where(visual[..., None], other) for part, other in zip(whole, own, strict=True))]


def _activation(ffn: Any, rows: Tensor) -> Tensor:
    if hasattr(ffn, "gate_up_proj"):
        gate, up = ffn.gate_up_proj(rows).chunk(2, -1)
        fused: Tensor = ffn.activation_fn(gate) * up
        return fused
    separate: Tensor = ffn.act_fn(ffn.gate_proj(rows)) * ffn.up_proj(rows)
    return separate


def _head_mask(head: int, kept: LayerPlan, plan: Plan, index: int, visual: Tensor, valid: Tensor, where: Tensor) -> Tensor:
    """`[batch, length, length]`: which keys each query sees in one (dense) head of layer `index`."""
    length = visual.shape[1]
    kv_head = head // plan.sizes.group
    read_only = head_offsets(kept, index, plan.sizes)
    stride, offset = (kept.read_stride, read_only[kv_head]) if kv_head in read_only else (1, 0)
    spots = [[offset_of(row, column, frame, stride) == offset for _, frame, row, column in sample] for sample in where.tolist()]
    at_offset = torch.tensor(spots, device=visual.device)
    earlier = torch.ones(length, length, dtype=torch.bool, device=visual.device).tril()
    visible = earlier & valid[:, None]
    text_key = ~visual[:, None]
    readable = at_offset & (head in kept.read_heads)
    by_text = visible & (text_key | readable[:, None])
    in_window = visible if kept.window is None else _near(kept.window, plan, where) & valid[:, None]
    by_visual = (visible & text_key) | (in_window & (visual & at_offset)[:, None])
    return torch.where(visual[..., None], by_visual, by_text)


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
