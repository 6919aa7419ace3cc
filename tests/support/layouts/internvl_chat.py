"""Tiny InternVL2, 3 and 3.5 checkpoints as OpenGVLab publishes them."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from support.checkpoints import write_checkpoint
from support.tiny_families import IMAGE, TEXT, tiny_internvl
from support.tokenizers_of import save_tokenizer

SMALL = {"norm_type": "layer_norm", "qkv_bias": True, "qk_normalization": False}  # InternViT-300M
LARGE = {"norm_type": "rms_norm", "qkv_bias": False, "qk_normalization": True}  # InternViT-6B
FACTORS = {"short_factor": [1.0, 1.25, 1.5, 2.0], "long_factor": [1.0, 2.0, 4.0, 8.0]}
WORDS = ["▁", "h", "e", "l", "o", "he", "ll", "llo", "hello", "\n", "u", "s", "r", "user", "▁hello"]
TEMPLATES = {"phi3": "phi3-chat", "internlm2": "internlm2-chat"}
POSITIONS = 24  # prompts are longer, so that the long factors come in


def chat_config(text: str, tower: dict[str, Any]) -> dict[str, Any]:
    """The published form."""
    llm = {
        **TEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "model_type": text,
        "attn_implementation": "flash_attention_2",
        "use_cache": True,
    }
    if text == "internlm2":
        llm |= {"bias": False, "rope_scaling": {"factor": 2.0, "type": "dynamic"}}
    if text.startswith("qwen"):
        del llm["pad_token_id"]  # as published
    if text == "qwen3":
        llm |= {"head_dim": 16, "attention_bias": False, "sliding_window": None, "rope_scaling": None}
    if text == "phi3":
        llm |= {"num_key_value_heads": 8, "sliding_window": 262144, "original_max_position_embeddings": POSITIONS}
        llm |= {"rope_scaling": {"type": "su", **FACTORS}}
    vision = {
        "model_type": "intern_vit_6b", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 4, "num_channels": 3, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "use_flash_attn": True, **tower,
    }  # fmt: skip
    return {
        "model_type": "internvl_chat", "architectures": ["InternVLChatModel"], "auto_map": {"AutoModel": "modeling_internvl_chat.X"},
        "llm_config": llm, "vision_config": vision, "downsample_ratio": 0.5, "ps_version": "v2", "select_layer": -1,
        "force_image_size": 32, "template": TEMPLATES.get(text, "internvl2_5"), "torch_dtype": "float32",
    }  # fmt: skip


def in_native_words(text: str, tower: dict[str, Any]) -> Any:
    """The same model in transformers' words."""
    vision = {"norm_type": tower["norm_type"], "attention_bias": tower["qkv_bias"], "use_qk_norm": tower["qk_normalization"]}
    rope: dict[str, Any] = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}
    if text == "phi3":
        rope = {"rope_type": "longrope", "original_max_position_embeddings": POSITIONS, "rope_theta": 1e6, **FACTORS}
        options = {"original_max_position_embeddings": POSITIONS, "sliding_window": None}
    elif text.startswith("qwen"):
        rope, options = {"rope_type": "default", "rope_theta": 1e6}, {}
    else:
        options = {}
    return tiny_internvl({"internlm2": "llama"}.get(text, text), vision=vision, rms_norm_eps=1e-5, rope_parameters=rope, **options)


def in_chat_words(state: dict[str, Tensor], text: str) -> dict[str, Tensor]:
    """The inverse mapping, tensor by tensor: two KV heads with four query heads of eight rows each."""
    out, state = {}, dict(state)
    embeddings, projector = "model.vision_tower.embeddings.", "model.multi_modal_projector."
    out["vision_model.embeddings.class_embedding"] = state.pop(embeddings + "cls_token")
    out["vision_model.embeddings.position_embedding"] = state.pop(embeddings + "position_embeddings")
    for kind in ("weight", "bias"):
        out[f"vision_model.embeddings.patch_embedding.{kind}"] = state.pop(f"{embeddings}patch_embeddings.projection.{kind}")
        for number, name in ((0, "layer_norm"), (1, "linear_1"), (3, "linear_2")):
            out[f"mlp1.{number}.{kind}"] = state.pop(f"{projector}{name}.{kind}")
    for index in range(2):
        old, new = f"vision_model.encoder.layers.{index}.", f"model.vision_tower.encoder.layer.{index}."
        for kind in ("weight", "bias"):
            parts = [state.pop(f"{new}attention.{part}_proj.{kind}", None) for part in "qkv"]
            if parts[0] is not None:
                out[f"{old}attn.qkv.{kind}"] = torch.cat(parts)
        out[f"{old}ls1"], out[f"{old}ls2"] = state.pop(new + "lambda_1"), state.pop(new + "lambda_2")
        words = {"attention.projection_layer": "attn.proj", "attention.q_norm": "attn.q_norm", "attention.k_norm": "attn.k_norm"}
        words |= {"layernorm_before": "norm1", "layernorm_after": "norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
        for name in [name for name in state if name.startswith(new)]:
            module, _, kind = name.removeprefix(new).rpartition(".")
            out[f"{old}{words[module]}.{kind}"] = state.pop(name)
    if text != "internlm2":
        return out | {f"language_model.{name.replace('model.language_model.', 'model.')}": tensor for name, tensor in state.items()}
    out["language_model.output.weight"] = state.pop("lm_head.weight")
    out["language_model.model.tok_embeddings.weight"] = state.pop("model.language_model.embed_tokens.weight")
    out["language_model.model.norm.weight"] = state.pop("model.language_model.norm.weight")
    for index in range(3):
        old, new = f"language_model.model.layers.{index}.", f"model.language_model.layers.{index}."
        query, key, value = (state.pop(f"{new}self_attn.{part}_proj.weight") for part in "qkv")
        rows = [row for kv in range(2) for row in (query[32 * kv : 32 * kv + 32], key[8 * kv : 8 * kv + 8], value[8 * kv : 8 * kv + 8])]
        out[f"{old}attention.wqkv.weight"] = torch.cat(rows)
        out[f"{old}attention.wo.weight"] = state.pop(f"{new}self_attn.o_proj.weight")
        for number, name in ((1, "gate"), (3, "up"), (2, "down")):
            out[f"{old}feed_forward.w{number}.weight"] = state.pop(f"{new}mlp.{name}_proj.weight")
        out[f"{old}attention_norm.weight"] = state.pop(f"{new}input_layernorm.weight")
        out[f"{old}ffn_norm.weight"] = state.pop(f"{new}post_attention_layernorm.weight")
    assert not state
    return out


def save(folder: Path, text: str, tower: dict[str, Any]) -> Any:
    model = in_native_words(text, tower)
    tensors = {name: tensor.clone() for name, tensor in in_chat_words(model.state_dict(), text).items()}
    write_checkpoint(folder, chat_config(text, tower), tensors, 3)
    (folder / "tokenizer_config.json").unlink()
    save_tokenizer(folder, WORDS, 60, {58: "<|im_start|>", 59: "<|im_end|>", 60: "<img>", 61: "</img>", IMAGE: "<IMG_CONTEXT>"})
    if text.startswith("qwen"):
        (folder / "tokenizer.model").unlink()
        save_qwen_tokenizer(folder)
    (folder / "modeling_internvl_chat.py").write_text("raise RuntimeError('this is never run')")
    return model


def save_qwen_tokenizer(folder: Path) -> None:
    """A byte-level vocabulary and its merges; ids of the added tokens are in two files, as published."""
    added = {57: "<|endoftext|>", 58: "<|im_start|>", 59: "<|im_end|>", 60: "<img>", 61: "</img>", IMAGE: "<IMG_CONTEXT>"}
    (folder / "vocab.json").write_text(json.dumps({chr(33 + token): token for token in range(57)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "added_tokens.json").write_text(json.dumps({text: token for token, text in added.items()}))
    decoder = {str(token): {"content": text, "special": True, "normalized": False} for token, text in added.items()}
    named = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps({**named, "added_tokens_decoder": decoder}))
