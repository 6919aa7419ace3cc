"""Write a model with random weights at the size of a published config, in the layout in which it is published.

    python benchmarks/make_random_published.py /tmp/qwen2-vl-7b --config converters/bench/configs/published/qwen2-vl-7b.json
    python benchmarks/make_random_published.py /tmp/internvl2-8b --config converters/bench/configs/published/internvl2-8b.json
    python benchmarks/make_random_published.py /tmp/internvl2-26b --config converters/bench/configs/published/internvl2-26b.json --shards 2

Weights, index, config, and a processor with a made-up tokenizer that has the published ids. One tensor is in memory at a time. With
`--shards` only what the first converted shards are made of is written; all the rest are holes in files of full size, which take no room.
"""

import argparse
import json
import re
import struct
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import torch
from make_random_llava import BLOCK, STD, random_tensor, tokenizer
from make_random_llava import write as write_llava

from converters.checkpoint.folder import appearing
from converters.checkpoint.header import DTYPE_NAMES
from converters.checkpoint.skeleton import skeleton
from converters.checkpoint.writer import Entry, Shard, header_bytes, index_text, plan_shards, write_shard
from converters.families import Family, Folders, family_of
from converters.families.internvl_chat import IMAGE_TOKEN, TEMPLATES

ADDED = ("<img>", "</img>", IMAGE_TOKEN, "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
QWEN = (("model.language_model.", "model."), ("model.visual.", "visual."))
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|> {{ message['role'] }} {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% elif part['type'] == 'video' %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
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
)
INTERNLM2 = (
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
PHI3 = ((r"model\.language_model\.", "language_model.model."), (r"^lm_head", "language_model.lm_head"))


def main() -> None:
    arguments = _parse()
    config = json.loads(arguments.config.read_text())
    if config["model_type"] == "llava":
        write_llava(arguments.output, config, torch.float16, arguments.seed, arguments.force)
        return
    family = family_of(config)
    with appearing(arguments.output, arguments.force) as folder:
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        write_words(config, folder)
        shapes = dict(published_shapes(family, config, folder))
        shards = plan_shards(Entry(name, DTYPE_NAMES[torch.bfloat16], shape) for name, shape in shapes.items())
        (folder / "model.safetensors.index.json").write_text(index_text(shards))
        block = torch.randn(BLOCK, generator=torch.Generator().manual_seed(arguments.seed)).mul_(STD).bfloat16()
        wanted = shapes if arguments.shards is None else needed_by(arguments.shards, family, config, folder, shapes)
        for shard in shards:
            write = write_shard if shard.entries and all(entry.name in wanted for entry in shard.entries) else write_with_holes(wanted)
            write(folder, shard, lambda name: random_tensor(name, shapes[name], block))


def published_shapes(family: Family, config: dict[str, Any], folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes on disk: transformers' modules, renamed back, and fused where they are published so."""
    built = skeleton(family, dict(family.native(config, Folders(folder))))
    if "llm_config" not in config:
        for name, shape in built.shapes.items():
            if name not in built.tied:
                new, old = next(((new, old) for new, old in QWEN if name.startswith(new)), ("", ""))
                yield old + name.removeprefix(new), shape
        return
    fused = {".attention.q_proj.": (1, 3)}
    if config["llm_config"]["model_type"] == "internlm2":
        group = family.sizes(config).group
        fused[".self_attn.q_proj."] = (group, group + 2)
    words = (*INTERNVL, *(INTERNLM2 if len(fused) == 2 else PHI3))
    for name, shape in built.shapes.items():
        if re.search(r"\.attention\.[kv]_proj\.", name) or (len(fused) == 2 and re.search(r"self_attn\.[kv]_proj\.", name)):
            continue  # part of the fused tensor that the query's name stands for
        part, whole = next((factor for within, factor in fused.items() if within in name), (1, 1))
        for pattern, old in words:
            name = re.sub(pattern, old, name)
        yield name, (shape[0] // part * whole, *shape[1:])


def needed_by(count: int, family: Family, config: dict[str, Any], folder: Path, shapes: dict[str, tuple[int, ...]]) -> set[str]:
    """Names on disk of what the first `count` converted shards are made of."""
    sources: dict[str, str] = {}
    entries = []
    for name, shape in shapes.items():
        for piece in family.pieces(name, config):
            sources[piece.name] = name
            entries.append(Entry(piece.name, DTYPE_NAMES[torch.bfloat16], piece.change.shape(shape) if piece.change else shape))
    return {sources[entry.name] for shard in plan_shards(entries)[:count] for entry in shard.entries}


def write_with_holes(wanted: Container[str]) -> Any:
    """`write_shard` of the wanted tensors alone."""

    def write(folder: Path, shard: Shard, tensor_of: Any) -> None:
        with (folder / shard.file).open("xb") as stream:
            stream.write(header_bytes(shard))
            for entry in shard.entries:
                if entry.name in wanted:
                    stream.write(tensor_of(entry.name).contiguous().flatten().view(torch.uint8).numpy().data)
                else:
                    stream.seek(entry.bytes, 1)
            stream.truncate(stream.tell())

    return write


def write_words(config: dict[str, Any], folder: Path) -> None:
    """A made-up tokenizer in the published form, and what else a processor is made of."""
    if "llm_config" not in config:
        write_qwen_words(config, folder)
        return
    size, end = config["llm_config"]["vocab_size"] - len(ADDED), TEMPLATES[config["template"]].end.strip()
    if config["llm_config"]["model_type"] == "phi3":  # Llama's vocabulary and eleven tokens of its own
        own = {token: f"<|placeholder{token}|>" for token in range(32000, size)} | {32007: end}
        write_tokenizer(folder, 32000, own | dict(enumerate(ADDED, size)))
    else:
        write_tokenizer(folder, size, {size - 1: end} | dict(enumerate(ADDED, size)))


def write_tokenizer(folder: Path, size: int, added: dict[int, str]) -> None:
    """A sentencepiece vocabulary of made-up words, and the added tokens."""
    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((f"▁w{index}", 1) for index in range(3, size))]
    field = lambda number, data: bytes([number << 3 | 2, len(data)]) + data  # noqa: E731
    score = bytes([2 << 3 | 5]) + struct.pack("<f", 0.0)
    messages = (field(1, field(1, text.encode()) + score + bytes([3 << 3, kind])) for text, kind in pieces)
    (folder / "tokenizer.model").write_bytes(b"".join(messages))
    decoder = {str(number): {"content": text, "special": True} for number, text in added.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))


def write_qwen_words(config: dict[str, Any], folder: Path) -> None:
    names = {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    names |= {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>", "eos_token_id": "<|im_end|>"}
    special = {config[name]: text for name, text in names.items()} | {config["bos_token_id"]: "<|endoftext|>", 151644: "<|im_start|>"}
    named = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    tokenizer(config["vocab_size"], special, named, eos_token="<|im_end|>", pad_token="<|endoftext|>").save_pretrained(folder)
    pictures = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, "min_pixels": 3136, "max_pixels": 12845056}
    words = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor", **pictures}
    (folder / "preprocessor_config.json").write_text(json.dumps(words))
    (folder / "chat_template.jinja").write_text(QWEN_TEMPLATE)
    ends = {"bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"], "pad_token_id": config["bos_token_id"]}
    (folder / "generation_config.json").write_text(json.dumps(ends))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--shards", type=int, help="write only what this many converted shards are made of")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--force", action="store_true", help="replace the output")
    return parser.parse_args()


if __name__ == "__main__":
    main()
