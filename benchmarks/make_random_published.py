"""Write a Qwen2-VL or InternVL2 with random weights at the size of a published config, in the layout in which it is published.

    python benchmarks/make_random_published.py /tmp/qwen2-vl-7b --config benchmarks/configs/qwen2-vl-7b.json
    python benchmarks/make_random_published.py /tmp/internvl2-8b --config benchmarks/configs/internvl2-8b.json

Weights, index and config, and for InternVL2 a made-up tokenizer with the published ids. One tensor is in memory at a time.
"""

import argparse
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from make_random_llava import BLOCK, STD, random_tensor

from converters.checkpoint.folder import appearing
from converters.checkpoint.header import DTYPE_NAMES
from converters.checkpoint.skeleton import skeleton
from converters.checkpoint.writer import Entry, index_text, plan_shards, write_shard
from converters.families import Folders, family_of
from converters.families.internvl_chat import IMAGE_TOKEN

ADDED = ("<img>", "</img>", IMAGE_TOKEN, "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
END = "<|im_end|>"
QWEN = (("model.language_model.", "model."), ("model.visual.", "visual."))
INTERNVL = (
    (r"model\.vision_tower\.embeddings\.cls_token", "vision_model.embeddings.class_embedding"),
    (r"model\.vision_tower\.embeddings\.position_embeddings", "vision_model.embeddings.position_embedding"),
    (r"model\.vision_tower\.embeddings\.patch_embeddings\.projection", "vision_model.embeddings.patch_embedding"),
    (r"model\.vision_tower\.encoder\.layer\.", "vision_model.encoder.layers."),
    (r"\.attention\.q_proj\.", ".attn.qkv."),
    (r"\.attention\.projection_layer\.", ".attn.proj."),
    (r"\.attention\.(q|k)_norm\.", r".attn.\1_norm."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.lambda_", ".ls"),
    (r"model\.multi_modal_projector\.layer_norm", "mlp1.0"),
    (r"model\.multi_modal_projector\.linear_1", "mlp1.1"),
    (r"model\.multi_modal_projector\.linear_2", "mlp1.3"),
    (r"model\.language_model\.embed_tokens", "language_model.model.tok_embeddings"),
    (r"lm_head", "language_model.output"),
    (r"model\.language_model\.", "language_model.model."),
    (r"\.self_attn\.q_proj\.", ".attention.wqkv."),
    (r"\.self_attn\.o_proj\.", ".attention.wo."),
    (r"\.mlp\.gate_proj\.", ".feed_forward.w1."),
    (r"\.mlp\.up_proj\.", ".feed_forward.w3."),
    (r"\.mlp\.down_proj\.", ".feed_forward.w2."),
    (r"\.input_layernorm\.", ".attention_norm."),
    (r"\.post_attention_layernorm\.", ".ffn_norm."),
)


def main() -> None:
    arguments = _parse()
    config = json.loads(arguments.config.read_text())
    with appearing(arguments.output, arguments.force) as folder:
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        if "llm_config" in config:
            write_tokenizer(folder, config["llm_config"]["vocab_size"] - len(ADDED))
        shapes = dict(published_shapes(config, folder))
        shards = plan_shards(Entry(name, DTYPE_NAMES[torch.bfloat16], shape) for name, shape in shapes.items())
        (folder / "model.safetensors.index.json").write_text(index_text(shards))
        block = torch.randn(BLOCK, generator=torch.Generator().manual_seed(arguments.seed)).mul_(STD).bfloat16()
        for shard in shards:
            write_shard(folder, shard, lambda name: random_tensor(name, shapes[name], block))


def published_shapes(config: dict[str, Any], folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    family = family_of(config)
    built = skeleton(family, dict(family.native(config, Folders(folder))))
    for name, shape in built.shapes.items():
        if name in built.tied or (re.search(r"(attention|self_attn)\.[kv]_proj\.", name) and "llm_config" in config):
            continue  # part of the fused tensor that the query's name stands for
        if "llm_config" not in config:
            new, old = next(((new, old) for new, old in QWEN if name.startswith(new)), ("", ""))
            yield old + name.removeprefix(new), shape
            continue
        fused = {"attention.q_proj.": 3, "self_attn.q_proj.": 1 + 2 / family.sizes(config).group}
        factor = next((factor for part, factor in fused.items() if f".{part}" in name), 1)
        for pattern, old in INTERNVL:
            name = re.sub(pattern, old, name)
        yield name, (round(shape[0] * factor), *shape[1:])


def write_tokenizer(folder: Path, size: int) -> None:
    """A vocabulary of made-up words, its last the end of a turn, and the added tokens after it."""
    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((f"▁w{index}", 1) for index in range(3, size))]
    field = lambda number, data: bytes([number << 3 | 2, len(data)]) + data  # noqa: E731
    score = bytes([2 << 3 | 5]) + struct.pack("<f", 0.0)
    messages = (field(1, field(1, text.encode()) + score + bytes([3 << 3, kind])) for text, kind in pieces)
    (folder / "tokenizer.model").write_bytes(b"".join(messages))
    added = {size - 1: END} | dict(enumerate(ADDED, size))
    decoder = {str(number): {"content": text, "special": True} for number, text in added.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--force", action="store_true", help="replace the output")
    return parser.parse_args()


if __name__ == "__main__":
    main()
