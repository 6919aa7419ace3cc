"""What an exported decoder needs to know of a language model: sizes, names of its weights, rotary embedding, norms, layouts."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import transformers

from ...checkpoint.reader import Checkpoint
from ...checkpoint.skeleton import native_config
from ...checkpoint.visual_projections import INNER, PARTS
from ...errors import YopoError
from ...families import Family
from ...runtime.layout import HeadKind, LayerLayout, layouts
from ...runtime.plan import Plan, Sizes, normalise
from .weights import Weight

# Frequencies of these stay what they are at every length; those of others change with it.
STATIC_ROPE = ("default", "linear", "llama3", "yarn", "proportional")
ACTIVATIONS = ("silu",)
VISUAL = "visual_"
HEAD_NORMS = {"query": "self_attn.q_norm", "key": "self_attn.k_norm"}


@dataclass(frozen=True)
class Rotary:
    """`angles = position * frequencies`, cosine and sine times `scaling`, for positions below `limit`.

    `sections` (multimodal RoPE) tells how many frequencies turn with time, row and column; () where there is one position. Where they are
    `interleaved`, time, row and column take turns.
    """

    frequencies: tuple[float, ...]
    scaling: float
    sections: tuple[int, ...]
    limit: int
    interleaved: bool = False

    @property
    def axes(self) -> list[int]:
        """What each frequency turns with: 0 time, 1 row, 2 column."""
        if not self.interleaved:
            return [axis for axis, count in enumerate(self.sections) for _ in range(count)]
        return [place % 3 if place < 3 * self.sections[place % 3] else 0 for place in range(len(self.frequencies))]


@dataclass(frozen=True)
class TextModel:
    """A language model. `plan` is the normalised plan that its visual tokens obey; None: the dense model.

    `image_tokens` are the places of pictures and videos in a prompt, `merge` how many patches of the tower in a row are one visual token.
    `deepstack` counts the layers after which features are added to visual rows: these stand behind the row's own in `inputs_embeds`.
    """

    family: Family
    sizes: Sizes
    plan: Plan | None
    epsilon: float
    vocabulary: int
    rotary: Rotary
    tensors: frozenset[str]
    image_tokens: tuple[int, ...]
    end_tokens: tuple[int, ...]
    merge: int
    deepstack: int = 0

    @property
    def input_width(self) -> int:
        """Of a row of `inputs_embeds`."""
        return self.sizes.hidden_size * (1 + self.deepstack)

    @cached_property
    def layouts(self) -> tuple[LayerLayout | None, ...]:
        """The layout of each layer, None for each of the dense model."""
        return (None,) * self.sizes.num_hidden_layers if self.plan is None else layouts(self.plan)

    def kinds(self, layer: int) -> tuple[HeadKind, ...]:
        """The kinds of KV heads of a layer; in the dense model every row is a text row and there is one kind."""
        layout = self.layouts[layer]
        if layout is not None:
            kinds: tuple[HeadKind, ...] = layout.head_kinds
            return kinds
        sizes = self.sizes
        heads = tuple(range(sizes.num_attention_heads))
        return (HeadKind(0, tuple(range(sizes.num_key_value_heads)), heads, (True,) * len(heads)),)

    def projection(self, layer: int, part: str) -> Weight:
        """A projection's weight by its name in `families.Layer`; parts of a fused matrix by their rows."""
        return self._part(layer, part, "weight")

    def visual_part(self, layer: int, part: str) -> str:
        """The projection by which visual rows have their `query`, `key` or `value`: one of their own where they have it."""
        visual = f"{VISUAL}{part}"
        return visual if self.projection(layer, visual).name in self.tensors else part

    def bias(self, layer: int, part: str) -> Weight | None:
        """Its bias, None where it has none."""
        weight = self._part(layer, part, "bias")
        return weight if weight.name in self.tensors else None

    def norm(self, layer: int, name: str) -> Weight:
        return Weight(f"{self.family.text_prefix}layers.{layer}.{name}.weight")

    def head_norm(self, layer: int, part: str) -> Weight | None:
        """The norm of each `query` or `key` head before it is turned, None where there is none."""
        weight = self.norm(layer, HEAD_NORMS[part])
        return weight if weight.name in self.tensors else None

    @property
    def final_norm(self) -> Weight:
        return Weight(f"{self.family.text_prefix}norm.weight")

    @property
    def embedding(self) -> Weight:
        return Weight(f"{self.family.text_prefix}embed_tokens.weight")

    @property
    def head(self) -> Weight:
        """The output head; a tied one is the embedding."""
        return Weight("lm_head.weight") if "lm_head.weight" in self.tensors else self.embedding

    def _part(self, layer: int, part: str, ending: str) -> Weight:
        names = self.family.layer
        module = {**PARTS, "kv": INNER}[part.removeprefix(VISUAL)] if part.startswith(VISUAL) else getattr(names, part)
        name = f"{self.family.text_prefix}layers.{layer}.{module}.{ending}"
        if list(vars(names).values()).count(module) < 2:
            return Weight(name)
        rows = names.rows(part, self.sizes)
        return Weight(name, rows.start, rows.stop)


def text_model(checkpoint: Checkpoint, plan: Plan | None) -> TextModel:
    """The language model of a checkpoint. Raises YopoError for what the exported decoder cannot do."""
    model_class: Any = getattr(transformers, checkpoint.family.architecture)
    config = model_class.config_class.from_dict(native_config(checkpoint.family, checkpoint.config))
    text = config.get_text_config()
    if text.hidden_act not in ACTIVATIONS:
        raise YopoError(f"The activation {text.hidden_act} is not supported in exports.", f"Supported: {', '.join(ACTIVATIONS)}.")
    return TextModel(
        checkpoint.family,
        checkpoint.sizes,
        None if plan is None else normalise(plan),
        text.rms_norm_eps,
        text.vocab_size,
        _rotary(model_class, config),
        frozenset(checkpoint.stored),
        tuple(token for name in ("image_token_id", "video_token_id") if (token := getattr(config, name, None)) is not None),
        _several(text.eos_token_id),
        int(getattr(config.vision_config, "spatial_merge_size", 1)),
        len(getattr(config.vision_config, "deepstack_visual_indexes", ())),
    )


def _several(token: Any) -> tuple[int, ...]:
    return () if token is None else tuple(token) if isinstance(token, list | tuple) else (int(token),)


def _rotary(model_class: Any, config: Any) -> Rotary:
    """Frequencies as transformers' own module of this model has them."""
    text = config.get_text_config()
    with torch.device("meta"):
        kind = type(model_class._from_config(config).get_decoder().rotary_emb)
    module = kind(text)
    parameters = text.rope_parameters or {}
    changing = parameters.get("rope_type", "default") not in STATIC_ROPE
    limit = parameters.get("original_max_position_embeddings", text.max_position_embeddings) if changing else text.max_position_embeddings
    sections = tuple(parameters.get("mrope_section", ()))
    interleaved = bool(parameters.get("mrope_interleaved", False))
    return Rotary(tuple(module.inv_freq.tolist()), float(module.attention_scaling), sections, int(limit), interleaved)
