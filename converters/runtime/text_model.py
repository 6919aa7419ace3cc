"""The language model's forward pass under a plan: visual work that the plan leaves out is not computed.

Text and visual tokens are two blocks of flat rows. They share one product with the part of a weight that both use, so that every
weight is read once; text alone goes through the rest. Mixed into a text model of transformers (`class Sparse(SparseTextModel,
LlamaModel)`), whose modules, parameter names and rotary embedding it uses.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

from .attention import (
    HeadKind,
    TextMasks,
    WindowRule,
    causal_attention,
    full_attention,
    head_kinds,
    leading_text,
    rotate,
    take,
    text_attention,
    windowed_attention,
)
from .autotune import choices
from .cache import SparseLayer, Timeline, sparse_layers
from .chunking import by_pieces, in_place
from .layout import TEXT_ONLY, LayerLayout, layouts
from .matmul import added, product
from .plan import Plan, factored, from_json, normalise, ranges
from .split_linear import SplitLinear
from .token_split import Streams, flat_index, rows_of, split

Rotary = tuple[Tensor, Tensor]


FFN_ROWS = 2048
"""Rows that go through the neurons together where they are changed in place."""


@dataclass
class Call:
    """One forward call: its rows and everything that its layers share.

    `text` `[batch * text rows, hidden]` and `visual` `[batch * visual rows, hidden]` (None: no visual token is in play) change from
    layer to layer: in place where they are the two parts of `rows`, visual first, else by new ones. While visual rows do not change,
    `unit` keeps them divided by their root mean square: frozen layers differ by their norm's weight alone. `places` are where `unit`
    and the normalised rows stand, layer after layer, on a CPU, which gets new memory slowly. Rotary embeddings are `[batch * rows, 1,
    size]`.
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
    rows: Tensor | None = None
    places: tuple[Tensor, Tensor] | None = None
    unit: Tensor | None = None
    rotaries: dict[tuple[int, int], Rotary] = field(default_factory=dict)

    def own(self, rows: Tensor) -> None:
        """Take rows, visual ones first, that are nobody else's, to be changed in place."""
        self.rows, count = rows, len(rows) - len(self.text)
        self.visual, self.text = None if self.visual is None else rows[:count], rows[count:]
        if count and rows.device.type == "cpu":
            self.places = torch.empty_like(rows[:count]), torch.empty_like(rows)

    def add_text(self, update: Tensor) -> None:
        """Add to the text rows."""
        self.text = self.text + update if self.rows is None else self.text.add_(update.contiguous())

    def add_product(self, rows: Tensor, linear: Any, inner: Callable[[Tensor], Tensor] = lambda rows: rows) -> None:
        """Add a product of what is inside rows of both kinds, visual first, which are new rows from now on."""
        assert self.visual is not None
        weight, bias = (linear.kept if isinstance(linear, SplitLinear) else linear.weight), linear.bias
        if self.rows is None:
            count, update = len(self.visual), product(inner(rows), weight, bias)
            self.visual, self.text = self.visual + update[:count], self.text + update[count:]
        else:
            for total, part in zip(self.rows.split(FFN_ROWS), rows.split(FFN_ROWS), strict=True):
                added(total, inner(part), weight, bias)
        self.unit = None

    def normalised(self, norm: Any, text: Tensor, stride: int = 1, offset: int = 0) -> Tensor:
        """Visual rows (at one offset) after an RMS norm, `norm(visual)` to the bit, then the `text` rows, which have been through it."""
        assert self.visual is not None
        if self.unit is None:
            place = None if self.places is None else self.places[0]
            self.unit = by_pieces(partial(_unit, epsilon=norm.variance_epsilon), self.visual, place=place)
        index = torch.arange(len(self.visual), device=text.device) if stride == 1 else self.at_offset(stride, offset)
        work = partial(_scaled, self.unit, norm.weight)
        if self.places is None:
            return torch.cat([work(index), text])
        rows = self.places[1][: len(index) + len(text)]
        by_pieces(work, index, place=rows[: len(index)])
        rows[len(index) :] = text
        return rows

    def at_offset(self, stride: int, offset: int) -> Tensor:
        """Which of the flat visual rows are at an offset."""
        assert self.streams is not None
        index = self.streams.by_stride(stride)[0][:, offset, : self.streams.offset_size(stride, offset)]
        return flat_index(index, self.streams.visual_index.shape[1])

    def rotary(self, stride: int = 1, offset: int = 0) -> Rotary:
        """Cosine and sine of the visual rows (at one offset), then of the text rows."""
        if (stride, offset) not in self.rotaries:
            assert self.visual_rotary is not None
            visual = self.visual_rotary
            if stride > 1:
                index = self.at_offset(stride, offset)
                visual = visual[0].index_select(0, index), visual[1].index_select(0, index)
            cosine, sine = (torch.cat(pair) for pair in zip(visual, self.text_rotary, strict=True))
            self.rotaries[stride, offset] = cosine, sine
        return self.rotaries[stride, offset]


def _unit(rows: Tensor, epsilon: float) -> Tensor:
    """Rows divided by their root mean square."""
    wide = rows.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)).to(rows.dtype)


def _scaled(unit: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    """Rows at `index`, by the weight of a norm."""
    return weight * unit.index_select(0, index)


def _of_rows(index: Tensor, *parts: Tensor) -> Rotary:
    """A rotary embedding `[batch or 1, length, size]` at rows `[batch, rows]`, flat."""
    cosine, sine = (rows_of(index, part).flatten(0, 1)[:, None] for part in parts)
    return cosine, sine


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
    """One product: rows `[batch * visual; batch * text, hidden]` and their rotary embedding, for KV heads `first` to `last`.

    `visual` rows of each sample, 0 for text alone, in a rectangle of `width`. `sources` are what K and V of the visual rows are made from:
    these themselves, or as few dimensions as the plan has them go through.
    """

    rows: Tensor
    rotary: Rotary
    first: int
    last: int
    visual: int = 0
    width: int = 0
    sources: Tensor | None = None


@dataclass(frozen=True)
class Source:
    """What makes K or V: a layer's `own` projection of all rows, or in a refitted layer the product of all text rows with it, and the
    projection of `visual` rows, which has the KV heads alone that hold them."""

    own: Any
    visual: Any = None
    text: Tensor | None = None

    def rows(self, part: Shared, size: int) -> Tensor:
        """Keys or values `[rows, heads * head_dim]` of a product."""
        first, last = part.first * size, part.last * size
        if self.text is None:
            return _linear(part.rows, self.own, first, last)
        text = self.text[:, first:last]
        return text.clone() if part.sources is None else torch.cat([_linear(part.sources, self.visual, first, last), text])


@dataclass(frozen=True)
class Projected:
    """Keys or values of such a product `[rows, heads, head_dim]`, and its two parts `[batch, rows, heads, head_dim]`."""

    both: Tensor
    visual: Tensor
    text: Tensor
    shared: Shared


class SparseTextModel(nn.Module):
    """A text model of transformers that obeys a plan. `bind` it to one; `dense()` switches the plan off for a while."""

    layers: Any
    norm: Any
    rotary_emb: Any
    embed_tokens: Any
    config: Any
    recomputing = False  # whether a training pass computes a layer's inner values twice rather than keep them

    def bind(self, section: dict[str, Any]) -> None:
        """Obey the plan of a config's section `yopo`; the weights are in its kept-first order. Makes the place of refitted projections."""
        self.plan: Plan = normalise(from_json(section.get("plan")))
        self.layouts = layouts(self.plan)
        self.depth = self.plan.visual_depth
        self.pruned = True
        self.split = False
        self.refitted = tuple(section.get("refitted", ()))
        if missing := set(factored(self.plan)) - set(self.refitted):
            raise ValueError(
                f"The plan gives layers {sorted(missing)} a rank, but they are not among the refitted ones {list(self.refitted)}."
            )
        for index in self.refitted:
            width, inner = self.layouts[index].held * self.plan.sizes.head_dim, self.plan.sizes.hidden_size
            if rank := self.layouts[index].kv_rank:
                self.layers[index].self_attn.visual_kv_proj, inner = nn.Linear(inner, rank), rank
            for name in ("visual_k_proj", "visual_v_proj"):
                setattr(self.layers[index].self_attn, name, nn.Linear(inner, width))
            if self.layouts[index].ranked_queries:
                queries = len(self.layouts[index].computing) * self.plan.sizes.head_dim
                self.layers[index].self_attn.visual_q_proj = nn.Linear(inner, queries)

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
            if count and not layout.ranked_queries and kept_first != sorted(kept_first):
                attention.q_proj = SplitLinear(attention.q_proj, elements, count, dim=0)
            if 0 < layout.neurons < len(layout.neuron_order):
                ffn.down_proj = SplitLinear(ffn.down_proj, tuple(range(len(layout.neuron_order))), layout.neurons, dim=1)
        self.split = True

    def _recomputed(self, layer: Any, layout: LayerLayout, call: Call) -> None:
        """A layer of a training pass, of which only the rows that enter it are kept for the backward pass."""

        def run(text: Tensor, visual: Tensor | None) -> tuple[Tensor, Tensor | None]:
            inner = replace(call, text=text, visual=visual, rows=None, places=None, unit=None)
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
        refitted = [f"K and V of visual rows are refitted in layers {ranges(self.refitted)}"] if self.refitted else []
        return "; ".join([path, *refitted, *([f"fastest here: {chosen}"] if (chosen := choices()) else [])])

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
        features: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """`inputs_embeds` `[batch, length, hidden]`, or `input_ids` with the `features` `[visual tokens, hidden]` of their pictures.

        `visual_mask` `[batch, length]` marks visual tokens, `images(mask, positions)` tells which images they make up.
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
        rows_of_call = None
        if features is not None:
            assert input_ids is not None
            assert visual_mask is not None
            inputs_embeds = features.new_empty(*input_ids.shape, 0)
            rows_of_call = partial(self._rows_apart, input_ids, visual_mask, features)
        elif inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        keeping = use_cache or past_key_values is not None
        call, cache, cached = self._opened(
            inputs_embeds, attention_mask, position_ids, past_key_values, visual_mask, images, in_place(), rows_of_call
        )
        self._through(call, cached, recomputing=self.recomputing and torch.is_grad_enabled() and not keeping)
        return BaseModelOutputWithPast(
            last_hidden_state=_in_place(self.norm(call.text), call, *inputs_embeds.shape[:2]),
            past_key_values=cache if keeping else None,
        )

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # data decides its shapes; from here on they are fixed
    def _opened(
        self,
        embeds: Tensor,
        mask: Tensor | None,
        positions: Tensor | None,
        cache: Cache | None,
        visual: Tensor | None,
        images: Any,
        own: bool = False,
        rows_of_call: Callable[[Streams], Tensor] | None = None,
    ) -> tuple[Call, Cache, list[SparseLayer]]:
        """A call at the input of the first layer, and the cache with its layers."""
        if not self.split:
            self.split_weights()
        strides = [kind.stride for layout in self.layouts for kind in head_kinds(layout)]
        cache, cached = sparse_layers(cache, len(self.layers), strides)
        call = self._call(embeds, mask, positions, visual, images, cached[0].timeline, own, rows_of_call)
        call.masks.prepare(strides)
        return call, cache, cached

    def _rows_apart(self, ids: Tensor, visual: Tensor, features: Tensor, streams: Streams) -> Tensor:
        """Visual rows, then text rows, of words and features that nobody has put together."""
        length = ids.shape[1]
        words: Tensor = self.embed_tokens(ids.flatten().index_select(0, flat_index(streams.text_index, length)))
        if len(ids) > 1 or streams.visual_index.shape[1] < len(features):
            number = (visual.flatten().cumsum(0) - 1).clamp(min=0)
            features = features.index_select(0, number.index_select(0, flat_index(streams.visual_index, length)))
        return torch.cat([features, words])

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
        self,
        embeds: Tensor,
        mask: Tensor | None,
        positions: Tensor | None,
        visual: Tensor | None,
        images: Any,
        timeline: Timeline,
        own: bool = False,
        rows_of_call: Callable[[Streams], Tensor] | None = None,
    ) -> Call:
        """A call at the input of the first layer, which may `own` its rows: those of the sequence, or what `rows_of_call` gives."""
        batch, length = embeds.shape[:2]
        seen = timeline.seen
        valid = _valid(mask, length)
        rotary = self.rotary(embeds, positions, seen)
        if visual is None or (rows_of_call is None and (length == 1 or not visual.any())):
            slots = torch.arange(seen, seen + length, device=embeds.device).expand(batch, -1)
            slots = slots if valid is None else slots.where(valid, -1)
            timeline.append(length, slots, None, gapless=valid is None)
            causal = seen == 0 and valid is None and length > 1
            masks = TextMasks(timeline, slots, causal)
            cosine, sine = (part.expand(batch, -1, -1).flatten(0, 1)[:, None] for part in rotary)
            text = embeds.flatten(0, 1).clone() if own else embeds.flatten(0, 1)
            return Call(batch, text, None, None, slots, (cosine, sine), None, timeline, masks, seen == 0, text if own else None)
        streams = split(visual, valid, seen, images(visual if valid is None else visual & valid, positions))
        timeline.append(
            length,
            streams.text_slots,
            lambda stride: streams.visual_slots[:, None] if stride == 1 else streams.by_stride(stride)[1],
            gapless=bool((streams.text_slots >= 0).all()),
        )
        first = streams.visual_index.numel()
        rows = rows_of_call(streams) if rows_of_call else _sequence_rows(embeds, streams)
        call = Call(
            batch,
            rows[first:],
            rows[:first],
            streams,
            streams.text_slots,
            _of_rows(streams.text_index, *rotary),
            _of_rows(streams.visual_index, *rotary),
            timeline,
            TextMasks(timeline, streams.text_slots, causal=False, leading=leading_text(streams, seen)),
            seen == 0,
        )
        if own:
            call.own(rows)
        return call

    def _attention(self, layer: Any, layout: LayerLayout, call: Call, cached: SparseLayer) -> None:
        """Self attention of one layer: K and V into the cache, text rows updated, visual rows too where they have heads."""
        parts, size, scale = self.projections(layer), layer.self_attn.head_dim, layer.self_attn.scaling
        text = layer.input_layernorm(call.text)
        keys: list[Projected] = []
        values: list[Projected] = []
        queries, own_queries, ranked = None, None, None
        if layout.ranked_queries and call.visual is not None:
            rows = call.normalised(layer.input_layernorm, text)
            ranked = _linear(rows[: len(call.visual)], layer.self_attn.visual_kv_proj)
            queries, own_queries = _ranked_queries(layer.self_attn, parts.query, ranked, text, call)
        source = partial(_source, layer.self_attn, text, call)
        key, value = source(parts.key, "visual_k_proj"), source(parts.value, "visual_v_proj")
        for part in _shared_rows(layer, layout, call, text, ranked):
            if queries is None:
                queries, own_queries = _queries(parts.query, layout, part.rows, text, call, size)
            keys.append(_projected(part, key, call.batch, size, turned=True))
            values.append(_projected(part, value, call.batch, size))
        assert queries is not None
        kinds = head_kinds(layout)
        held = {kind.stride: cached.extend(kind.stride, _rectangle(kind, keys), _rectangle(kind, values)) for kind in kinds}
        seen = [text_attention(take(queries, kind.query_heads, 1), *held[kind.stride], kind, call.masks, scale) for kind in kinds]
        output = _joined([part.transpose(1, 2) for part in seen], 2)
        places = [head for kind in kinds for head in kind.query_heads]
        if places != sorted(places):
            output = take(output, sorted(range(len(places)), key=lambda place: places[place]), 2)
        output = output.flatten(2).flatten(0, 1)
        if own_queries is None:
            call.add_text(_linear(output, parts.output))
            return
        visual = self._visual_attention(layout, call, own_queries, keys[0], values[0], held, scale)
        if not isinstance(parts.output, SplitLinear):
            call.add_product(torch.cat([_rows(visual), output]), parts.output)
            return
        kept, rest = parts.output.parts(output)
        call.add_product(torch.cat([_rows(visual), kept]), parts.output)
        call.add_text(product(rest, parts.output.rest))

    def _visual_attention(
        self, layout: LayerLayout, call: Call, queries: Tensor, keys: Projected, values: Projected,
        held: dict[int, tuple[Tensor, Tensor]], scale: float,
    ) -> Tensor:  # fmt: skip
        """What visual queries `[batch, kept heads, rows, head_dim]` see."""
        assert call.streams is not None
        group = len(layout.query_order) // len(layout.kv_order)
        shared = [head // group for head in layout.computing]
        if layout.window is None:
            held_keys, held_values = (take(tensor, shared, 1) for tensor in held[1])
            key_slots, visual_slots = call.timeline.all_slots(1)[:, 0], call.streams.visual_slots
            if call.fresh and call.timeline.gapless[1]:
                return causal_attention(queries, held_keys, held_values, visual_slots, key_slots, scale)
            return full_attention(queries, held_keys, held_values, visual_slots, key_slots, keys.text.shape[1], scale)
        near_keys, near_values = (
            take(_near_rows(layout, call, new, {stride: kind[number] for stride, kind in held.items()}), shared, 1)
            for number, new in enumerate((keys, values))
        )
        slots = call.text_slots if call.fresh else call.timeline.all_slots(TEXT_ONLY)[:, 0]
        rule = WindowRule(layout.window, self.plan.locality)
        return windowed_attention(queries, near_keys, near_values, slots, call.streams, rule, scale)

    def _ffn(self, layer: Any, layout: LayerLayout, call: Call) -> None:
        """Feed-forward of one layer; visual rows go through the first `neurons` neurons only."""
        parts = self.projections(layer)
        text = layer.post_attention_layernorm(call.text)
        if call.visual is None or not layout.neurons:
            call.add_text(_linear(_neurons(parts, text), parts.down))
            return
        rows, kept = call.normalised(layer.post_attention_layernorm, text), layout.neurons
        call.add_product(rows, parts.down, partial(_neurons, parts, first=0, last=kept))
        if isinstance(parts.down, SplitLinear):
            call.add_text(product(_neurons(parts, text, kept), parts.down.rest))


def _neurons(parts: Projections, rows: Tensor, first: int = 0, last: int | None = None) -> Tensor:
    """What neurons `first` to `last` give for rows."""
    gate: Tensor = parts.activation(_linear(rows, parts.gate, first, last))
    up = _linear(rows, parts.up, first, last)
    return gate.mul_(up) if in_place() else gate * up


def _linear(rows: Tensor, linear: Any, first: int = 0, last: int | None = None) -> Tensor:
    """Product with a linear layer, or with rows `first` to `last` of its weight: a contiguous view."""
    if isinstance(linear, SplitLinear):
        whole: Tensor = linear(rows)
        return whole
    bias = linear.bias
    return product(rows, linear.weight[first:last], None if bias is None else bias[first:last])


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _rows(heads: Tensor) -> Tensor:
    """`[batch, heads, rows, head_dim]` as `[batch * rows, heads * head_dim]`."""
    return heads.transpose(1, 2).flatten(2).flatten(0, 1)


def _shared_rows(layer: Any, layout: LayerLayout, call: Call, text: Tensor, ranked: Tensor | None) -> Iterator[Shared]:
    """The products of a layer's K and V: text rows with the visual rows that each range of KV heads holds.

    Each one's rows are good until the next is asked for. `ranked` are all visual rows in the dimensions of a rank, where they are there.
    """
    if call.visual is None or call.streams is None:
        yield Shared(text, call.text_rotary, 0, len(layout.kv_order))
        return
    norm, inner = layer.input_layernorm, getattr(layer.self_attn, "visual_kv_proj", None)
    for part in layout.ranges:
        if part.stride == TEXT_ONLY:
            yield Shared(text, call.text_rotary, part.first, part.last)
            continue
        if ranked is None:
            rows = call.normalised(norm, text, part.stride, part.offset)
            visual = rows[: len(rows) - len(text)]
            visual = visual if inner is None else _linear(visual, inner)
        else:
            rows, visual = text, ranked if part.stride == 1 else ranked.index_select(0, call.at_offset(part.stride, part.offset))
        count = len(visual) // call.batch
        width = count if part.stride == 1 else call.streams.by_stride(part.stride)[0].shape[-1]
        yield Shared(rows, call.rotary(part.stride, part.offset), part.first, part.last, count, width, visual)


def _source(attention: Any, text: Tensor, call: Call, own: Any, name: str) -> Source:
    """What makes K or V in this call; `name` is that of the projection of visual rows, which a refitted layer has."""
    visual = getattr(attention, name, None)
    return Source(own) if visual is None or call.visual is None else Source(own, visual, _linear(text, own))


def _projected(part: Shared, source: Source, batch: int, size: int, turned: bool = False) -> Projected:
    """Keys or values of a product's rows; keys are `turned` by their positions."""
    both = source.rows(part, size).contiguous().unflatten(-1, (-1, size))
    if turned:
        both = by_pieces(rotate, both, *part.rotary, place=both)
    visual, text = both.tensor_split([batch * part.visual])
    return Projected(both, visual.unflatten(0, (batch, part.visual)), text.unflatten(0, (batch, len(text) // batch)), part)


def _rectangle(kind: HeadKind, parts: list[Projected]) -> Tensor:
    """New keys or values of one kind of KV head, `[batch, KV heads, visual and text rows, head_dim]`, visual ones first.

    The product's own result where it is just that; else put together, heads whose offsets have fewer tokens with zeros up to the most.
    """
    batch, text, _, size = parts[0].text.shape
    mine = [(part, _within(part.shared, kind.kv_heads)) for part in parts if _within(part.shared, kind.kv_heads)]
    width = mine[0][0].shared.width if kind.stride != TEXT_ONLY else 0
    part, heads = mine[0]
    alone = len(mine) == 1 and len(part.both) == batch * (width + text)
    if alone and (not width or (batch == 1 and len(heads) == part.both.shape[1])):
        return take(part.both.unflatten(0, (batch, width + text)).transpose(1, 2), heads, 1)
    rectangle = part.both.new_empty(batch, width + text, len(kind.kv_heads), size)
    first = 0
    for part, heads in mine:
        place = slice(first, first := first + len(heads))
        if width:
            rectangle[:, : part.shared.visual, place] = take(part.visual, heads, 2)
            rectangle[:, part.shared.visual : width, place] = 0
        rectangle[:, width:, place] = take(part.text, heads, 2)
    return rectangle.transpose(1, 2)


def _near_rows(layout: LayerLayout, call: Call, new: Projected, held: dict[int, Tensor]) -> Tensor:
    """Keys or values of this call's visual rows, then of all text so far, `[batch * rows, KV heads, head_dim]`; those of self heads lead.

    The product's own result, unless there is text in the cache: `held` by kind of KV head.
    """
    if call.fresh:
        return new.both
    texts = []
    for kind in head_kinds(layout):
        places = [place for place, head in enumerate(kind.kv_heads) if head < layout.own]
        if places:
            texts.append(take(held[kind.stride], places, 1)[:, :, call.timeline.text_columns(kind.stride)])
    text = torch.cat(texts, 1).transpose(1, 2).flatten(0, 1)
    return torch.cat([new.visual.flatten(0, 1)[:, : layout.own], text])


def _within(part: Shared, heads: tuple[int, ...]) -> list[int]:
    """Those of the KV heads that a product computes, counted from its first."""
    return [head - part.first for head in heads if part.first <= head < part.last]


def _queries(projection: Any, layout: LayerLayout, rows: Tensor, text: Tensor, call: Call, size: int) -> tuple[Tensor, Tensor | None]:
    """Queries of text rows in the file's head order, and of visual rows in the kept order (None without self heads).

    Where there are self heads, `rows` are all visual ones, then the text.
    """
    kept, count = sum(layout.computes) * size, len(rows) - len(text)
    if not kept or call.visual is None:
        return _turned(_linear(text, projection), call.text_rotary, call.batch, size), None
    if isinstance(projection, SplitLinear):
        kept_bias, rest_bias = projection.biases()
        both, rest = product(rows, projection.kept, kept_bias), product(text, projection.rest, rest_bias)
        text_queries = torch.cat([both[count:], rest], -1)[:, projection.places(text.device)]
    else:
        both = _linear(rows, projection, 0, kept)
        text_queries = torch.cat([both[count:], _linear(text, projection, kept)], -1)
    assert call.visual_rotary is not None
    return (
        _turned(text_queries, call.text_rotary, call.batch, size),
        _turned(both[:count], call.visual_rotary, call.batch, size),
    )


def _ranked_queries(attention: Any, projection: Any, ranked: Tensor, text: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """The same where those of visual rows are made from the dimensions of a rank."""
    assert call.visual_rotary is not None
    return (
        _turned(_linear(text, projection), call.text_rotary, call.batch, attention.head_dim),
        _turned(_linear(ranked, attention.visual_q_proj), call.visual_rotary, call.batch, attention.head_dim),
    )


def _turned(rows: Tensor, rotary: Rotary, batch: int, size: int) -> Tensor:
    """Queries `[batch * rows, heads * head_dim]` turned by their positions, `[batch, heads, rows, head_dim]`."""
    heads = rows.contiguous().unflatten(-1, (-1, size))
    turned = by_pieces(rotate, heads, *rotary, place=heads)
    return turned.view(batch, -1, *turned.shape[1:]).transpose(1, 2)


def _valid(mask: Tensor | None, length: int) -> Tensor | None:
    """Which of a call's tokens `[batch, length]` are no padding; None when all are."""
    if mask is None:
        return None
    mask = mask[:, -length:].bool() if mask.shape[1] >= length else mask.bool()
    return None if bool(mask.all()) else mask


def _sequence_rows(embeds: Tensor, streams: Streams) -> Tensor:
    """Visual rows, then text rows, of a sequence `[batch, length, hidden]`."""
    index = torch.cat([flat_index(part, embeds.shape[1]) for part in (streams.visual_index, streams.text_index)])
    return embeds.flatten(0, 1).index_select(0, index)


def _in_place(text: Tensor, call: Call, batch: int, length: int) -> Tensor:
    """Final text rows back in the sequence `[batch, length, hidden]`, zeros where a visual token or padding stands."""
    if call.streams is None:
        return text.view(batch, length, -1)
    if batch == 1 and call.rows is not None and len(call.rows) == length:
        return call.rows.zero_().index_copy_(0, call.streams.text_index[0], text)[None]
    index = flat_index(call.streams.text_index, length).where(call.streams.text_slots.flatten() >= 0, batch * length)
    sequence: Tensor = text.new_zeros(batch * length + 1, text.shape[1]).index_copy_(0, index, text)
    return sequence[:-1].view(batch, length, -1)


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
