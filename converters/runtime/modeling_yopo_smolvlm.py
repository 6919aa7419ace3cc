"""SmolVLM, SmolVLM2 under a plan: tiles of one grid each; Llama as language model."""

from typing import Any

from transformers.models.llama.modeling_llama import LlamaModel
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMConfig
from transformers.models.smolvlm.modeling_smolvlm import (
    SmolVLMConnector,
    SmolVLMForConditionalGeneration,
    SmolVLMModel,
    SmolVLMPreTrainedModel,
    SmolVLMVisionTransformer,
)

from .dense_side import DenseSide
from .matmul import Head
from .shuffled_tiles import ShuffledTiles
from .text_model import SparseTextModel
from .visual_places import for_the_tower


class YopoSmolVLMConfig(SmolVLMConfig):
    """SmolVLM's config with the section `yopo`: the plan and where it comes from."""

    model_type = "yopo_smolvlm"
    yopo: dict[str, Any] | None = None


class YopoSmolVLMLlamaModel(SparseTextModel, LlamaModel):
    """Llama (SmolLM2, Llama 3), whose visual tokens obey a plan."""


class YopoSmolVLMModel(ShuffledTiles, SmolVLMModel):
    """SmolVLM without its head."""

    config: YopoSmolVLMConfig

    def __init__(self, config: YopoSmolVLMConfig) -> None:
        SmolVLMPreTrainedModel.__init__(self, config)
        self.padding_idx, self.vocab_size = config.text_config.pad_token_id, config.text_config.vocab_size
        self.vision_model = SmolVLMVisionTransformer._from_config(config.vision_config)
        self.connector = SmolVLMConnector(config)
        self.text_model = YopoSmolVLMLlamaModel(config.text_config)
        self.text_model.bind(config.yopo or {})
        vision = config.vision_config
        self.image_seq_len = (vision.image_size // vision.patch_size) ** 2 // config.scale_factor**2
        self.image_token_id = config.image_token_id
        self.post_init()

    get_image_features = for_the_tower(SmolVLMModel.get_image_features)


class YopoSmolVLMForConditionalGeneration(DenseSide, SmolVLMForConditionalGeneration):
    """SmolVLM that really skips the visual work its plan leaves out, inside transformers' own `generate()`."""

    config: YopoSmolVLMConfig
    projector = "model.connector.modality_projection"
    _can_compile_fullgraph = False

    def __init__(self, config: YopoSmolVLMConfig) -> None:
        SmolVLMPreTrainedModel.__init__(self, config)
        self.model = YopoSmolVLMModel(config)
        self.image_token_id, self.vocab_size = config.image_token_id, config.text_config.vocab_size
        self.lm_head = Head(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.keep_base_projector()
        self.post_init()


YopoSmolVLMConfig.register_for_auto_class("AutoConfig")
YopoSmolVLMForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
