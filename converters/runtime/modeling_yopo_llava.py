"""LLaVA-1.5 under a plan. Loads with `AutoModelForImageTextToText.from_pretrained(..., trust_remote_code=True)`."""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, LlavaConfig, LlavaForConditionalGeneration, LlavaModel
from transformers.models.llama.modeling_llama import LlamaModel
from transformers.models.llava.modeling_llava import LlavaModelOutputWithPast, LlavaMultiModalProjector, LlavaPreTrainedModel

from .dense_side import DenseSide
from .matmul import Head
from .outputs import CACHE, output_of
from .plan import Grid
from .switch import is_off
from .text_model import SparseTextModel
from .token_split import Image, images_of_one_grid
from .visual_places import for_the_tower, visual_places

PICTURE_ARGUMENTS = ("vision_feature_layer", "vision_feature_select_strategy", "image_sizes")


class YopoLlavaConfig(LlavaConfig):
    """LLaVA's config with the section `yopo`: the plan and where it comes from."""

    model_type = "yopo_llava"
    yopo: dict[str, Any] | None = None


class YopoLlamaModel(SparseTextModel, LlamaModel):
    """Llama whose visual tokens obey a plan."""


class YopoLlavaModel(LlavaModel):
    """LLaVA without its head. Marks the visual tokens for the language model."""

    config: YopoLlavaConfig

    def __init__(self, config: YopoLlavaConfig) -> None:
        LlavaPreTrainedModel.__init__(self, config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = LlavaMultiModalProjector(config)
        self.language_model = YopoLlamaModel(config.text_config)
        self.language_model.bind(config.yopo or {})
        self.post_init()

    get_image_features = for_the_tower(LlavaModel.get_image_features)

    def forward(self, input_ids: Tensor | None = None, visual_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """`visual_mask` `[batch, length]` marks the visual tokens of `inputs_embeds` that have their features in place."""
        if is_off(self.language_model):
            return super().forward(input_ids, **kwargs)
        visual = visual_places(self, (self.config.image_token_id,), input_ids, visual_mask, kwargs)
        if input_ids is None or visual is None or visual_mask is not None:
            return super().forward(input_ids, visual_mask=visual, images=self.images, **kwargs)
        return self._apart(input_ids, visual, **kwargs)

    def _apart(
        self, input_ids: Tensor, visual: Tensor, pixel_values: Tensor | None = None, mm_encoder_outputs: Any = None, **kwargs: Any
    ) -> LlavaModelOutputWithPast:
        """Words and pictures go to the language model apart, which would only take them apart again."""
        pictures = (mm_encoder_outputs or {}).get("image")
        asked = {name: kwargs.pop(name) for name in PICTURE_ARGUMENTS if name in kwargs}
        if pictures is None:
            pictures = self.get_image_features(pixel_values=pixel_values, return_dict=True, **asked)
        weight = self.get_input_embeddings().weight
        features = torch.cat(tuple(pictures.pooler_output)).to(weight.device, weight.dtype)
        self.get_placeholder_mask(input_ids, features[None], features[None])  # as many as there are places for, or an error
        outputs = self.language_model(input_ids=input_ids, features=features, visual_mask=visual, images=self.images, **kwargs)
        return output_of(
            LlavaModelOutputWithPast,
            getattr(outputs, CACHE),
            last_hidden_state=outputs.last_hidden_state,
            image_hidden_states=features,
            image_outputs=pictures,
        )

    def images(self, visual: Tensor, positions: Tensor | None, rows: Tensor, videos: Tensor | None = None) -> tuple[Image, ...]:
        """The images of a call, from its visual tokens `[batch, length]`: all have the grid of the vision tower."""
        side = self.config.vision_config.image_size // self.config.vision_config.patch_size
        return images_of_one_grid(visual.sum(1).tolist(), Grid(side, side))


class YopoLlavaForConditionalGeneration(DenseSide, LlavaForConditionalGeneration):
    """LLaVA-1.5 that really skips the visual work its plan leaves out, inside transformers' own `generate()`."""

    config: YopoLlavaConfig
    _can_compile_fullgraph = False

    def __init__(self, config: YopoLlavaConfig) -> None:
        LlavaPreTrainedModel.__init__(self, config)
        self.model = YopoLlavaModel(config)
        self.lm_head = Head(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.keep_base_projector()
        self.post_init()


YopoLlavaConfig.register_for_auto_class("AutoConfig")
YopoLlavaForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
