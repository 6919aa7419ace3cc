"""Qwen3-VL under a plan: norms of query and key heads, and features that are added to visual tokens after the first layers."""

from typing import Any

from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLForConditionalGeneration,
    Qwen3VLModel,
    Qwen3VLPreTrainedModel,
    Qwen3VLTextModel,
    Qwen3VLVisionModel,
)

from .dense_side import DenseSide
from .matmul import Head
from .mrope import AnyGrid, MultimodalRotary
from .text_model import SparseTextModel
from .visual_places import for_the_tower


class YopoQwen3VLConfig(Qwen3VLConfig):
    """Qwen3-VL's config with the section `yopo`: the plan and where it comes from."""

    model_type = "yopo_qwen3_vl"
    yopo: dict[str, Any] | None = None


class YopoQwen3VLTextModel(MultimodalRotary, SparseTextModel, Qwen3VLTextModel):
    """Qwen3-VL's language model, whose visual tokens obey a plan."""


class YopoQwen3VLModel(AnyGrid, Qwen3VLModel):
    """Qwen3-VL without its head."""

    config: YopoQwen3VLConfig

    def __init__(self, config: YopoQwen3VLConfig) -> None:
        Qwen3VLPreTrainedModel.__init__(self, config)
        self.visual = Qwen3VLVisionModel._from_config(config.vision_config)
        self.language_model = YopoQwen3VLTextModel._from_config(config.text_config)
        self.language_model.bind(config.yopo or {})
        self.rope_deltas = None
        self.post_init()

    get_image_features = for_the_tower(Qwen3VLModel.get_image_features)
    get_video_features = for_the_tower(Qwen3VLModel.get_video_features)


class YopoQwen3VLForConditionalGeneration(DenseSide, Qwen3VLForConditionalGeneration):
    """Qwen3-VL that really skips the visual work its plan leaves out, inside transformers' own `generate()`."""

    config: YopoQwen3VLConfig
    projector = "model.visual.merger"
    _can_compile_fullgraph = False

    def __init__(self, config: YopoQwen3VLConfig) -> None:
        Qwen3VLPreTrainedModel.__init__(self, config)
        self.model = YopoQwen3VLModel(config)
        self.lm_head = Head(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.keep_base_projector()
        self.post_init()


YopoQwen3VLConfig.register_for_auto_class("AutoConfig")
YopoQwen3VLForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
