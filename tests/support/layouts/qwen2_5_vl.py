"""Tiny Qwen2.5-VL checkpoints in the layouts of the Hub and of transformers."""

from pathlib import Path
from typing import Any

from support.checkpoints import config_of, write_checkpoint
from support.tiny_families import PATCHES, TEXT, TOWERS, tiny_qwen

ARCHITECTURE = {"architectures": ["Qwen2_5_VLForConditionalGeneration"]}


def hub_name(name: str) -> str:
    """The published layout: the language model at the root."""
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def hub_config(tied: bool) -> dict[str, Any]:
    """The published form: flat, with the old words."""
    return ARCHITECTURE | {
        **TEXT, "model_type": "qwen2_5_vl", "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}, "rope_theta": 10000.0,
        "tie_word_embeddings": tied, "torch_dtype": "float32", "sliding_window": 32768, "use_sliding_window": False, "max_window_layers": 2,
        "vision_config": {"depth": 2, "num_heads": 2, "in_chans": 3, **PATCHES, **TOWERS["qwen2_5_vl"]},
        "image_token_id": 62, "video_token_id": 63, "vision_start_token_id": 60, "vision_end_token_id": 61,
    }  # fmt: skip


def save(folder: Path, layout: str, tied: bool) -> Any:
    """A tiny model in three shards; a tied head is not in the files."""
    model = tiny_qwen(tied=tied, kind="qwen2_5_vl")
    rename = hub_name if layout == "hub" else str
    tensors = {rename(name): tensor.clone() for name, tensor in model.state_dict().items() if not (tied and name == "lm_head.weight")}
    write_checkpoint(folder, hub_config(tied) if layout == "hub" else config_of(model.config) | ARCHITECTURE, tensors, 3)
    return model
