"""LLaVA-1.5 as liuhaotian publishes it (`llava_llama`): no placeholder in its vocabulary, and the vision tower another repository's."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import YopoError
from ..json_files import read_object
from ..runtime.plan import Grid, Sizes
from .family import Config, Folders, Grown, Renaming, renaming, splitting
from .llava import LLAVA
from .tokens import add, llama_tokenizer, naming, write_processor

# As the llava-hf repositories have it: two more tokens, and a vocabulary of whole blocks.
NEW_TOKENS = ("<image>", "<pad>")
VOCABULARY_BLOCK = 64
PROJECTOR = "mlp2x_gelu"
FEATURES = {"patch": "default", "cls_patch": "full"}
TEXT_WORDS = (
    "bos_token_id", "eos_token_id", "hidden_act", "hidden_size", "initializer_range", "intermediate_size", "max_position_embeddings",
    "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "pad_token_id", "rms_norm_eps", "rope_scaling", "rope_theta",
)  # fmt: skip
CLIP_MEAN, CLIP_STD, BICUBIC = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), 3
# Vicuna's words, from llava/conversation.py.
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}" + SYSTEM + "{{ ' ' }}{% endif %}{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{{ eos_token if message['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
TOWER_NAME = re.compile(r"patch(?P<patch>\d+)(?:-(?P<size>\d+))?$")
CLIP_SIZE = 224


def _recognises(config: Config) -> bool:
    return "mm_vision_tower" in config and "LlavaLlamaForCausalLM" in (config.get("architectures") or ["LlavaLlamaForCausalLM"])


def _native(config: Config, folders: Folders) -> Mapping[str, Any]:
    """The config of native LLaVA. Raises YopoError for variants that it has not."""
    _check(config)
    assert folders.tower is not None
    tower = read_object(folders.tower / "config.json", "Fetch it again.")
    vision = tower.get("vision_config", tower) | {"model_type": "clip_vision_model"}
    strategy = FEATURES[config.get("mm_vision_select_feature", "patch")]
    tokens = (vision["image_size"] // vision["patch_size"]) ** 2 + (strategy == "full")
    return {
        "model_type": LLAVA.model_type,
        "architectures": [LLAVA.architecture],
        "text_config": _text(config),
        "vision_config": vision,
        "image_token_index": _image_token(config),
        "image_seq_length": tokens,
        "pad_token_id": config["vocab_size"] + NEW_TOKENS.index("<pad>"),
        "projector_hidden_act": "gelu",
        "vision_feature_layer": config["mm_vision_select_layer"],
        "vision_feature_select_strategy": strategy,
        "tie_word_embeddings": False,
        **({"torch_dtype": config["torch_dtype"]} if "torch_dtype" in config else {}),
    }


def _check(config: Config) -> None:
    kind, aspect = config.get("mm_projector_type", "linear"), config.get("image_aspect_ratio", "square")
    if kind != PROJECTOR:
        raise YopoError(f"mm_projector_type is {kind}, not {PROJECTOR}.", "Only LLaVA-1.5 can be converted from this layout.")
    if "anyres" in aspect:
        raise YopoError(f"image_aspect_ratio is {aspect}: this is a later LLaVA.", "Only LLaVA-1.5 can be converted from this layout.")
    if config.get("mm_use_im_start_end"):
        raise YopoError("mm_use_im_start_end is set: pictures are framed by tokens.", "Only LLaVA-1.5 can be converted from this layout.")


def _text(config: Config) -> dict[str, Any]:
    words = {word: config[word] for word in TEXT_WORDS if config.get(word) is not None}
    return words | {"model_type": "llama", "vocab_size": _rows(config), "tie_word_embeddings": False}


def _rows(config: Config) -> int:
    """Rows of the grown vocabulary."""
    return -(-(int(config["vocab_size"]) + len(NEW_TOKENS)) // VOCABULARY_BLOCK) * VOCABULARY_BLOCK


def _image_token(config: Config) -> int:
    return int(config["vocab_size"]) + NEW_TOKENS.index("<image>")


def _sizes(config: Config) -> Sizes:
    return LLAVA.sizes({"model_type": LLAVA.model_type, "text_config": _text(config)})


def _grid(config: Config) -> Grid:
    """The tower's grid, which the name tells without fetching it: clip-vit-large-patch14-336 has 24 x 24."""
    if (match := TOWER_NAME.search(config["mm_vision_tower"])) is None:
        raise YopoError(f"The grid of the vision tower {config['mm_vision_tower']} is unknown.", "Its name should end like -patch14-336.")
    side = int(match["size"] or CLIP_SIZE) // int(match["patch"])
    return Grid(side, side)


def _splits(config: Config) -> tuple[Renaming, ...]:
    grown = Grown(_rows(config))
    return (
        splitting(r"model\.embed_tokens\.weight$", ("model.language_model.embed_tokens.weight", grown)),
        splitting(r"lm_head\.weight$", ("lm_head.weight", grown)),
    )


def _adapt(config: Config, folders: Folders, output: Path) -> None:
    """The tokenizer with two more tokens, pictures padded to a square of CLIP's mean colour, Vicuna's chat template."""
    assert folders.tower is not None
    tokenizer = llama_tokenizer(folders.model, prefix_space=True)
    add(tokenizer, {config["vocab_size"] + place: {"content": token} for place, token in enumerate(NEW_TOKENS)})
    tokenizer.pad_token = "<pad>"
    words = {name: config[name] for name in ("bos_token_id", "eos_token_id") if name in config}
    generation = words | {"pad_token_id": config["vocab_size"] + NEW_TOKENS.index("<pad>")}
    write_processor(output, naming(tokenizer, {"image_token": "<image>"}), _processor(config, folders), TEMPLATE, generation)


def _processor(config: Config, folders: Folders) -> dict[str, Any]:
    native = _native(config, folders)
    side = native["vision_config"]["image_size"]
    square = {"height": side, "width": side}
    return {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "patch_size": native["vision_config"]["patch_size"],
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": native["vision_feature_select_strategy"],
        "image_processor": {
            "image_processor_type": "LlavaImageProcessor", "do_pad": config.get("image_aspect_ratio") == "pad",
            "size": {"shortest_edge": side}, "crop_size": square, "resample": BICUBIC, "image_mean": CLIP_MEAN, "image_std": CLIP_STD,
            "do_resize": True, "do_center_crop": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True,
        },
    }  # fmt: skip


LLAVA_LLAMA = replace(
    LLAVA,
    recognises=_recognises,
    # The language model and projector, the tower inside (where it was tuned), and the tower's own repository, a whole CLIP.
    renamings=(
        renaming(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq$", None),
        renaming(r"(?:model\.vision_tower\.vision_tower\.)?vision_model\.embeddings\.position_ids$", None),
        renaming(r"model\.image_newline$", None),
        renaming(r"(?:text_model|text_projection|visual_projection)\.|logit_scale$", None),
        renaming(r"(?:model\.vision_tower\.vision_tower\.)?vision_model\.", "model.vision_tower."),
        renaming(r"model\.mm_projector\.0\.", "model.multi_modal_projector.linear_1."),
        renaming(r"model\.mm_projector\.2\.", "model.multi_modal_projector.linear_2."),
        renaming(r"model\.(?=layers\.|norm\.)", "model.language_model."),
    ),
    splits=_splits,
    native=_native,
    adapt=_adapt,
    tower=lambda config: str(config["mm_vision_tower"]),
    sizes=_sizes,
    grid=_grid,
    image_token=_image_token,
)
