"""Qwen2-VL under a plan: any grid per image, videos, multimodal RoPE, grouped KV heads."""

from typing import Any

from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import (
    Qwen2VisionTransformerPretrainedModel,
    Qwen2VLForConditionalGeneration,
    Qwen2VLModel,
    Qwen2VLPreTrainedModel,
    Qwen2VLTextModel,
)

from .dense_side import DenseSide
from .matmul import Head
from .mrope import AnyGrid, MultimodalRotary
from .text_model import SparseTextModel
from .visual_places import for_the_tower


class YopoQwen2VLConfig(Qwen2VLConfig):
    """Qwen2-VL's config with the section `yopo`: the plan and where it comes from."""

    model_type = "yopo_qwen2_vl"
    yopo: dict[str, Any] | None = None


class YopoQwen2VLTextModel(MultimodalRotary, SparseTextModel, Qwen2VLTextModel):
    """Qwen2-VL's language model, whose visual tokens obey a plan."""


class YopoQwen2VLModel(AnyGrid, Qwen2VLModel):
    """Qwen2-VL without its head."""

    config: YopoQwen2VLConfig

    def __init__(self, config: YopoQwen2VLConfig) -> None:
        Qwen2VLPreTrainedModel.__init__(self, config)
        self.visual = Qwen2VisionTransformerPretrainedModel._from_config(config.vision_config)
        self.language_model = YopoQwen2VLTextModel._from_config(config.text_config)
        self.language_model.bind(config.yopo or {})
        self.rope_deltas = None
        self.post_init()

    get_image_features = for_the_tower(Qwen2VLModel.get_image_features)
    get_video_features = for_the_tower(Qwen2VLModel.get_video_features)


class YopoQwen2VLForConditionalGeneration(DenseSide, Qwen2VLForConditionalGeneration):
    """Qwen2-VL that really skips the visual work its plan leaves out, inside transformers' own `generate()`."""

    config: YopoQwen2VLConfig
    projector = "model.visual.merger.mlp"
    _can_compile_fullgraph = False

    def __init__(self, config: YopoQwen2VLConfig) -> None:
        Qwen2VLPreTrainedModel.__init__(self, config)
        self.model = YopoQwen2VLModel(config)
        self.lm_head = Head(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.keep_base_projector()
        self.post_init()


YopoQwen2VLConfig.register_for_auto_class("AutoConfig")
YopoQwen2VLForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
