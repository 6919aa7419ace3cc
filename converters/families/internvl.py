"""InternVL as transformers has it (2.5, 3 and 3.5, `-hf`): InternViT, tiles of 448 pixels with 16 x 16 visual tokens each.

The language model is Llama (InternLM2), Qwen2, Qwen3 or Phi-3; the last has its projections fused.
"""

from dataclasses import replace
from typing import Any

from ..runtime.plan import Grid, Sizes
from .family import Config, Family, Layer, parsed, renaming, stated_sizes, text_sizes

SEPARATE = ("llama", "qwen2", "qwen3")
FUSED = Layer("self_attn.qkv_proj", "self_attn.qkv_proj", "self_attn.qkv_proj", gate="mlp.gate_up_proj", up="mlp.gate_up_proj")


def _text_type(config: Config) -> Any:
    """The language model's type; transformers takes Qwen2 where a config does not say it."""
    return (config.get("text_config") or {}).get("model_type", "qwen2") if config.get("model_type") == "internvl" else None


def _sizes(config: Config) -> Sizes:
    return stated_sizes(config.get("text_config") or {}) or text_sizes(parsed(config).text_config)


def _grid(config: Config) -> Grid:
    """One tile's grid."""
    vision, ratio = config.get("vision_config") or {}, config.get("downsample_ratio")
    image, patch = vision.get("image_size"), vision.get("patch_size")
    if not (isinstance(image, list) and isinstance(patch, list) and isinstance(ratio, float)):
        known = parsed(config)
        image, patch, ratio = known.vision_config.image_size, known.vision_config.patch_size, known.downsample_ratio
    return Grid(*(int(size // side * ratio) for size, side in zip(image, patch, strict=True)))


def _image_token(config: Config) -> int:
    return int(parsed(config).image_token_id)


INTERNVL = Family(
    name="InternVL",
    model_type="internvl",
    architecture="InternVLForConditionalGeneration",
    yopo_model_type="yopo_internvl",
    yopo_architecture="YopoInternVLForConditionalGeneration",
    yopo_config="YopoInternVLConfig",
    recognises=lambda config: _text_type(config) in SEPARATE,
    # The module names, then the Hub's layout.
    renamings=(
        renaming(r"(?:model\.)?language_model\.(?:model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq$", None),
        renaming(r"(?:language_model\.)?lm_head\.", "lm_head."),
        renaming(r"model\.language_model\.(?!model\.|lm_head\.)", "model.language_model."),
        renaming(r"language_model\.model\.", "model.language_model."),
        renaming(r"(?:model\.)?vision_tower\.", "model.vision_tower."),
        renaming(r"(?:model\.)?multi_modal_projector\.", "model.multi_modal_projector."),
    ),
    sizes=_sizes,
    grid=_grid,
    image_token=_image_token,
    packages=(("genai", "phi3v"),),
)

INTERNVL_PHI3 = replace(INTERNVL, recognises=lambda config: _text_type(config) == "phi3", layer=FUSED)
