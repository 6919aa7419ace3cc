"""Qwen2.5-VL under a plan: Qwen2-VL's language model; the windows of the vision tower are its own and stay."""

from typing import Any

from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLModel,
    Qwen2_5_VLPreTrainedModel,
    Qwen2_5_VLTextModel,
)

from .dense_side import DenseSide
from .matmul import Head
from .mrope import AnyGrid, MultimodalRotary
from .text_model import SparseTextModel
from .visual_places import for_the_tower


class YopoQwen25VLConfig(Qwen2_5_VLConfig):
    """Qwen2.5-VL's config with the section `yopo`: the plan and where it comes from."""

    model_type = "yopo_qwen2_5_vl"
    yopo: dict[str, Any] | None = None


class YopoQwen25VLTextModel(MultimodalRotary, SparseTextModel, Qwen2_5_VLTextModel):
    """Qwen2.5-VL's language model, whose visual tokens obey a plan."""


class YopoQwen25VLModel(AnyGrid, Qwen2_5_VLModel):
    """Qwen2.5-VL without its head."""

    config: YopoQwen25VLConfig

    def __init__(self, config: YopoQwen25VLConfig) -> None:
        Qwen2_5_VLPreTrainedModel.__init__(self, config)
        self.visual = Qwen2_5_VisionTransformerPretrainedModel._from_config(config.vision_config)
        self.language_model = YopoQwen25VLTextModel._from_config(config.text_config)
        self.language_model.bind(config.yopo or {})
        self.rope_deltas = None
        self.post_init()

    get_image_features = for_the_tower(Qwen2_5_VLModel.get_image_features)
    get_video_features = for_the_tower(Qwen2_5_VLModel.get_video_features)


class YopoQwen25VLForConditionalGeneration(DenseSide, Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL that really skips the visual work its plan leaves out, inside transformers' own `generate()`."""

    config: YopoQwen25VLConfig
    projector = "model.visual.merger.mlp"
    _can_compile_fullgraph = False

    def __init__(self, config: YopoQwen25VLConfig) -> None:
        Qwen2_5_VLPreTrainedModel.__init__(self, config)
        self.model = YopoQwen25VLModel(config)
        self.lm_head = Head(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.keep_base_projector()
        self.post_init()


YopoQwen25VLConfig.register_for_auto_class("AutoConfig")
YopoQwen25VLForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
