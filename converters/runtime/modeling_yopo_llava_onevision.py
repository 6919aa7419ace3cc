"""LLaVA-OneVision under a plan: pictures of any resolution, several pictures, videos; Qwen2 as language model."""

from typing import Any

import torch
from torch import nn
from transformers import AutoModel
from transformers.models.llava_onevision.configuration_llava_onevision import LlavaOnevisionConfig
from transformers.models.llava_onevision.modeling_llava_onevision import (
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionModel,
    LlavaOnevisionMultiModalProjector,
    LlavaOnevisionPreTrainedModel,
)
from transformers.models.qwen2.modeling_qwen2 import Qwen2Model

from .any_resolution import AnyResolution
from .dense_side import DenseSide
from .matmul import Head
from .text_model import SparseTextModel
from .visual_places import for_the_tower


class YopoLlavaOnevisionConfig(LlavaOnevisionConfig):
    """LLaVA-OneVision's config with the section `yopo`: the plan and where it comes from."""

    model_type = "yopo_llava_onevision"
    yopo: dict[str, Any] | None = None


class YopoOnevisionQwen2Model(SparseTextModel, Qwen2Model):
    """Qwen2, whose visual tokens obey a plan."""


class YopoLlavaOnevisionModel(AnyResolution, LlavaOnevisionModel):
    """LLaVA-OneVision without its head."""

    config: YopoLlavaOnevisionConfig

    def __init__(self, config: YopoLlavaOnevisionConfig) -> None:
        LlavaOnevisionPreTrainedModel.__init__(self, config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = LlavaOnevisionMultiModalProjector(config)
        self.image_newline = nn.Parameter(torch.empty(config.text_config.hidden_size))
        self.vocab_size = config.text_config.vocab_size
        self.language_model = YopoOnevisionQwen2Model(config.text_config)
        self.language_model.bind(config.yopo or {})
        self.post_init()

    get_image_features = for_the_tower(LlavaOnevisionModel.get_image_features)
    get_video_features = for_the_tower(LlavaOnevisionModel.get_video_features)


class YopoLlavaOnevisionForConditionalGeneration(DenseSide, LlavaOnevisionForConditionalGeneration):
    """LLaVA-OneVision that really skips the visual work its plan leaves out, inside transformers' own `generate()`."""

    config: YopoLlavaOnevisionConfig
    _can_compile_fullgraph = False

    def __init__(self, config: YopoLlavaOnevisionConfig) -> None:
        LlavaOnevisionPreTrainedModel.__init__(self, config)
        self.model = YopoLlavaOnevisionModel(config)
        self.lm_head = Head(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.keep_base_projector()
        self.post_init()


YopoLlavaOnevisionConfig.register_for_auto_class("AutoConfig")
YopoLlavaOnevisionForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
