"""InternVL2, 3 and 3.5 as OpenGVLab publishes them (`internvl_chat`): remote code, which transformers 5
cannot run, of the same model as native InternVL.

Its config, its tensors (fused q, k and v in the vision tower and in InternLM2) and its tokens are put in transformers' words; the remote
code in such a folder, which transformers 5 cannot run, is never run.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import YopoError
from ..runtime.plan import Grid, Sizes
from .family import Config, Folders, Renaming, RowRange, renaming, splitting
from .internvl import INTERNVL, INTERNVL_PHI3
from .tokens import fast_tokenizer, llama_tokenizer, naming, qwen_tokenizer, token_id, write_processor

IMAGE_TOKEN = "<IMG_CONTEXT>"
TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": IMAGE_TOKEN,
    "video_token": "<video>",
}
IMAGENET_MEAN, IMAGENET_STD, BICUBIC = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 3
# Language models by the words of `llm_config`, and of transformers.
TEXT_TYPES = {"internlm2": "llama", "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "phi3": "phi3"}
TEXT_WORDS = (
    "attention_bias", "attention_dropout", "bos_token_id", "eos_token_id", "head_dim", "hidden_act", "hidden_size", "initializer_range",
    "intermediate_size", "max_position_embeddings", "max_window_layers", "num_attention_heads", "num_hidden_layers",
    "num_key_value_heads", "pad_token_id", "rms_norm_eps", "rope_scaling", "rope_theta", "sliding_window", "use_sliding_window",
    "vocab_size",
)  # fmt: skip
VISION_WORDS = {
    "attention_dropout": "attention_dropout",
    "dropout": "hidden_dropout_prob",
    "hidden_act": "hidden_act",
    "hidden_size": "hidden_size",
    "image_size": "image_size",
    "initializer_range": "initializer_range",
    "intermediate_size": "intermediate_size",
    "layer_norm_eps": "layer_norm_eps",
    "norm_type": "norm_type",
    "num_attention_heads": "num_attention_heads",
    "num_channels": "num_channels",
    "num_hidden_layers": "num_hidden_layers",
    "patch_size": "patch_size",
    "qk_normalization": "use_qk_norm",
    "qkv_bias": "attention_bias",
}


def _is_chat(config: Config, *text_types: str) -> bool:
    return config.get("model_type") == "internvl_chat" and config.get("llm_config", {}).get("model_type") in text_types


def _native(config: Config, folders: Folders) -> Mapping[str, Any]:
    """The config of native InternVL; the placeholder's id is the tokenizer's."""
    return _without_tokens(config) | {"image_token_id": token_id(folders.model, IMAGE_TOKEN)}


def _without_tokens(config: Config) -> dict[str, Any]:
    """All of it that config.json alone tells. Raises YopoError for variants that native InternVL has not."""
    if (version := config.get("ps_version", "v1")) != "v2":
        raise YopoError(
            f"ps_version is {version}: this order of visual tokens is not native InternVL's.", "Models from InternVL 1.5 on have v2."
        )
    vision = {new: config["vision_config"][old] for old, new in VISION_WORDS.items() if old in config["vision_config"]}
    if (size := config.get("force_image_size") or vision["image_size"]) != vision["image_size"]:
        raise YopoError(
            f"force_image_size is {size}, the vision tower's {vision['image_size']}.", "Use a checkpoint that was saved at one size."
        )
    side = vision["image_size"] // vision["patch_size"]
    native = {
        "text_config": _text(config["llm_config"]),
        "vision_config": vision
        | {"model_type": "internvl_vision", "use_mean_pooling": True}
        | {name: [vision[name]] * 2 for name in ("image_size", "patch_size")},
        "downsample_ratio": config["downsample_ratio"],
        "image_seq_length": int(side * config["downsample_ratio"]) ** 2,
        "vision_feature_layer": config["select_layer"],
        # transformers' default is True.
        "tie_word_embeddings": bool(config["llm_config"].get("tie_word_embeddings", False)),
    }
    dtype = {"torch_dtype": config["torch_dtype"]} if "torch_dtype" in config else {}
    return {"model_type": INTERNVL.model_type, "architectures": [INTERNVL.architecture], **native, **dtype}


def _text(config: Config) -> dict[str, Any]:
    text = {word: config[word] for word in TEXT_WORDS if word in config}
    text["model_type"] = TEXT_TYPES[config["model_type"]]
    text["tie_word_embeddings"] = bool(config.get("tie_word_embeddings", False))
    if config["model_type"] == "internlm2":
        text["attention_bias"] = config.get("bias", False)
    if config["model_type"] == "phi3":
        text |= _phi3(config)
    return text


def _phi3(config: Config) -> dict[str, Any]:
    """Phi-3's window is longer than its positions; what it calls `su` is now `longrope`, with the length before it was stretched."""
    window, positions = config.get("sliding_window"), config["max_position_embeddings"]
    if window is not None and window < positions:
        raise YopoError(f"A sliding window of {window} tokens is not supported.", f"It must be at least as long as {positions} positions.")
    scaling = config.get("rope_scaling")
    if scaling is not None:
        original = {"type": "longrope", "original_max_position_embeddings": config["original_max_position_embeddings"]}
        scaling = dict(scaling) | original | {"rope_type": "longrope"}
    original_length = {"original_max_position_embeddings": config.get("original_max_position_embeddings", positions)}
    return {"sliding_window": None, "rope_scaling": scaling, **original_length}


@dataclass(frozen=True)
class Template:
    """A chat's words: how a turn begins (ROLE stands for who speaks) and ends, and what is said first unless a system message is."""

    begin: str
    end: str
    system: str

    @property
    def jinja(self) -> str:
        words = {"begin": self.begin, "end": self.end, "system": self.system}
        return "".join(f"{{% set {name} = {json.dumps(text, ensure_ascii=False)} %}}" for name, text in words.items()) + JINJA


JINJA = (
    "{% if messages[0]['role'] != 'system' %}{{ begin | replace('ROLE', 'system') + system + end }}{% endif %}"
    "{% for message in messages %}{{ begin | replace('ROLE', message['role']) }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\\n' }}{% elif part['type'] == 'video' %}{{ '<video>\\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ end }}{% endfor %}"
    "{% if add_generation_prompt %}{{ begin | replace('ROLE', 'assistant') }}{% endif %}"
)
# From conversation.py of OpenGVLab/InternVL. The first words say, in Chinese, what the model is and who made it.
_SYSTEM = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"  # noqa: RUF001
_SYSTEM_2_5 = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"  # noqa: RUF001
TEMPLATES = {
    "internlm2-chat": Template("<|im_start|>ROLE\n", "<|im_end|>", _SYSTEM),
    "Hermes-2": Template("<|im_start|>ROLE\n", "<|im_end|>", _SYSTEM),
    "phi3-chat": Template("<|ROLE|>\n", "<|end|>", _SYSTEM),
    "internvl2_5": Template("<|im_start|>ROLE\n", "<|im_end|>\n", _SYSTEM_2_5),
}


def _adapt(config: Config, folders: Folders, output: Path) -> None:
    """Tokenizer, tiles, chat template and what ends an answer. Raises YopoError for a template that is not known."""
    if (template := TEMPLATES.get(config.get("template", ""))) is None:
        raise YopoError(f"The chat template {config.get('template')!r} is not known.", f"Known: {', '.join(TEMPLATES)}.")
    tokenizer, llm = naming(_tokenizer(config, folders.model), TOKENS), config["llm_config"]
    ends = [tokenizer.convert_tokens_to_ids(template.end.strip()), llm["eos_token_id"]]
    # Qwen's configs have no padding, its tokenizers do.
    padding = llm.get("pad_token_id", config.get("pad_token_id", tokenizer.pad_token_id))
    generation = {"bos_token_id": llm["bos_token_id"], "eos_token_id": list(dict.fromkeys(ends)), "pad_token_id": padding}
    write_processor(output, tokenizer, _processor(config), template.jinja, generation)


def _tokenizer(config: Config, folder: Path) -> Any:
    if (folder / "tokenizer.json").exists():
        return fast_tokenizer(folder)
    if config["llm_config"]["model_type"] in ("qwen2", "qwen3"):
        return qwen_tokenizer(folder)
    # InternLM2's does not put a space before a text, Llama's does.
    return llama_tokenizer(folder, prefix_space=config["llm_config"]["model_type"] != "internlm2")


def _processor(config: Config) -> dict[str, Any]:
    size = config["vision_config"]["image_size"]
    pictures = {
        "size": {"height": size, "width": size}, "resample": BICUBIC, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD,
        "do_resize": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True,
    }  # fmt: skip
    tiles = {"min_patches": config.get("min_dynamic_patch", 1), "max_patches": config.get("max_dynamic_patch", 12)}
    cut = bool(config.get("dynamic_image_size", True))
    return {
        "processor_class": "InternVLProcessor",
        "image_seq_length": _without_tokens(config)["image_seq_length"],
        "image_processor": {"image_processor_type": "GotOcr2ImageProcessor", "crop_to_patches": cut, **tiles, **pictures},
        "video_processor": {"video_processor_type": "InternVLVideoProcessor", **pictures},
    }


def _sizes(config: Config) -> Sizes:
    return INTERNVL.sizes(_without_tokens(config))


def _grid(config: Config) -> Grid:
    return INTERNVL.grid(_without_tokens(config))


def _image_token(config: Config) -> int:
    raise YopoError(f"config.json does not tell the id of {IMAGE_TOKEN}.", "Convert the model first: yopo convert MODEL --budget 1")


def _splits(config: Config) -> tuple[Renaming, ...]:
    """q, k and v of the vision tower are equal thirds; InternLM2's come KV head by KV head: its query heads, its key, its value."""
    vision, text = r"model.vision_tower.encoder.layer.\1.attention.", r"model.language_model.layers.\1.self_attn."
    thirds = [(f"{vision}{name}_proj.", RowRange(1, 3, index, index + 1)) for index, name in enumerate("qkv")]
    splits = (splitting(r"vision_model\.encoder\.layers\.(\d+)\.attn\.qkv\.", *thirds),)
    if config["llm_config"]["model_type"] != "internlm2":
        return splits
    sizes = _sizes(config)
    group, groups = sizes.group, sizes.num_key_value_heads
    places = {"q": (0, group), "k": (group, group + 1), "v": (group + 1, group + 2)}
    parts = [(f"{text}{name}_proj.", RowRange(groups, group + 2, *place)) for name, place in places.items()]
    return (*splits, splitting(r"language_model\.model\.layers\.(\d+)\.attention\.wqkv\.", *parts))


_VISION = r"vision_model\.encoder\.layers\.(\d+)\."
_VISION_LAYER = r"model.vision_tower.encoder.layer.\1."
_TEXT = r"language_model\.model\.layers\.(\d+)\."
_TEXT_LAYER = r"model.language_model.layers.\1."
RENAMINGS = (
    renaming(r".*\.rotary_emb\.inv_freq$", None),
    renaming(r"vision_model\.embeddings\.class_embedding$", "model.vision_tower.embeddings.cls_token"),
    renaming(r"vision_model\.embeddings\.position_embedding$", "model.vision_tower.embeddings.position_embeddings"),
    renaming(r"vision_model\.embeddings\.patch_embedding\.", "model.vision_tower.embeddings.patch_embeddings.projection."),
    renaming(_VISION + r"attn\.proj\.", _VISION_LAYER + "attention.projection_layer."),
    renaming(_VISION + r"attn\.(q|k)_norm\.", _VISION_LAYER + r"attention.\2_norm."),
    renaming(_VISION + r"norm1\.", _VISION_LAYER + "layernorm_before."),
    renaming(_VISION + r"norm2\.", _VISION_LAYER + "layernorm_after."),
    renaming(_VISION + r"ls(1|2)$", _VISION_LAYER + r"lambda_\2"),
    renaming(_VISION + r"mlp\.", _VISION_LAYER + "mlp."),
    renaming(r"mlp1\.0\.", "model.multi_modal_projector.layer_norm."),
    renaming(r"mlp1\.1\.", "model.multi_modal_projector.linear_1."),
    renaming(r"mlp1\.3\.", "model.multi_modal_projector.linear_2."),
    # InternLM2's words; the other language models' are transformers' own.
    renaming(r"language_model\.model\.tok_embeddings\.", "model.language_model.embed_tokens."),
    renaming(r"language_model\.output\.", "lm_head."),
    renaming(_TEXT + r"attention\.wo\.", _TEXT_LAYER + "self_attn.o_proj."),
    renaming(_TEXT + r"feed_forward\.w1\.", _TEXT_LAYER + "mlp.gate_proj."),
    renaming(_TEXT + r"feed_forward\.w3\.", _TEXT_LAYER + "mlp.up_proj."),
    renaming(_TEXT + r"feed_forward\.w2\.", _TEXT_LAYER + "mlp.down_proj."),
    renaming(_TEXT + r"attention_norm\.", _TEXT_LAYER + "input_layernorm."),
    renaming(_TEXT + r"ffn_norm\.", _TEXT_LAYER + "post_attention_layernorm."),
    renaming(r"language_model\.lm_head\.", "lm_head."),
    renaming(r"language_model\.model\.", "model.language_model."),
)

INTERNVL_CHAT = replace(
    INTERNVL,
    name="InternVL chat",
    recognises=lambda config: _is_chat(config, "internlm2", "llama", "qwen2", "qwen3"),
    renamings=RENAMINGS,
    splits=_splits,
    native=_native,
    adapt=_adapt,
    sizes=_sizes,
    grid=_grid,
    image_token=_image_token,
)
INTERNVL_CHAT_PHI3 = replace(INTERNVL_CHAT, recognises=lambda config: _is_chat(config, "phi3"), layer=INTERNVL_PHI3.layer)
