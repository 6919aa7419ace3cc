"""OpenGVLab's layout: a native model written out in it by a plain inverse of the mapping becomes the native model again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import write_checkpoint
from support.conversions import assert_migrates, assert_prunes, assert_stands_alone, provenance
from support.tiny_families import IMAGE, TEXT, internvl_inputs, tiny_internvl
from support.tokenizers_of import save_tokenizer
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer

from converters.checkpoint.convert import convert
from converters.checkpoint.native import native_model
from converters.checkpoint.reader import open_checkpoint
from converters.errors import YopoError
from converters.families import family_of
from converters.families.family import Rows
from converters.runtime.plan import Grid, Sizes

TILES = [(1,), (3, 1), (0, 0)]
PROMPTS = [(internvl_inputs(*tiles), [[Grid(4, 4)] * count for count in tiles]) for tiles in TILES]
SMALL = {"norm_type": "layer_norm", "qkv_bias": True, "qk_normalization": False}  # InternViT-300M
LARGE = {"norm_type": "rms_norm", "qkv_bias": False, "qk_normalization": True}  # InternViT-6B
FACTORS = {"short_factor": [1.0, 1.25, 1.5, 2.0], "long_factor": [1.0, 2.0, 4.0, 8.0]}
WORDS = ["▁", "h", "e", "l", "o", "he", "ll", "llo", "hello", "\n", "u", "s", "r", "user", "▁hello"]
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
        "force_image_size": 32, "template": "phi3-chat" if text == "phi3" else "internlm2-chat", "torch_dtype": "float32",
    }  # fmt: skip


def in_native_words(text: str, tower: dict[str, Any]) -> Any:
    """The same model in transformers' words."""
    vision = {"norm_type": tower["norm_type"], "attention_bias": tower["qkv_bias"], "use_qk_norm": tower["qk_normalization"]}
    rope: dict[str, Any] = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}
    if text == "phi3":
        rope = {"rope_type": "longrope", "original_max_position_embeddings": POSITIONS, "rope_theta": 1e6, **FACTORS}
        options = {"original_max_position_embeddings": POSITIONS, "sliding_window": None}
    elif text == "qwen2":
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
    if text == "qwen2":  # a byte-level vocabulary of its own
        (folder / "tokenizer.model").unlink()
        (folder / "vocab.json").write_text(json.dumps({chr(33 + token): token for token in range(58)}))
        (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "modeling_internvl_chat.py").write_text("raise RuntimeError('this is never run')")
    return model


@pytest.mark.parametrize(
    ("text", "tower"), [("internlm2", SMALL), ("internlm2", LARGE), ("phi3", SMALL), ("qwen2", SMALL)], ids=["8B", "26B", "4B", "1B"]
)
def test_becomes_the_native_model(text: str, tower: dict[str, Any], tmp_path: Path) -> None:
    model = save(tmp_path / "base", text, tower)
    checkpoint = open_checkpoint(tmp_path / "base")
    assert checkpoint.sizes == Sizes(64, 48, 3, 8, 8 if text == "phi3" else 2, 8)
    assert checkpoint.tensors.keys() == model.state_dict().keys()
    assert all(checkpoint.read(name).equal(tensor) for name, tensor in model.state_dict().items())
    native = assert_migrates(tmp_path / "base", model, PROMPTS)
    assert not list(native.glob("*.py"))
    assert {file.name for file in native.iterdir()} == {
        "LICENSE.txt", "README.md", "SHA256SUMS", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "processor_config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    out = assert_prunes(tmp_path / "base", model, PROMPTS, 1)
    if tower is LARGE or text == "phi3":
        assert_stands_alone(out, PROMPTS[1][0])


def test_parts_of_a_fused_tensor_by_hand() -> None:
    """Two KV heads with two query heads each, one row a head."""
    fused = torch.tensor([[1.0], [2.0], [10.0], [100.0], [3.0], [4.0], [20.0], [200.0]])
    places = {"query": (0, 2), "key": (2, 3), "value": (3, 4)}
    parts = {name: Rows(2, 4, *place).apply(fused).flatten().tolist() for name, place in places.items()}
    assert parts == {"query": [1, 2, 3, 4], "key": [10, 20], "value": [100, 200]}
    assert Rows(2, 4, 0, 2).shape((8, 1)) == (4, 1)
    assert Rows(2, 4, 3, 4).apply(fused[:, 0]).tolist() == [100, 200]  # a bias


def test_sizes_and_grid_are_known_from_config_alone() -> None:
    config = chat_config("internlm2", SMALL)
    assert family_of(config).sizes(config) == Sizes(64, 48, 3, 8, 2, 8)
    assert family_of(config).grid(config) == Grid(4, 4)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"ps_version": "v1"}, "ps_version is v1"),
        ({"force_image_size": 64}, "force_image_size is 64, the vision tower's 32"),
        ({"llm_config": {"model_type": "gpt"}}, r"internvl_chat is not supported \(language model: gpt\)"),
    ],
)
def test_variants_that_native_internvl_has_not(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    save(tmp_path, "internlm2", SMALL)
    (tmp_path / "config.json").write_text(json.dumps(chat_config("internlm2", SMALL) | change))
    with pytest.raises(YopoError, match=sentence) as raised:
        open_checkpoint(tmp_path)
    assert raised.value.hint


def test_a_tokenizer_without_the_placeholder(tmp_path: Path) -> None:
    save(tmp_path, "internlm2", SMALL)
    save_tokenizer(tmp_path, WORDS, 60, {60: "<img>"})
    with pytest.raises(YopoError, match="has no token <IMG_CONTEXT>"):
        open_checkpoint(tmp_path)


def test_the_placeholder_is_found_wherever_the_tokenizer_lists_it(tmp_path: Path) -> None:
    save(tmp_path, "internlm2", SMALL)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<IMG_CONTEXT>": 61}))
    assert open_checkpoint(tmp_path).config["image_token_id"] == 61


def test_tokenizer_and_chat_are_transformers_own(tmp_path: Path) -> None:
    save(tmp_path / "base", "internlm2", SMALL)
    out = convert(open_checkpoint(tmp_path / "base"), None, tmp_path / "out", provenance(tmp_path / "base"))
    tokenizer = AutoTokenizer.from_pretrained(out)
    names = ("start_image_token_id", "end_image_token_id", "context_image_token_id", "video_token_id")
    assert [getattr(tokenizer, name) for name in names] == [60, 61, 62, 63]
    hello, feed = 3 + WORDS.index("hello"), 3 + WORDS.index("\n")
    assert tokenizer.encode("hello<|im_end|><IMG_CONTEXT>") == [1, hello, 59, 62]  # no space is put before a text
    turn = [{"role": "system", "content": "hello"}, {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "hello"}]}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert text == ("<|im_start|>system\nhello<|im_end|><|im_start|>user\n<IMG_CONTEXT>\nhello<|im_end|><|im_start|>assistant\n")
    plain = tokenizer.apply_chat_template([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], tokenize=False)
    assert plain.startswith("<|im_start|>system\n你是由上海人工智能实验室")
    assert plain.endswith("助手。<|im_end|><|im_start|>user\na<|im_end|><|im_start|>assistant\nb<|im_end|>")
    assert tokenizer.encode("hello<|im_end|>\n")[-1] == feed
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": [59, 2], "pad_token_id": 0}
    processor = json.loads((out / "processor_config.json").read_text())
    assert (processor["processor_class"], processor["image_seq_length"]) == ("InternVLProcessor", 16)
    assert AutoImageProcessor.from_pretrained(out, backend="pil").size == {"height": 32, "width": 32}


def test_a_template_that_is_not_known(tmp_path: Path) -> None:
    save(tmp_path / "base", "internlm2", SMALL)
    (tmp_path / "base" / "config.json").write_text(json.dumps(chat_config("internlm2", SMALL) | {"template": "other"}))
    checkpoint = open_checkpoint(tmp_path / "base")
    with pytest.raises(YopoError, match="The chat template 'other' is not known"):
        convert(checkpoint, None, tmp_path / "out", provenance(tmp_path / "base"))
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_the_dense_model_runs_without_converting(tmp_path: Path) -> None:
    model = save(tmp_path / "base", "internlm2", SMALL)
    native = native_model(open_checkpoint(tmp_path / "base"), torch.float32)
    inputs = PROMPTS[1][0]
    with torch.inference_mode():
        torch.testing.assert_close(native(**inputs).logits, model(**inputs).logits, atol=1e-4, rtol=0)
