"""LLaVA-1.5: CLIP vision tower, two-layer projector, Llama language model; 24 x 24 visual tokens at 336 pixels."""

from ..runtime.plan import Grid, Sizes
from .family import Config, Family, parsed, renaming, stated_sizes, text_sizes

# What config.json leaves out, as the Hub's of LLaVA-1.5-7B does: the defaults of transformers' LlamaConfig.
LLAMA_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}


def _recognises(config: Config) -> bool:
    return config.get("model_type") == "llava" and "vision_config" in config


def _sizes(config: Config) -> Sizes:
    text = config.get("text_config") or {}
    if text.get("model_type") == "llama":
        text = LLAMA_7B | {"num_key_value_heads": text.get("num_attention_heads", 32)} | text
    return stated_sizes(text) or text_sizes(parsed(config).text_config)


def _grid(config: Config) -> Grid:
    vision = config["vision_config"]
    image, patch = vision.get("image_size"), vision.get("patch_size")
    if not isinstance(image, int) or not isinstance(patch, int):
        known = parsed(config).vision_config
        image, patch = known.image_size, known.patch_size
    return Grid(image // patch, image // patch)


def _image_token(config: Config) -> int:
    return int(parsed(config).image_token_id)


LLAVA = Family(
    name="LLaVA-1.5",
    model_type="llava",
    architecture="LlavaForConditionalGeneration",
    yopo_model_type="yopo_llava",
    yopo_architecture="YopoLlavaForConditionalGeneration",
    yopo_config="YopoLlavaConfig",
    recognises=_recognises,
    # The Hub's layout, the one without `vision_model.` that transformers 5 saves, and the module names.
    renamings=(
        renaming(r"(?:model\.)?language_model\.(?:model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq$", None),
        renaming(r"(?:model\.)?vision_tower\.(?:vision_model\.)?embeddings\.position_ids$", None),
        renaming(r"(?:model\.)?image_newline$", None),
        renaming(r"(?:language_model\.)?lm_head\.", "lm_head."),
        renaming(r"model\.language_model\.(?!model\.|lm_head\.)", "model.language_model."),
        renaming(r"language_model\.model\.", "model.language_model."),
        renaming(r"(?:model\.)?vision_tower\.(?:vision_model\.)?", "model.vision_tower."),
        renaming(r"(?:model\.)?multi_modal_projector\.", "model.multi_modal_projector."),
    ),
    sizes=_sizes,
    grid=_grid,
    image_token=_image_token,
    packages=(("genai", "phi3v"), ("transformers-js", "llava")),
)
