"""Qwen2-VL: a vision tower of any resolution, one visual token for 28 x 28 pixels, multimodal RoPE, grouped KV heads; videos."""

from typing import Any

from ..runtime.plan import Grid, Sizes
from .family import Config, Family, renaming, text_sizes

# The model has no resolution of its own: costs without a calibration set are those of a picture of this size.
DEFAULT_HEIGHT, DEFAULT_WIDTH = 768, 1024


def _recognises(config: Config) -> bool:
    return config.get("model_type") == "qwen2_vl"


def _parsed(config: Config) -> Any:
    """The config as transformers understands it: the Hub's is flat, that of transformers 5 has a text_config."""
    from transformers import Qwen2VLConfig

    return Qwen2VLConfig.from_dict(dict(config))


def _sizes(config: Config) -> Sizes:
    return text_sizes(_parsed(config).text_config)


def _grid(config: Config) -> Grid:
    vision = _parsed(config).vision_config
    side = vision.patch_size * vision.spatial_merge_size
    return Grid(round(DEFAULT_HEIGHT / side), round(DEFAULT_WIDTH / side))


def _image_token(config: Config) -> int:
    return int(_parsed(config).image_token_id)


QWEN2_VL = Family(
    name="Qwen2-VL",
    model_type="qwen2_vl",
    architecture="Qwen2VLForConditionalGeneration",
    yopo_model_type="yopo_qwen2_vl",
    yopo_architecture="YopoQwen2VLForConditionalGeneration",
    yopo_config="YopoQwen2VLConfig",
    recognises=_recognises,
    # The module names, then the Hub's layout, which has the language model at the root.
    renamings=(
        renaming(r"(?:model\.)?visual\.rotary_pos_emb\.inv_freq$", None),
        renaming(r"model\.(?:language_model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq$", None),
        renaming(r"model\.language_model\.", "model.language_model."),
        renaming(r"(?:model\.)?visual\.", "model.visual."),
        renaming(r"model\.(?=embed_tokens\.|layers\.|norm\.)", "model.language_model."),
        renaming(r"lm_head\.", "lm_head."),
    ),
    sizes=_sizes,
    grid=_grid,
    image_token=_image_token,
)
