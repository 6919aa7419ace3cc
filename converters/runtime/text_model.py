"""The language model's forward pass under a plan: visual work that the plan leaves out is not computed.

Text and visual tokens are two blocks of flat rows. They share one product with the part of a weight that both use, so that every
weight is read once; text alone goes through the rest. Mixed into a text model of transformers (`class Sparse(SparseTextModel,
LlamaModel)`), whose modules, parameter names and rotary embedding it uses.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

from .attention import (
    TextMasks,
    WindowRule,
    attend,
    causal_attention,
    full_attention,
    head_kinds,
    lattice_attention,
    rotate,
    take,
    windowed_attention,
)
from .cache import SparseLayer, Timeline, sparse_layers
from .choice import choices
from .layout import TEXT_ONLY, LayerLayout, layouts
from .plan import Plan
from .products import product
from .split_linear import SplitLinear
from .streams import Streams, rows_of, split

Rotary = tuple[Tensor, Tensor]


@dataclass
class Call:
    """One forward call: its rows and everything that its layers share.

    `text` `[batch * text rows, hidden]` and `visual` `[batch * visual rows, hidden]` (None: no visual token is in play) change from
    layer to layer. While visual rows do not change, `unit` keeps them divided by their root mean square, and `lattices` these rows
    by phase `[batch, phases, largest lattice, hidden]`: frozen layers differ by their norm's weight alone.
    """

    batch: int
    text: Tensor
    visual: Tensor | None
    streams: Streams | None
    text_slots: Tensor
    text_rotary: Rotary
    visual_rotary: Rotary | None
    timeline: Timeline
    masks: TextMasks
    fresh: bool
    unit: Tensor | None = None
    lattices: dict[int, Tensor] = field(default_factory=dict)
    lattice_rotary: dict[int, Rotary] = field(default_factory=dict)

    def update(self, text: Tensor, visual: Tensor) -> None:
        """Add to the text rows and to the visual ones, which are new rows from now on."""
        assert self.visual is not None
        self.text, self.visual = self.text + text, self.visual + visual
        self.unit = None
        self.lattices = {}

    def normalised(self, norm: Any) -> Tensor:
        """The visual rows after an RMS norm, `norm(visual)` to the bit."""
        weight: Tensor = norm.weight
        return weight * self._unit(norm)

    def _unit(self, norm: Any) -> Tensor:
        if self.unit is None:
            assert self.visual is not None
            wide = self.visual.float()
            root = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
            self.unit = (wide * root).to(self.visual.dtype)
        return self.unit

    def lattice(self, norm: Any, phases: int, phase: int) -> Tensor:
        """The normalised visual rows of one phase, `[batch * its rows, hidden]`."""
        assert self.streams is not None
        if phases not in self.lattices:
            index, _ = self.streams.by_phase(phases)
            unit = rows_of(index.flatten(1), self._unit(norm).unflatten(0, (self.batch, -1)))
            self.lattices[phases] = unit.unflatten(1, index.shape[1:])
        rows = self.lattices[phases][:, phase, : self.streams.phase_size(phases, phase)]
        weight: Tensor = norm.weight
        return (weight * rows).flatten(0, 1)

    def turned(self, heads: Tensor, phases: int, lattices: Sequence[int]) -> Tensor:
        """Visual keys `[batch, heads, rows, head_dim]` after the rotary embedding; of several phases each head has its lattice's rows."""
        assert self.streams is not None
        assert self.visual_rotary is not None
        if phases == 1:
            return rotate(heads, *self.visual_rotary)
        if phases not in self.lattice_rotary:
            rows, _ = self.streams.by_phase(phases)
            cosine, sine = (rows_of(rows.flatten(1), part).unflatten(1, rows.shape[1:]) for part in self.visual_rotary)
            self.lattice_rotary[phases] = cosine, sine
        cosine, sine = self.lattice_rotary[phases]
        return rotate(heads, take(cosine, lattices, 1), take(sine, lattices, 1))


@dataclass(frozen=True)
class Projections:
    """The linear layers of one decoder layer, and the activation between them; fused ones appear as views of their parts."""

    query: Any
    key: Any
    value: Any
    output: Any
    gate: Any
    up: Any
    down: Any
    activation: Any


@dataclass(frozen=True)
class Shared:
    """One product: all text rows, then the visual ones that KV heads `first` to `last` hold, times the weights of these heads.

    `visual_rows` of each sample after padding, 0 for text alone; `phases` as in the layout's ranges.
    """

    rows: Tensor
    first: int
    last: int
    visual_rows: int = 0
    phases: int = TEXT_ONLY


class SparseTextModel(nn.Module):
    """A text model of transformers that obeys a plan. `bind` it to one; `dense()` switches the plan off for a while."""

    layers: Any
    norm: Any
    rotary_emb: Any
    embed_tokens: Any
    config: Any
    recomputing = False  # whether a training pass computes a layer's inner values twice rather than keep them

    def bind(self, plan: Plan) -> None:
        """Obey this (normalised) plan; the weights are in its kept-first order."""
        self.plan = plan
        self.layouts = layouts(plan)
        self.depth = plan.visual_depth
        self.pruned = True
        self.split = False

    @contextmanager
    def dense(self) -> Iterator[None]:
        """Within this context the plan is switched off: the dense model of the same weights runs."""
        self.pruned = False
        try:
            yield
        finally:
            self.pruned = True

    @torch.inference_mode(False)  # the parts may be trained later
    def split_weights(self) -> None:
        """Cut what visual tokens use out of the matrices whose slices are not contiguous. Done once, one matrix at a time."""
        for layer, layout in zip(self.layers, self.layouts, strict=True):
            attention, ffn = layer.self_attn, layer.mlp
            size = attention.head_dim
            kept_first = sorted(range(len(layout.computes)), key=lambda head: not layout.computes[head])
            elements = tuple(head * size + element for head in kept_first for element in range(size))
            count = sum(layout.computes) * size
            if 0 < count < len(elements):
                attention.o_proj = SplitLinear(attention.o_proj, elements, count, dim=1)
            if count and kept_first != sorted(kept_first):
                attention.q_proj = SplitLinear(attention.q_proj, elements, count, dim=0)
            if 0 < layout.neurons < len(layout.neuron_order):
                ffn.down_proj = SplitLinear(ffn.down_proj, tuple(range(len(layout.neuron_order))), layout.neurons, dim=1)
        self.split = True

    def _recomputed(self, layer: Any, layout: LayerLayout, call: Call) -> None:
        """A layer of a training pass, of which only the rows that enter it are kept for the backward pass."""

        def run(text: Tensor, visual: Tensor | None) -> tuple[Tensor, Tensor | None]:
            inner = replace(call, text=text, visual=visual, unit=None, lattices={})
            self._attention(layer, layout, inner, SparseLayer(call.timeline, first=False))
            self._ffn(layer, layout, inner)
            return inner.text, inner.visual

        call.text, call.visual = checkpoint(run, call.text, call.visual, use_reentrant=False)

    def report(self) -> str:
        """Which path runs, in one line."""
        if not self.pruned:
            return "dense: the plan is switched off"
        plan, updating = self.plan, sum(layout.updates for layout in self.layouts)
        path = (
            f"pruned: visual tokens leave after layer {plan.visual_depth} of {len(plan.layers)} and are updated in {updating}; "
            f"K and V of text and visual rows share their products, attention is SDPA on rectangles"
        )
        return "; ".join([path, *([f"fastest here: {chosen}"] if (chosen := choices()) else [])])

    def projections(self, layer: Any) -> Projections:
        """The linear layers of a decoder layer."""
        attention, ffn = layer.self_attn, layer.mlp
        linear = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, ffn.gate_proj, ffn.up_proj, ffn.down_proj)
        return Projections(*linear, ffn.act_fn)

    def rotary(self, rows: Tensor, positions: Tensor | None, seen: int) -> Rotary:
        """Cosine and sine `[batch or 1, length, head_dim]` of a call's positions, by default those after the `seen` ones."""
        if positions is None:
            positions = torch.arange(seen, seen + rows.shape[1], device=rows.device)[None]
        cosine, sine = self.rotary_emb(rows, positions)
        return cosine, sine

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        visual_mask: Tensor | None = None,
        images: Any = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """`inputs_embeds` `[batch, length, hidden]`; `visual_mask` `[batch, length]` marks visual tokens.

        `images(mask, positions)` tells which images they make up.
        """
        if not self.pruned:
            dense: BaseModelOutputWithPast = super().forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                inputs_embeds=inputs_embeds,
                use_cache=use_cache,
                **kwargs,
            )
            return dense
        _refuse(attention_mask, kwargs)
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        keeping = use_cache or past_key_values is not None
        call, cache, cached = self._opened(inputs_embeds, attention_mask, position_ids, past_key_values, visual_mask, images)
        self._through(call, cached, recomputing=self.recomputing and torch.is_grad_enabled() and not keeping)
        return BaseModelOutputWithPast(
            last_hidden_state=_in_place(self.norm(call.text), call, inputs_embeds.shape),
            past_key_values=cache if keeping else None,
        )

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # data decides its shapes; from here on they are fixed
    def _opened(
        self, embeds: Tensor, mask: Tensor | None, positions: Tensor | None, cache: Cache | None, visual: Tensor | None, images: Any
    ) -> tuple[Call, Cache, list[SparseLayer]]:
        """A call at the input of the first layer, and the cache with its layers."""
        if not self.split:
            self.split_weights()
        phases = [kind.phases for layout in self.layouts for kind in head_kinds(layout)]
        cache, cached = sparse_layers(cache, len(self.layers), phases)
        return self._call(embeds, mask, positions, visual, images, cached[0].timeline), cache, cached

    def _through(self, call: Call, cached: list[SparseLayer], recomputing: bool = False) -> None:
        """All layers, which change the call's rows: one graph under `torch.compile`."""
        for index, (layer, layout) in enumerate(zip(self.layers, self.layouts, strict=True)):
            if index == self.depth:
                call.visual = None
            if recomputing:
                self._recomputed(layer, layout, call)
            else:
                self._attention(layer, layout, call, cached[index])
                self._ffn(layer, layout, call)

    def _call(
        self, embeds: Tensor, mask: Tensor | None, positions: Tensor | None, visual: Tensor | None, images: Any, timeline: Timeline
    ) -> Call:
        batch, length = embeds.shape[:2]
        seen = timeline.seen
        valid = _valid(mask, length)
        rotary = self.rotary(embeds, positions, seen)
        if visual is None or length == 1 or not visual.any():
            slots = torch.arange(seen, seen + length, device=embeds.device).expand(batch, -1)
            slots = slots if valid is None else slots.where(valid, -1)
            timeline.append(length, slots, None, gapless=valid is None)
            causal = seen == 0 and valid is None and length > 1
            masks = TextMasks(timeline, slots, causal)
            return Call(batch, embeds.flatten(0, 1), None, None, slots, rotary, None, timeline, masks, seen == 0)
        streams = split(visual, valid, seen, images(visual if valid is None else visual & valid, positions))
        timeline.append(
            length,
            streams.text_slots,
            lambda phases: streams.visual_slots[:, None] if phases == 1 else streams.by_phase(phases)[1],
            gapless=bool((streams.text_slots >= 0).all()),
        )
        return Call(
            batch,
            rows_of(streams.text_index, embeds).flatten(0, 1),
            rows_of(streams.visual_index, embeds).flatten(0, 1),
            streams,
            streams.text_slots,
            (rows_of(streams.text_index, rotary[0]), rows_of(streams.text_index, rotary[1])),
            (rows_of(streams.visual_index, rotary[0]), rows_of(streams.visual_index, rotary[1])),
            timeline,
            TextMasks(timeline, streams.text_slots, causal=False),
            seen == 0,
        )

    def _attention(self, layer: Any, layout: LayerLayout, call: Call, cached: SparseLayer) -> None:
        """Self attention of one layer: K and V into the cache, text rows updated, visual rows too where they have heads."""
        parts, size, scale = self.projections(layer), layer.self_attn.head_dim, layer.self_attn.scaling
        text = layer.input_layernorm(call.text)
        shared = _shared_rows(layer.input_layernorm, layout, call, text)
        queries, own_queries = _queries(parts.query, layer.input_layernorm, layout, shared, call, text, size)
        keys, visual_keys = _projected(parts.key, shared, text.shape[0], call.batch, size)
        values, visual_values = _projected(parts.value, shared, text.shape[0], call.batch, size)
        queries, keys = rotate(queries, *call.text_rotary), rotate(keys, *call.text_rotary)
        for phases, part in visual_keys.items():
            first = layout.first(phases)
            visual_keys[phases] = call.turned(part, phases, layout.lattices[first : first + part.shape[1]])
        kinds = head_kinds(layout)
        held = {}
        for kind in kinds:
            new_keys, new_values = take(keys, kind.kv_heads, 1), take(values, kind.kv_heads, 1)
            if kind.phases in visual_keys:
                places = [head - layout.first(kind.phases) for head in kind.kv_heads]
                new_keys = torch.cat([take(visual_keys[kind.phases], places, 1), new_keys], 2)
                new_values = torch.cat([take(visual_values[kind.phases], places, 1), new_values], 2)
            held[kind.phases] = cached.extend(kind.phases, new_keys, new_values)
        outputs = [
            attend(take(queries, kind.query_heads, 1), *held[kind.phases], call.masks.of(kind), scale, call.masks.causal) for kind in kinds
        ]
        places = [head for kind in kinds for head in kind.query_heads]
        output = _joined(outputs, 1)
        if places != sorted(places):
            output = take(output, sorted(range(len(places)), key=lambda place: places[place]), 1)
        output = _rows(output)
        if own_queries is None:
            call.text = call.text + _linear(output, parts.output)
            return
        own = visual_keys[layout.self_phases], visual_values[layout.self_phases]
        seen = self._visual_attention(layout, call, call.turned(own_queries, 1, ()), *own, (keys, values), held, scale)
        call.update(*_output(parts.output, layout, size, output, _rows(seen)))

    def _visual_attention(
        self, layout: LayerLayout, call: Call, queries: Tensor, keys: Tensor, values: Tensor,
        text: tuple[Tensor, Tensor], held: dict[int, tuple[Tensor, Tensor]], scale: float,
    ) -> Tensor:  # fmt: skip
        """What visual queries `[batch, kept heads, rows, head_dim]` see."""
        assert call.streams is not None
        group = len(layout.query_order) // len(layout.kv_order)
        shared = [head // group for head, computes in enumerate(layout.computes) if computes]
        if layout.self_phases > 1:
            held_keys, held_values = (take(tensor, shared, 1) for tensor in held[layout.self_phases])
            lattices, key_slots = [layout.lattices[head] for head in shared], call.timeline.all_slots(layout.self_phases)
            return lattice_attention(queries, held_keys, held_values, call.streams.visual_slots, key_slots, lattices, scale)
        if layout.window is None:
            held_keys, held_values = (take(tensor, shared, 1) for tensor in held[1])
            key_slots, visual_slots = call.timeline.all_slots(1)[:, 0], call.streams.visual_slots
            if call.fresh and call.timeline.gapless[1]:
                return causal_attention(queries, held_keys, held_values, visual_slots, key_slots, scale)
            return full_attention(queries, held_keys, held_values, visual_slots, key_slots, text[0].shape[2], scale)
        text_keys, text_values, slots = self._text_seen(layout, call, text, held)
        return windowed_attention(
            queries, take(keys, shared, 1), take(values, shared, 1), take(text_keys, shared, 1), take(text_values, shared, 1),
            slots, call.streams, WindowRule(layout.window, self.plan.locality, self.plan.window_frames), scale,
        )  # fmt: skip

    def _text_seen(
        self, layout: LayerLayout, call: Call, text: tuple[Tensor, Tensor], held: dict[int, tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """K and V of all text so far in the KV heads of self heads, and its slots: from the cache when there are earlier calls."""
        if call.fresh:
            return text[0][:, : layout.own], text[1][:, : layout.own], call.text_slots
        parts: list[tuple[Tensor, Tensor]] = []
        for kind in head_kinds(layout):
            places = [place for place, head in enumerate(kind.kv_heads) if head < layout.own]
            if places:
                columns = call.timeline.text_columns(kind.phases)
                keys, values = held[kind.phases]
                parts.append((take(keys, places, 1)[:, :, columns], take(values, places, 1)[:, :, columns]))
        slots = call.timeline.all_slots(TEXT_ONLY)[:, 0]
        return torch.cat([keys for keys, _ in parts], 1), torch.cat([values for _, values in parts], 1), slots

    def _ffn(self, layer: Any, layout: LayerLayout, call: Call) -> None:
        """Feed-forward of one layer; visual rows go through the first `neurons` neurons only."""
        parts = self.projections(layer)
        text = layer.post_attention_layernorm(call.text)
        if call.visual is None or not layout.neurons:
            call.text = call.text + _linear(parts.activation(_linear(text, parts.gate)) * _linear(text, parts.up), parts.down)
            return
        rows = torch.cat([text, call.normalised(layer.post_attention_layernorm)])
        kept, count = layout.neurons, text.shape[0]
        both = parts.activation(_linear(rows, parts.gate, 0, kept)) * _linear(rows, parts.up, 0, kept)
        if not isinstance(parts.down, SplitLinear):
            update = _linear(both, parts.down)
            call.update(update[:count], update[count:])
            return
        update = product(both, parts.down.kept, parts.down.bias)
        rest = parts.activation(_linear(text, parts.gate, kept)) * _linear(text, parts.up, kept)
        call.update(update[:count] + product(rest, parts.down.rest), update[count:])


def _linear(rows: Tensor, linear: Any, first: int = 0, last: int | None = None) -> Tensor:
    """Product with a linear layer, or with rows `first` to `last` of its weight: a contiguous view."""
    if isinstance(linear, SplitLinear):
        whole: Tensor = linear(rows)
        return whole
    bias = linear.bias
    return product(rows, linear.weight[first:last], None if bias is None else bias[first:last])


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _heads(rows: Tensor, batch: int, size: int) -> Tensor:
    """`[batch * rows, heads * head_dim]` as `[batch, heads, rows, head_dim]`."""
    return rows.contiguous().view(batch, -1, rows.shape[-1] // size, size).transpose(1, 2)


def _padded(heads: Tensor, rows: int) -> Tensor:
    """`[batch, heads, rows, head_dim]` with zeros up to `rows`, so that lattices of unequal size share a rectangle."""
    return heads if heads.shape[2] == rows else functional.pad(heads, (0, 0, 0, rows - heads.shape[2]))


def _rows(heads: Tensor) -> Tensor:
    """`[batch, heads, rows, head_dim]` as `[batch * rows, heads * head_dim]`."""
    return heads.transpose(1, 2).flatten(2).flatten(0, 1)


def _shared_rows(norm: Any, layout: LayerLayout, call: Call, text: Tensor) -> list[Shared]:
    """The products of a layer's K and V: text rows with the visual rows that each range of KV heads holds."""
    if call.visual is None or call.streams is None:
        return [Shared(text, 0, len(layout.kv_order))]
    shared = []
    for part in layout.ranges:
        if part.phases == TEXT_ONLY:
            shared.append(Shared(text, part.first, part.last))
        elif part.phases == 1:
            rows = call.visual.shape[0] // call.batch
            shared.append(Shared(torch.cat([text, call.normalised(norm)]), part.first, part.last, rows, 1))
        else:
            rows = call.streams.by_phase(part.phases)[0].shape[-1]
            lattice = torch.cat([text, call.lattice(norm, part.phases, part.lattice)])
            shared.append(Shared(lattice, part.first, part.last, rows, part.phases))
    return shared


def _projected(projection: Any, shared: list[Shared], count: int, batch: int, size: int) -> tuple[Tensor, dict[int, Tensor]]:
    """Keys or values of text rows in all KV heads `[batch, KV heads, text rows, head_dim]`, and of visual rows in the heads that hold
    them, by phases: `[batch, heads, all rows or those of the largest lattice, head_dim]`."""
    text, visual = [], dict[int, list[Tensor]]()
    for part in shared:
        both = _linear(part.rows, projection, part.first * size, part.last * size)
        text.append(both[:count])
        if part.visual_rows:
            visual.setdefault(part.phases, []).append(_padded(_heads(both[count:], batch, size), part.visual_rows))
    return _heads(_joined(text, -1), batch, size), {phases: _joined(parts, 1) for phases, parts in visual.items()}


def _queries(
    projection: Any, norm: Any, layout: LayerLayout, shared: list[Shared], call: Call, text: Tensor, size: int
) -> tuple[Tensor, Tensor | None]:
    """Queries of text rows in the file's head order, and of visual rows in the kept order (None without self heads)."""
    kept, count, batch = sum(layout.computes) * size, text.shape[0], call.batch
    if not kept or call.visual is None:
        return _heads(_linear(text, projection), batch, size), None
    rows = shared[0].rows if shared[0].phases == 1 else torch.cat([text, call.normalised(norm)])
    if isinstance(projection, SplitLinear):
        kept_bias, rest_bias = projection.biases()
        both = product(rows, projection.kept, kept_bias)
        text_queries = torch.cat([both[:count], product(text, projection.rest, rest_bias)], -1)
        text_queries = text_queries[:, projection.places(text.device)]
    else:
        both = _linear(rows, projection, 0, kept)
        text_queries = torch.cat([both[:count], _linear(text, projection, kept)], -1)
    return _heads(text_queries, batch, size), _heads(both[count:], batch, size)


def _output(projection: Any, layout: LayerLayout, size: int, text: Tensor, visual: Tensor) -> tuple[Tensor, Tensor]:
    """Output projection of text rows `[rows, all heads]` and of visual rows `[rows, kept heads]`; the kept part is one product."""
    count = text.shape[0]
    if not isinstance(projection, SplitLinear):
        both = _linear(torch.cat([text, visual]), projection)
        return both[:count], both[count:]
    if projection.order != tuple(range(len(projection.order))):
        text = text[:, torch.tensor(projection.order, device=text.device)]
    kept, rest = text[:, : projection.count], text[:, projection.count :]
    both = product(torch.cat([kept, visual]), projection.kept, projection.bias)
    return both[:count] + product(rest, projection.rest), both[count:]


def _valid(mask: Tensor | None, length: int) -> Tensor | None:
    """Which of a call's tokens `[batch, length]` are no padding; None when all are."""
    if mask is None:
        return None
    mask = mask[:, -length:].bool() if mask.shape[1] >= length else mask.bool()
    return None if bool(mask.all()) else mask


def _in_place(text: Tensor, call: Call, shape: torch.Size) -> Tensor:
    """Final text rows back in the sequence `[batch, length, hidden]`, zeros where a visual token or padding stands."""
    if call.streams is None:
        return text.view(shape)
    index = call.streams.text_index.where(call.streams.text_slots >= 0, shape[1])
    sequence = text.new_zeros(shape[0], shape[1] + 1, shape[2])
    sequence = sequence.scatter(1, index[..., None].expand(-1, -1, shape[2]), text.view(shape[0], -1, shape[2]))
    return sequence[:, :-1]


def _refuse(mask: Tensor | None, arguments: dict[str, Any]) -> None:
    """Raise ValueError for what a pruned model cannot give, rather than give something else."""
    if isinstance(mask, dict) or (mask is not None and mask.dim() != 2):
        raise ValueError("A pruned model takes an attention_mask of [batch, length]; its own sparse masks are made from the plan.")
    for name in ("output_attentions", "output_hidden_states"):
        if arguments.get(name):
            raise ValueError(
                f"{name} is not available while visual work is skipped: visual rows have no values to return. "
                "Use `with model.dense():` to inspect the dense model."
            )
