"""Idefics3 under a plan: tiles of one grid each; Llama as language model."""

from typing import Any

from transformers.models.idefics3.configuration_idefics3 import Idefics3Config
from transformers.models.idefics3.modeling_idefics3 import (
    Idefics3Connector,
    Idefics3ForConditionalGeneration,
    Idefics3Model,
    Idefics3PreTrainedModel,
    Idefics3VisionTransformer,
)
from transformers.models.llama.modeling_llama import LlamaModel

from .dense_side import DenseSide
from .matmul import Head
from .shuffled_tiles import ShuffledTiles
from .text_model import SparseTextModel
from .visual_places import for_the_tower


class YopoIdefics3Config(Idefics3Config):
    """Idefics3's config with the section `yopo`: the plan and where it comes from."""

    model_type = "yopo_idefics3"
    yopo: dict[str, Any] | None = None


class YopoIdefics3LlamaModel(SparseTextModel, LlamaModel):
    """Llama (SmolLM2, Llama 3), whose visual tokens obey a plan."""


class YopoIdefics3Model(ShuffledTiles, Idefics3Model):
    """Idefics3 without its head."""

    config: YopoIdefics3Config

    def __init__(self, config: YopoIdefics3Config) -> None:
        Idefics3PreTrainedModel.__init__(self, config)
        self.padding_idx, self.vocab_size = config.text_config.pad_token_id, config.text_config.vocab_size
        self.vision_model = Idefics3VisionTransformer._from_config(config.vision_config)
        self.connector = Idefics3Connector(config)
        self.text_model = YopoIdefics3LlamaModel(config.text_config)
        self.text_model.bind(config.yopo or {})
        vision = config.vision_config
        self.image_seq_len = (vision.image_size // vision.patch_size) ** 2 // config.scale_factor**2
        self.image_token_id = config.image_token_id
        self.post_init()

    get_image_features = for_the_tower(Idefics3Model.get_image_features)


class YopoIdefics3ForConditionalGeneration(DenseSide, Idefics3ForConditionalGeneration):
    """Idefics3 that really skips the visual work its plan leaves out, inside transformers' own `generate()`."""

    config: YopoIdefics3Config
    projector = "model.connector.modality_projection"
    _can_compile_fullgraph = False

    def __init__(self, config: YopoIdefics3Config) -> None:
        Idefics3PreTrainedModel.__init__(self, config)
        self.model = YopoIdefics3Model(config)
        self.image_token_id, self.vocab_size = config.image_token_id, config.text_config.vocab_size
        self.lm_head = Head(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.keep_base_projector()
        self.post_init()


YopoIdefics3Config.register_for_auto_class("AutoConfig")
YopoIdefics3ForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
