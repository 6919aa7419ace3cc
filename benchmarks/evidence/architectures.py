"""The untrained models: their configs, tokenizers and processor files, each in the layout in which its family is published."""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from converters.data.demo import harder
from converters.data.demo.shapes import CANVAS_SIZE
from tools.demo.architecture import CHAT_TEMPLATE, IMAGE_MEAN, IMAGE_STD, PATCH_SIZE, build_config, build_processor, build_tokenizer

LANGUAGE = {"hidden_size": 128, "intermediate_size": 352, "num_attention_heads": 8, "rms_norm_eps": 1e-6, "max_position_embeddings": 2048}
LAYERS = 8
KV_HEADS = 4  # two heads share one key and value
SEEING_LAYERS = 3  # of the weak-tower model, before the demo's own
QWEN_TOKENS = {
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
}
QWEN_THETA, QWEN_SECTIONS = 100.0, [2, 2, 4]  # pictures are 8 to 12 tokens wide: at the usual 10^6 their columns would not differ
INTERNVL_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
TILE = CANVAS_SIZE // 2
NEXT_TILE = CANVAS_SIZE // 3
NEXT_RESOLUTIONS = [[2 * NEXT_TILE] * 2, [3 * NEXT_TILE] * 2]
# The part of the demo's tower that LLaVA reads.
VISION = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 8, "num_hidden_layers": 4}
MERGED = 1  # patches on a side of a visual token; published models merge 2x2, but so towers can start from the demo's
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Untrained:
    """A model of random weights, its tokenizer, and how its processor's files are written into a folder."""

    model: Any
    tokenizer: PreTrainedTokenizerFast
    files: dict[str, dict[str, Any]]
    template: str
    image_processor: Any


def _tokens(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {"vocab_size": len(tokenizer)} | {name: getattr(tokenizer, name) for name in names}


def qwen2_vl() -> Untrained:
    """A vision transformer of four blocks for pictures of any size, one visual token a patch; M-RoPE and grouped KV heads."""
    tokenizer = build_tokenizer(special=tuple(QWEN_TOKENS.values()), named=QWEN_TOKENS)
    names = {f"{name}_id": tokenizer.convert_tokens_to_ids(QWEN_TOKENS[name]) for name in ("image_token", "video_token")}
    names |= {f"{name}_token_id": tokenizer.convert_tokens_to_ids(QWEN_TOKENS[name]) for name in ("vision_start", "vision_end")}
    rope = {"rope_type": "default", "rope_theta": QWEN_THETA, "mrope_section": QWEN_SECTIONS}
    text = {**LANGUAGE, **_tokens(tokenizer), "num_hidden_layers": LAYERS, "num_key_value_heads": KV_HEADS, "rope_parameters": rope}
    vision = {"depth": VISION["num_hidden_layers"], "embed_dim": VISION["hidden_size"], "num_heads": VISION["num_attention_heads"]}
    vision |= {"mlp_ratio": VISION["intermediate_size"] // VISION["hidden_size"], "hidden_size": LANGUAGE["hidden_size"]}
    vision |= {"patch_size": PATCH_SIZE, "temporal_patch_size": 2, "spatial_merge_size": MERGED, "in_channels": 3}
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **names, tie_word_embeddings=False))
    pictures = Qwen2VLImageProcessorPil(
        patch_size=PATCH_SIZE, merge_size=MERGED, temporal_patch_size=2, min_pixels=32 * 32, max_pixels=512 * 512,
        image_mean=list(IMAGE_MEAN), image_std=list(IMAGE_STD),
    )  # fmt: skip
    words = {"preprocessor_config.json": {**_settings(pictures), "processor_class": "Qwen2VLProcessor"}}
    return Untrained(model, tokenizer, words, _template("<|vision_start|><|image_pad|><|vision_end|>"), pictures)


def internvl() -> Untrained:
    """A vision transformer for tiles of 48 pixels, one visual token a patch; a Llama with grouped KV heads."""
    tokenizer = build_tokenizer(special=tuple(INTERNVL_TOKENS.values()), named=INTERNVL_TOKENS)
    text = {"model_type": "llama", **LANGUAGE, **_tokens(tokenizer), "num_hidden_layers": LAYERS, "num_key_value_heads": KV_HEADS}
    vision = {**VISION, "image_size": [TILE, TILE], "patch_size": [PATCH_SIZE, PATCH_SIZE], "attention_bias": True}
    vision |= {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "layer_scale_init_value": 1.0}
    tokens = (TILE // PATCH_SIZE // MERGED) ** 2
    config = InternVLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids(INTERNVL_TOKENS["context_image_token"]),
        image_seq_length=tokens,
        downsample_ratio=1 / MERGED,
        tie_word_embeddings=False,
    )
    pictures = GotOcr2ImageProcessorPil(
        size={"height": TILE, "width": TILE}, crop_to_patches=True, min_patches=1, max_patches=12,
        image_mean=list(IMAGENET_MEAN), image_std=list(IMAGENET_STD),
    )  # fmt: skip
    frames = {name: value for name, value in _settings(pictures).items() if name not in ("image_processor_type", "crop_to_patches")}
    words = {"processor_class": "InternVLProcessor", "image_seq_length": tokens, "image_processor": _settings(pictures)}
    words |= {"video_processor": {"video_processor_type": "InternVLVideoProcessor", **frames}}
    return Untrained(
        InternVLForConditionalGeneration(config), tokenizer, {"processor_config.json": words}, _template("<IMG_CONTEXT>\n"), pictures
    )


def llava_next() -> Untrained:
    """The demo's tower for tiles of 32 pixels, of which a picture has two or three in a row and a column, some of it padding."""
    processor = build_processor()
    demo = build_config(processor.tokenizer).to_dict()
    config = LlavaNextConfig(
        text_config=demo["text_config"],
        vision_config=demo["vision_config"] | {"image_size": NEXT_TILE},
        image_token_index=demo["image_token_index"],
        image_grid_pinpoints=NEXT_RESOLUTIONS,
        projector_hidden_act=demo["projector_hidden_act"],
    )
    pictures = LlavaNextImageProcessorPil(
        size={"shortest_edge": NEXT_TILE}, crop_size={"height": NEXT_TILE, "width": NEXT_TILE}, image_grid_pinpoints=NEXT_RESOLUTIONS,
        image_mean=list(IMAGE_MEAN), image_std=list(IMAGE_STD),
    )  # fmt: skip
    words = {"processor_class": "LlavaNextProcessor", "patch_size": PATCH_SIZE, "num_additional_image_tokens": 1}
    words |= {"vision_feature_select_strategy": "default", "image_processor": _settings(pictures)}
    model = LlavaNextForConditionalGeneration(config)
    return Untrained(model, processor.tokenizer, {"processor_config.json": words}, CHAT_TEMPLATE, pictures)


def weak_tower() -> Untrained:
    """The demo with a vision tower that only embeds its patches, and four layers more in the language model."""
    processor = build_processor()
    config = build_config(processor.tokenizer)
    config.vision_config.num_hidden_layers = 1  # LLaVA reads the last layer but one: what goes into this one
    config.text_config.num_hidden_layers = LAYERS + SEEING_LAYERS
    return _llava(config, processor)


def larger_vocabulary() -> Untrained:
    """The demo with the words of the harder questions."""
    processor = build_processor(harder.vocabulary())
    return _llava(build_config(processor.tokenizer), processor)


def _llava(config: LlavaConfig, processor: Any) -> Untrained:
    config = LlavaConfig.from_dict(config.to_dict())
    assert isinstance(config.vision_config, CLIPVisionConfig)
    assert isinstance(config.text_config, LlamaConfig)
    words = {"processor_config.json": json.loads(processor.to_json_string())}
    return Untrained(LlavaForConditionalGeneration(config), processor.tokenizer, words, CHAT_TEMPLATE, processor.image_processor)


def _template(picture: str) -> str:
    return CHAT_TEMPLATE.replace("<image>\n", picture.replace("\n", "\\n"))


def _settings(image_processor: Any) -> dict[str, Any]:
    return dict(json.loads(image_processor.to_json_string()))


ARCHITECTURES = {
    "qwen2-vl": qwen2_vl,
    "weak-tower": weak_tower,
    "harder": larger_vocabulary,
    "internvl": internvl,
    "llava-next": llava_next,
}


def save(untrained: Untrained, folder: Path) -> None:
    """Write a complete Hugging Face folder with bfloat16 weights; the model in memory stays as it is."""
    tokenizer = untrained.tokenizer
    model = copy.deepcopy(untrained.model).to(torch.bfloat16)
    tokens = {name: value for name, value in _tokens(tokenizer).items() if name != "vocab_size"}
    model.generation_config = GenerationConfig(**tokens, max_new_tokens=16, do_sample=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name, words in untrained.files.items():
        (folder / name).write_text(json.dumps(words, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(untrained.template)
