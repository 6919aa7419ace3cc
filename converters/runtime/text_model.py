"""The language model's forward pass under a plan: visual work that the plan leaves out is not computed.

Mixed into a text model of transformers (`class Sparse(SparseTextModel, LlamaModel)`), whose modules, parameter names and rotary
embedding it uses.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import logging

from .autotune import choices
from .cache import SparseLayer, refuse_other_caches, sparse_layers
from .call import Call, Rotary, open_call
from .chunking import in_place
from .layer import run_layer
from .layer_parts import LayerParts, Projections, layer_parts, separate, whole_layers
from .layout import LayerLayout, layouts
from .offloaded import at_hand, is_dispatched
from .outputs import CACHE, output_of, refuse_other_outputs
from .plan import Plan, factored, from_json, normalise, ranges
from .projection import Called, own_projection
from .quantised import Quantised
from .switch import is_off, switched_off
from .token_split import TokenSplit, flat_index
from .windows import prepare_windows


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
        self.last_call = ""
        self.refitted = tuple(section.get("refitted", ()))
        if missing := set(factored(self.plan)) - set(self.refitted):
            raise ValueError(
                f"The plan gives layers {sorted(missing)} a rank, but they are not among the refitted ones {list(self.refitted)}."
            )
        for index in self.refitted:
            width, inner = self.layouts[index].visual_kv_heads * self.plan.sizes.head_dim, self.plan.sizes.hidden_size
            if rank := self.layouts[index].kv_rank:
                self.layers[index].self_attn.visual_kv_proj, inner = own_projection(inner, rank), rank
            for name in ("visual_k_proj", "visual_v_proj"):
                setattr(self.layers[index].self_attn, name, own_projection(inner, width))
            if self.layouts[index].ranked_queries:
                queries = len(self.layouts[index].computing) * self.plan.sizes.head_dim
                self.layers[index].self_attn.visual_q_proj = own_projection(inner, queries)

    def dense(self) -> AbstractContextManager[None]:
        """Within this context, and in this thread, the plan is switched off: the dense model of the same weights runs."""
        return switched_off(self)

    def report(self) -> str:
        """Which path runs, and what the last call did, in one line."""
        if is_off(self):
            return "dense: the plan is switched off"
        plan, updating = self.plan, sum(layout.updates for layout in self.layouts)
        path = (
            f"pruned: visual tokens leave after layer {plan.visual_depth} of {len(plan.layers)} and are updated in {updating}; "
            f"K and V of text and visual rows share their products, attention is SDPA on rectangles"
        )
        refitted = [f"K and V of visual rows are refitted in layers {ranges(self.refitted)}"] if self.refitted else []
        last = [f"the last call {self.last_call}"] if self.last_call else []
        return "; ".join(
            [path, *refitted, *self._layers_that_are_not_plain(), *last, *([f"fastest here: {chosen}"] if (chosen := choices()) else [])]
        )

    def _layers_that_are_not_plain(self) -> list[str]:
        """How many projections are quantised, and how many are called whole."""
        elsewhere = sum(is_dispatched(layer) for layer in self.layers)
        here = [layer for layer in self.layers if not is_dispatched(layer)]
        found = [whole for layer in here for whole in whole_layers(self.projections(layer))]
        cut, called = (sum(isinstance(one, kind) for one in found) for kind in (Quantised, Called))
        said = [f"accelerate places the weights of {elsewhere} layers"] if elsewhere else []
        said += [f"{cut} weights are quantised, and visual rows go through parts of them"] if cut else []
        return said + ([f"{called} projections are called whole, which skips none of their work"] if called else [])

    @staticmethod
    def projections(layer: Any) -> Projections:
        """The linear layers of a decoder layer."""
        return separate(layer)

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
        cache: Cache | None = None,
        visual_pos_masks: Tensor | None = None,
        deepstack_visual_embeds: Sequence[Tensor] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """`inputs_embeds` `[batch, length, hidden]`, or `input_ids` with the `features` `[visual tokens, hidden]` of their pictures.

        `visual_mask` `[batch, length]` marks visual tokens, `images(mask, positions, inputs_embeds)` tells which images they make
        up.
        `cache` is what newer releases of transformers call `past_key_values`. `deepstack_visual_embeds` `[visual tokens, hidden]` each
        are added to visual tokens, which `visual_pos_masks` marks, after the first layers.
        """
        past_key_values = cache if past_key_values is None else past_key_values
        if is_off(self):
            self.last_call = "was dense"
            if deepstack_visual_embeds is not None:
                kwargs |= {"visual_pos_masks": visual_pos_masks, "deepstack_visual_embeds": deepstack_visual_embeds}
            dense: BaseModelOutputWithPast = super().forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
                use_cache=use_cache,
                **{CACHE: past_key_values},
                **kwargs,
            )
            return dense
        _refuse(inputs_embeds if input_ids is None else input_ids, attention_mask, past_key_values)
        refuse_other_outputs(kwargs, self.config)
        rows_of_call = None
        if features is not None:
            assert input_ids is not None
            assert visual_mask is not None
            inputs_embeds = features.new_empty(*input_ids.shape, 0)
            rows_of_call = partial(self._rows_apart, input_ids, visual_mask, features)
        elif inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        keeping = past_key_values is not None or (use_cache and not self._checkpoints())
        call, cache, cached, parts = self._opened(
            inputs_embeds, attention_mask, position_ids, past_key_values, visual_mask, images, in_place(), rows_of_call,
            deepstack_visual_embeds or (),
        )  # fmt: skip
        self._through(call, cached, parts, checkpointing=torch.is_grad_enabled() and not keeping)
        rows = call.in_sequence(self.norm(call.text), inputs_embeds.shape[1])
        return output_of(BaseModelOutputWithPast, cache if keeping else None, last_hidden_state=rows)

    def _checkpoints(self) -> bool:
        """Whether a training pass keeps no more than the rows that enter a layer: then there is no cache, as in transformers."""
        if not torch.is_grad_enabled():
            return False
        asked = self.training and any(layer.gradient_checkpointing for layer in self.layers)
        if asked:
            logging.get_logger(__name__).warning_once("With gradient checkpointing there is no cache: use_cache=True is not obeyed.")
        return asked or self.recomputing

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # data decides its shapes; from here on they are fixed
    def _opened(
        self,
        embeds: Tensor,
        mask: Tensor | None,
        positions: Tensor | None,
        cache: Cache | None,
        visual: Tensor | None,
        images: Any,
        changed_in_place: bool = False,
        rows_of_call: Callable[[TokenSplit], Tensor] | None = None,
        deepstack: Sequence[Tensor] = (),
    ) -> tuple[Call, Cache, list[SparseLayer], list[LayerParts | None]]:
        """A call at the input of the first layer, the cache with its layers, and the parts of the model's layers (None: kept elsewhere)."""
        parts = [None if is_dispatched(layer) else layer_parts(layer, self.projections(layer)) for layer in self.layers]
        _say_which_attention(self.config)
        strides = [kind.stride for layout in self.layouts for kind in layout.head_kinds]
        cache, cached = sparse_layers(cache, len(self.layers), strides)
        timeline = cached[0].timeline
        rotary = self.rotary(embeds, positions, timeline.seen)
        call = open_call(
            embeds, rotary, mask, visual, lambda mask: images(mask, positions, embeds), timeline, changed_in_place, rows_of_call, deepstack
        )
        if call.split is not None:
            prepare_windows(call.split, (layout.window for layout in self.layouts), self.plan.locality)
        if call.visual_tokens or call.fresh:  # not a token that continues
            self.last_call = f"pruned {call.visual_tokens} visual tokens" if call.visual_tokens else "had no visual tokens"
        return call, cache, cached, parts

    def _rows_apart(self, ids: Tensor, visual: Tensor, features: Tensor, split: TokenSplit) -> Tensor:
        """Visual rows, then text rows, of words and features that nobody has put together."""
        length = ids.shape[1]
        words: Tensor = self.embed_tokens(ids.flatten().index_select(0, flat_index(split.text_index, length)))
        if len(ids) > 1 or split.visual_index.shape[1] < len(features):
            number = (visual.flatten().cumsum(0) - 1).clamp(min=0)
            features = features.index_select(0, number.index_select(0, flat_index(split.visual_index, length)))
        return torch.cat([features, words])

    def _through(self, call: Call, cached: list[SparseLayer], parts: list[LayerParts | None], checkpointing: bool = False) -> None:
        """All layers, which change the call's rows: one graph under `torch.compile`. Those that are asked to are checkpointed."""
        for index, (layer, layout) in enumerate(zip(self.layers, self.layouts, strict=True)):
            if index == self.depth:
                call.visual = None
            here = parts[index]
            if here is None:
                self._run_dispatched(layer, layout, call, cached[index])
            elif checkpointing and (self.recomputing or layer.gradient_checkpointing):
                func = layer._gradient_checkpointing_func if layer.gradient_checkpointing else partial(checkpoint, use_reentrant=False)
                call.text, call.visual = func(partial(self._from_rows, here, layout, call), call.text, call.visual)
            else:
                run_layer(here, layout, call, cached[index], self.plan.locality)
            call.leave(index)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # weights come and go
    def _run_dispatched(self, layer: Any, layout: LayerLayout, call: Call, cached: SparseLayer) -> None:
        """A layer whose weights accelerate places."""
        with at_hand(layer):
            run_layer(layer_parts(layer, self.projections(layer)), layout, call, cached, self.plan.locality)

    def _from_rows(
        self, parts: LayerParts, layout: LayerLayout, call: Call, text: Tensor, visual: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """What a layer makes of these rows, without a cache and changing nothing."""
        inner = replace(call, text=text, visual=visual, rows=None, places=None, unit=None)
        run_layer(parts, layout, inner, SparseLayer(call.timeline, first=False), self.plan.locality)
        return inner.text, inner.visual


def _say_which_attention(config: Any) -> None:
    """Warn, once, that another attention was asked for."""
    if (asked := config._attn_implementation) not in (None, "sdpa"):
        logging.get_logger(__name__).warning_once(
            f"attn_implementation={asked!r} holds for the vision tower and the dense side: a pruned language model computes attention "
            "on rectangles of its own, with PyTorch's scaled_dot_product_attention."
        )


def _refuse(rows: Tensor | None, mask: Any, cache: Any) -> None:
    """Raise ValueError for a call that a pruned model cannot answer."""
    if rows is not None and not rows.numel():
        raise ValueError(f"There is nothing to read: the tokens have the shape {tuple(rows.shape[:2])}.")
    if not all(isinstance(layer, SparseLayer) for layer in getattr(cache, "layers", ())):
        refuse_other_caches(cache)
    if isinstance(mask, dict) or (mask is not None and mask.dim() != 2):
        raise ValueError("A pruned model takes an attention_mask of [batch, length]; its own sparse masks are made from the plan.")
