"""Tiny checkpoints in liuhaotian's layout: pickled shards, the vision tower in a folder of its own."""

import json
from pathlib import Path
from typing import Any

import torch

from support.checkpoints import write_checkpoint
from support.tiny import tiny_llava
from support.tokenizers_of import save_tokenizer

VOCABULARY = 63  # of 64 rows: one below the placeholder's id
WORDS = ["▁", "h", "e", "l", "o", "he", "ll", "llo", "hello", "▁hello"]
PUBLISHED = {
    "architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava", "hidden_size": 4096, "intermediate_size": 11008,
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "vocab_size": 32000, "rope_scaling": None,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2,
}  # fmt: skip


def published_config(tower: Path) -> dict[str, Any]:
    return PUBLISHED | {
        "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 4,
        "vocab_size": VOCABULARY, "max_position_embeddings": 512, "mm_vision_tower": str(tower), "mm_vision_select_feature": "patch",
        "image_aspect_ratio": "pad", "rms_norm_eps": 1e-6, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip


def published_name(name: str) -> str:
    for new, old in (
        ("model.language_model.", "model."),
        ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
        ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
        ("model.vision_tower.", "vision_model."),
        ("lm_head.", "lm_head."),
    ):
        if name.startswith(new):
            return old + name.removeprefix(new)
    raise AssertionError(name)


def save(folder: Path, inside: bool = False) -> Any:
    """Model and tower in folders beside each other; with `inside`, a tuned tower in the model's own files too."""
    model, config = tiny_llava()
    model = grown(model)
    tensors = {published_name(name): tensor.clone() for name, tensor in model.state_dict().items()}
    tower = {name: tensor for name, tensor in tensors.items() if name.startswith("vision_model.")}
    own = {name: tensor for name, tensor in tensors.items() if name not in tower}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        own[name] = own[name][:VOCABULARY].clone()
    own["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    if inside:
        own |= {f"model.vision_tower.vision_tower.{name}": tensor for name, tensor in tower.items()}
        tower = {name: tensor + 1 for name, tensor in tower.items()}
    tower |= {
        "logit_scale": torch.ones([]),
        "text_model.final_layer_norm.weight": torch.ones(4),
        "visual_projection.weight": torch.ones(4, 4),
    }
    tower["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    clip = {"model_type": "clip", "vision_config": json.loads(config.vision_config.to_json_string())}
    write_checkpoint(folder / "tower-patch4-16", clip, tower, binary=True)
    write_checkpoint(folder / "base", published_config(folder / "tower-patch4-16"), own, 3, binary=True)
    save_tokenizer(folder / "base", WORDS, VOCABULARY, {})
    return model


def grown(model: Any) -> Any:
    """The rows of tokens that the published vocabulary has not are the mean of the others; it has 128 rows, whole blocks of 64."""
    for layer in (model.model.language_model.embed_tokens, model.lm_head):
        kept = layer.weight.data[:VOCABULARY]
        layer.weight.data = torch.cat([kept, kept.mean(0, keepdim=True).expand(128 - VOCABULARY, -1)])
    return model
