"""Qwen2-VL under a plan: any grid per image, videos, multimodal RoPE, grouped KV heads."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import (
    Qwen2VisionTransformerPretrainedModel,
    Qwen2VLForConditionalGeneration,
    Qwen2VLModel,
    Qwen2VLPreTrainedModel,
    Qwen2VLTextModel,
)

from .dense_side import DenseSide
from .plan import from_json, normalise
from .streams import Image, images_of_runs
from .text_model import Rotary, SparseTextModel


class YopoQwen2VLConfig(Qwen2VLConfig):
    """Qwen2-VL's config with the section `yopo`: the plan and where it comes from."""

    model_type = "yopo_qwen2_vl"
    yopo: dict[str, Any] | None = None


class YopoQwen2VLTextModel(SparseTextModel, Qwen2VLTextModel):
    """Qwen2-VL's language model, whose visual tokens obey a plan."""

    def rotary(self, rows: Tensor, positions: Tensor | None, seen: int) -> Rotary:
        """Positions are `[batch, length]`, `[3, batch, length]` (t, h, w) or `[4, batch, length]` (text, t, h, w)."""
        if positions is None:
            positions = torch.arange(seen, seen + rows.shape[1], device=rows.device)[None]
        positions = positions[None].expand(3, -1, -1) if positions.dim() == 2 else positions[-3:]
        cosine, sine = self.rotary_emb(rows, positions)
        return cosine, sine


class YopoQwen2VLModel(Qwen2VLModel):
    """Qwen2-VL without its head. Marks the visual tokens for the language model."""

    config: YopoQwen2VLConfig

    def __init__(self, config: YopoQwen2VLConfig) -> None:
        Qwen2VLPreTrainedModel.__init__(self, config)
        self.visual = Qwen2VisionTransformerPretrainedModel._from_config(config.vision_config)
        self.language_model = YopoQwen2VLTextModel._from_config(config.text_config)
        self.language_model.bind(normalise(from_json((config.yopo or {}).get("plan"))))
        self.rope_deltas = None
        self.post_init()

    def forward(self, input_ids: Tensor | None = None, **kwargs: Any) -> Any:
        given = ("pixel_values", "pixel_values_videos")
        pictures = any(kwargs.get(name) is not None for name in given) or bool(kwargs.get("mm_encoder_outputs"))
        if pictures and input_ids is None:
            raise ValueError("Pictures need input_ids: inputs_embeds alone do not tell which tokens are visual.")
        visual = None
        if pictures and input_ids is not None:
            visual = (input_ids == self.config.image_token_id) | (input_ids == self.config.video_token_id)
        return super().forward(input_ids, visual_mask=visual, images=self.images, **kwargs)

    def images(self, visual: Tensor, positions: Tensor | None) -> tuple[Image, ...]:
        """The images and videos of a call: inside `generate()` only the positions tell their grids."""
        if positions is None or positions.dim() != 3:
            raise ValueError("Qwen2-VL's pictures need multimodal positions: pass mm_token_type_ids and image_grid_thw.")
        return images_of_runs(visual, positions)

    # What is meant for the language model does not reach the vision tower. `generate()` reads the parameters' names.
    def get_image_features(self, pixel_values: Tensor, image_grid_thw: Tensor | None = None, **kwargs: Any) -> Any:
        return super().get_image_features(pixel_values, image_grid_thw, **_for_the_tower(kwargs))

    def get_video_features(self, pixel_values_videos: Tensor, video_grid_thw: Tensor | None = None, **kwargs: Any) -> Any:
        return super().get_video_features(pixel_values_videos, video_grid_thw, **_for_the_tower(kwargs))


def _for_the_tower(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name not in ("visual_mask", "images")}


class YopoQwen2VLForConditionalGeneration(DenseSide, Qwen2VLForConditionalGeneration):
    """Qwen2-VL that really skips the visual work its plan leaves out, inside transformers' own `generate()`."""

    config: YopoQwen2VLConfig
    projector = "model.visual.merger.mlp"
    _can_compile_fullgraph = False

    def __init__(self, config: YopoQwen2VLConfig) -> None:
        Qwen2VLPreTrainedModel.__init__(self, config)
        self.model = YopoQwen2VLModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.keep_base_projector()
        self.post_init()


YopoQwen2VLConfig.register_for_auto_class("AutoConfig")
YopoQwen2VLForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
