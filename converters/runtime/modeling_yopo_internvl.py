"""InternVL under a plan: tiles of one grid each; Llama, Qwen2, Qwen3 or Phi-3 as language model."""

from typing import Any

from torch import Tensor
from transformers import AutoModel
from transformers.models.internvl.configuration_internvl import InternVLConfig
from transformers.models.internvl.modeling_internvl import (
    InternVLForConditionalGeneration,
    InternVLModel,
    InternVLMultiModalProjector,
    InternVLPreTrainedModel,
)
from transformers.models.llama.modeling_llama import LlamaModel
from transformers.models.phi3.modeling_phi3 import Phi3Model
from transformers.models.qwen2.modeling_qwen2 import Qwen2Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3Model

from .dense_side import DenseSide
from .layer_parts import Projections
from .matmul import Head
from .plan import Grid
from .projection import part, projection
from .switch import is_off
from .text_model import SparseTextModel
from .token_split import Image, images_of_one_grid
from .visual_places import for_the_tower, visual_places


class YopoInternVLConfig(InternVLConfig):
    """InternVL's config with the section `yopo`: the plan and where it comes from."""

    model_type = "yopo_internvl"
    yopo: dict[str, Any] | None = None


class YopoInternVLLlamaModel(SparseTextModel, LlamaModel):
    """Llama (InternLM2, InternLM2.5), whose visual tokens obey a plan."""


class YopoInternVLQwen2Model(SparseTextModel, Qwen2Model):
    """Qwen2, whose visual tokens obey a plan."""


class YopoInternVLQwen3Model(SparseTextModel, Qwen3Model):
    """Qwen3, whose visual tokens obey a plan."""


class YopoInternVLPhi3Model(SparseTextModel, Phi3Model):
    """Phi-3, whose q, k and v are one matrix, and gate and up another."""

    @staticmethod
    def projections(layer: Any) -> Projections:
        """The fused matrices by their parts."""
        attention, ffn, config = layer.self_attn, layer.mlp, layer.mlp.config
        query = config.num_attention_heads * attention.head_dim
        key = query + config.num_key_value_heads * attention.head_dim
        value = key + config.num_key_value_heads * attention.head_dim
        all_three, both = projection(attention.qkv_proj), projection(ffn.gate_up_proj)
        return Projections(
            part(all_three, 0, query),
            part(all_three, query, key),
            part(all_three, key, value),
            projection(attention.o_proj),
            part(both, 0, config.intermediate_size),
            part(both, config.intermediate_size, 2 * config.intermediate_size),
            projection(ffn.down_proj),
            ffn.activation_fn,
        )


TEXT_MODELS = {
    "llama": YopoInternVLLlamaModel,
    "qwen2": YopoInternVLQwen2Model,
    "qwen3": YopoInternVLQwen3Model,
    "phi3": YopoInternVLPhi3Model,
}


class YopoInternVLModel(InternVLModel):
    """InternVL without its head. Marks the visual tokens for the language model."""

    config: YopoInternVLConfig

    def __init__(self, config: YopoInternVLConfig) -> None:
        InternVLPreTrainedModel.__init__(self, config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = InternVLMultiModalProjector(config)
        self.language_model = TEXT_MODELS[config.text_config.model_type](config.text_config)
        self.language_model.bind(config.yopo or {})
        self.post_init()

    get_image_features = for_the_tower(InternVLModel.get_image_features)

    def forward(self, input_ids: Tensor | None = None, visual_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """`visual_mask` `[batch, length]` marks the visual tokens of `inputs_embeds` that have their features in place."""
        if is_off(self.language_model):
            return super().forward(input_ids, **kwargs)
        visual = visual_places(self, (self.config.image_token_id,), input_ids, visual_mask, kwargs)
        return super().forward(input_ids, visual_mask=visual, images=self.images, **kwargs)

    def images(self, visual: Tensor, positions: Tensor | None, rows: Tensor, videos: Tensor | None = None) -> tuple[Image, ...]:
        """The tiles of a call, thumbnails included: each is an image of its own, since their arrangement is not known here."""
        vision = self.config.vision_config
        sides = (
            int(size // patch * self.config.downsample_ratio) for size, patch in zip(vision.image_size, vision.patch_size, strict=True)
        )
        return images_of_one_grid(visual.sum(1).tolist(), Grid(*sides))


class YopoInternVLForConditionalGeneration(DenseSide, InternVLForConditionalGeneration):
    """InternVL that really skips the visual work its plan leaves out, inside transformers' own `generate()`."""

    config: YopoInternVLConfig
    _can_compile_fullgraph = False

    def __init__(self, config: YopoInternVLConfig) -> None:
        InternVLPreTrainedModel.__init__(self, config)
        self.model = YopoInternVLModel(config)
        self.lm_head = Head(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.keep_base_projector()
        self.post_init()


YopoInternVLConfig.register_for_auto_class("AutoConfig")
YopoInternVLForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
