"""LLaVA-NeXT under a plan: pictures of any resolution; Llama or Mistral as language model."""

from typing import Any

import torch
from torch import nn
from transformers import AutoModel
from transformers.models.llama.modeling_llama import LlamaModel
from transformers.models.llava_next.configuration_llava_next import LlavaNextConfig
from transformers.models.llava_next.modeling_llava_next import (
    LlavaNextForConditionalGeneration,
    LlavaNextModel,
    LlavaNextMultiModalProjector,
    LlavaNextPreTrainedModel,
)
from transformers.models.mistral.modeling_mistral import MistralModel

from .any_resolution import AnyResolution
from .dense_side import DenseSide
from .matmul import Head
from .text_model import SparseTextModel
from .visual_places import for_the_tower


class YopoLlavaNextConfig(LlavaNextConfig):
    """LLaVA-NeXT's config with the section `yopo`: the plan and where it comes from."""

    model_type = "yopo_llava_next"
    yopo: dict[str, Any] | None = None


class YopoNextLlamaModel(SparseTextModel, LlamaModel):
    """Llama (Vicuna, Llama 3), whose visual tokens obey a plan."""


class YopoNextMistralModel(SparseTextModel, MistralModel):
    """Mistral, whose visual tokens obey a plan."""


TEXT_MODELS = {"llama": YopoNextLlamaModel, "mistral": YopoNextMistralModel}


class YopoLlavaNextModel(AnyResolution, LlavaNextModel):
    """LLaVA-NeXT without its head."""

    config: YopoLlavaNextConfig

    def __init__(self, config: YopoLlavaNextConfig) -> None:
        LlavaNextPreTrainedModel.__init__(self, config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = LlavaNextMultiModalProjector(config)
        self.image_newline = nn.Parameter(torch.empty(config.text_config.hidden_size))
        self.vocab_size = config.text_config.vocab_size
        self.language_model = TEXT_MODELS[config.text_config.model_type](config.text_config)
        self.language_model.bind(config.yopo or {})
        self.post_init()

    get_image_features = for_the_tower(LlavaNextModel.get_image_features)


class YopoLlavaNextForConditionalGeneration(DenseSide, LlavaNextForConditionalGeneration):
    """LLaVA-NeXT that really skips the visual work its plan leaves out, inside transformers' own `generate()`."""

    config: YopoLlavaNextConfig
    _can_compile_fullgraph = False

    def __init__(self, config: YopoLlavaNextConfig) -> None:
        LlavaNextPreTrainedModel.__init__(self, config)
        self.model = YopoLlavaNextModel(config)
        self.lm_head = Head(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.keep_base_projector()
        self.post_init()


YopoLlavaNextConfig.register_for_auto_class("AutoConfig")
YopoLlavaNextForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
