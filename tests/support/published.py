"""Tiny complete checkpoints of every family and layout: weights in three shards, tokenizer, processor and chat template."""

import json
from collections.abc import Callable
from pathlib import Path

from support.checkpoints import save_model
from support.layouts import internvl, internvl_chat, llava_llama, llava_next, qwen2_5_vl, qwen2_vl, qwen3_vl, smolvlm
from support.tiny_families import RESOLUTIONS
from support.tokenizers_of import save_tokenizer, save_words

SPECIAL = {0: "<pad>", 1: "<s>", 2: "</s>"}
TURNS = (
    "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE"
    "{% elif part['type'] == 'video' %}VIDEO{% else %} {{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}w7{% endif %}"
)
NORMAL = {"do_rescale": True, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "do_convert_rgb": True}


def save_llava(folder: Path) -> None:
    save_model(folder, shards=3)
    save_words(folder, SPECIAL | {63: "<image>"}, {"image_token": "<image>"})
    pictures = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    words = {"patch_size": 4, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default", "image_token": "<image>"}
    write(folder, {"processor_class": "LlavaProcessor", "image_processor": pictures | NORMAL, **words}, "<image>")


def save_liuhaotian(folder: Path) -> None:
    folder.mkdir()
    llava_llama.save(folder)
    for part in (folder / "base").iterdir():
        part.rename(folder / part.name)
    words = ["▁", *"helo", "he", "ll", "llo", "hello", "▁hello", *(f"▁w{index}" for index in range(16)), "w"]
    save_tokenizer(folder, words, llava_llama.VOCABULARY, {})


def save_qwen(folder: Path, kind: str = "Qwen2VL") -> None:
    {"Qwen2VL": qwen2_vl, "Qwen2_5_VL": qwen2_5_vl, "Qwen3VL": qwen3_vl}[kind].save(folder, "hub", tied=True)
    special = {60: "<|vision_start|>", 61: "<|vision_end|>", 62: "<|image_pad|>", 63: "<|video_pad|>"}
    save_words(folder, SPECIAL | special, {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"})
    pictures = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 256, "max_pixels": 4096, **NORMAL}
    words = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": f"{kind}Processor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(words | pictures))
    framed = TURNS.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    (folder / "chat_template.jinja").write_text(framed.replace("VIDEO", "<|vision_start|><|video_pad|><|vision_end|>"))


def save_qwen2_5(folder: Path) -> None:
    save_qwen(folder, "Qwen2_5_VL")


def save_qwen3(folder: Path) -> None:
    save_qwen(folder, "Qwen3VL")


def save_internvl(folder: Path, text: str = "qwen2") -> None:
    internvl.save(folder, "hub", text)
    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"}
    save_words(folder, SPECIAL | {60: "<img>", 61: "</img>", 62: "<IMG_CONTEXT>", 63: "<video>"}, named)
    square = {"size": {"height": 32, "width": 32}, **NORMAL}
    pictures = {"image_processor_type": "GotOcr2ImageProcessor", "crop_to_patches": True, "min_patches": 1, "max_patches": 4, **square}
    videos = {"video_processor_type": "InternVLVideoProcessor", **square}
    words = {"processor_class": "InternVLProcessor", "image_seq_length": 16, "image_processor": pictures, "video_processor": videos}
    write(folder, words, "<IMG_CONTEXT>")


def save_chat(folder: Path, text: str = "internlm2") -> None:
    internvl_chat.save(folder, text, internvl_chat.SMALL)


def save_chat_phi3(folder: Path) -> None:
    save_chat(folder, "phi3")


def save_chat_qwen3(folder: Path) -> None:
    save_chat(folder, "qwen3")


def save_next(folder: Path, text: str = "llama") -> None:
    onevision = text == "qwen2"
    llava_next.save(folder, "hub", text)
    named = {"image_token": "<image>"} | ({"video_token": "<video>"} if onevision else {})
    save_words(folder, SPECIAL | {62: "<image>"} | ({63: "<video>"} if onevision else {}), named)
    square, resolutions = {"height": 16, "width": 16}, {"image_grid_pinpoints": RESOLUTIONS + ([[48, 48]] if onevision else [])}
    if onevision:
        pictures = {"image_processor_type": "LlavaOnevisionImageProcessor", "size": square}
        words = {"processor_class": "LlavaOnevisionProcessor", "num_image_tokens": 16, "vision_aspect_ratio": "anyres_max_4"}
    else:
        pictures = {"image_processor_type": "LlavaNextImageProcessor", "size": {"shortest_edge": 16}, "crop_size": square}
        words = {"processor_class": "LlavaNextProcessor", "patch_size": 4, "num_additional_image_tokens": 1}
    words |= {"vision_feature_select_strategy": "full" if onevision else "default"}
    write(folder, {**words, "image_processor": pictures | resolutions | NORMAL}, "<image>")


def save_onevision(folder: Path) -> None:
    save_next(folder, "qwen2")


def save_idefics3(folder: Path, kind: str = "idefics3") -> None:
    smolvlm.save(folder, kind)
    special = {60: "<fake_token_around_image>", 61: "<global-img>", 62: "<image>", 63: "<end_of_utterance>"}
    save_words(folder, SPECIAL | special, {"image_token": "<image>"})
    sides = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}, "do_image_splitting": True, "do_pad": True}
    names = ("SmolVLMImageProcessor", "SmolVLMProcessor") if kind == "smolvlm" else ("Idefics3ImageProcessor", "Idefics3Processor")
    words = {"processor_class": names[1], "image_seq_len": 16}
    write(folder, {**words, "image_processor": {"image_processor_type": names[0], **sides, **NORMAL}}, "<image>")


def save_smolvlm(folder: Path) -> None:
    save_idefics3(folder, "smolvlm")


def write(folder: Path, processor: dict[str, object], placeholder: str) -> None:
    (folder / "processor_config.json").write_text(json.dumps(processor))
    (folder / "chat_template.jinja").write_text(TURNS.replace("IMAGE", placeholder).replace("VIDEO", "<video>"))


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "llava-hf": save_llava,
    "liuhaotian": save_liuhaotian,
    "Qwen2-VL": save_qwen,
    "Qwen2.5-VL": save_qwen2_5,
    "Qwen3-VL": save_qwen3,
    "InternVL native": save_internvl,
    "InternVL2, InternLM2": save_chat,
    "InternVL2, Phi-3": save_chat_phi3,
    "InternVL3.5, Qwen3": save_chat_qwen3,
    "LLaVA-NeXT": save_next,
    "LLaVA-OneVision": save_onevision,
    "Idefics3": save_idefics3,
}
