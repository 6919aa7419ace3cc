"""Write a LLaVA with random weights, at the size of any published config, in the layout of the llava-hf repositories.

    python benchmarks/make_random_llava.py /tmp/llava-7b-random                     # 14 GB in three shards, half precision
    python benchmarks/make_random_llava.py /tmp/small --layers 2 --dtype float32

Streams: one tensor is in memory at a time. Each tensor repeats one random block; its length is prime, so that no two rows are equal.
"""

import argparse
import json
from math import prod
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from converters.checkpoint.folder import appearing
from converters.checkpoint.header import DTYPE_NAMES
from converters.checkpoint.skeleton import skeleton
from converters.checkpoint.writer import Entry, index_text, plan_shards, write_shard
from converters.families import family_of

BLOCK = 1_000_003
STD = 0.02
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }} {% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
HUB_NAMES = (
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)


def main() -> None:
    arguments = _parse()
    config = json.loads(arguments.config.read_text())
    config["torch_dtype"] = config["text_config"]["torch_dtype"] = arguments.dtype
    if arguments.layers:
        config["text_config"]["num_hidden_layers"] = arguments.layers
    write(arguments.output, config, getattr(torch, arguments.dtype), arguments.seed, arguments.force)


def write(output: Path, config: dict[str, Any], dtype: torch.dtype, seed: int, force: bool) -> None:
    """A complete checkpoint: weights, index, config, tokenizer and processor."""
    shapes = {_hub_name(name): shape for name, shape in skeleton(family_of(config), config).shapes.items()}
    shards = plan_shards(Entry(name, DTYPE_NAMES[dtype], shape) for name, shape in shapes.items())
    block = torch.randn(BLOCK, generator=torch.Generator().manual_seed(seed)).mul_(STD).to(dtype)
    with appearing(output, force) as folder:
        processor(config).save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        if len(shards) > 1:
            (folder / "model.safetensors.index.json").write_text(index_text(shards))
        for shard in shards:
            write_shard(folder, shard, lambda name: random_tensor(name, shapes[name], block))


def random_tensor(name: str, shape: tuple[int, ...], block: torch.Tensor) -> torch.Tensor:
    """Ones for the weights of norms, the repeated block for everything else."""
    if "norm" in name and name.endswith("weight"):
        return torch.ones(shape, dtype=block.dtype)
    count = prod(shape)
    return block.repeat(count // len(block) + 1)[:count].view(shape)


def processor(config: dict[str, Any]) -> LlavaProcessor:
    """A tokenizer of made-up words with the model's own special ids, and the image processor of LLaVA-1.5 without torchvision."""
    side = config["vision_config"]["image_size"]
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}),
        tokenizer=tokenizer(
            config["text_config"]["vocab_size"],
            {0: "<unk>", 1: "<s>", 2: "</s>", config["image_token_index"]: "<image>", config["pad_token_id"]: "<pad>"},
            {"image_token": "<image>"},
            first="<s>",
            unk_token="<unk>",
            bos_token="<s>",
            eos_token="</s>",
            pad_token="<pad>",
        ),
        patch_size=config["vision_config"]["patch_size"],
        num_additional_image_tokens=1,
        vision_feature_select_strategy=config["vision_feature_select_strategy"],
        chat_template=CHAT_TEMPLATE,
    )


def tokenizer(
    size: int, special: dict[int, str], named: dict[str, str], first: str | None = None, **tokens: str
) -> PreTrainedTokenizerFast:
    """A vocabulary of made-up words with these special tokens at their ids; `first` comes before every text."""
    words = {special.get(index, f"w{index}"): index for index in range(size)}
    built = Tokenizer(WordLevel(words, unk_token=special[min(special)]))
    built.pre_tokenizer = Whitespace()
    built.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special.values()])
    if first is not None:
        place = [(first, words[first])]
        built.post_processor = TemplateProcessing(single=f"{first} $A", pair=f"{first} $A $B", special_tokens=place)
    return PreTrainedTokenizerFast(tokenizer_object=built, extra_special_tokens=named, padding_side="left", **tokens)


def _hub_name(name: str) -> str:
    new, old = next(pair for pair in HUB_NAMES if name.startswith(pair[0]))
    return old + name.removeprefix(new)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument(
        "--config", type=Path, default=Path(__file__).parent.parent / "converters" / "bench" / "configs" / "llava-1.5-7b.json"
    )
    parser.add_argument("--layers", type=int, help="decoder layers, if not the config's")
    parser.add_argument("--dtype", default="float16", choices=("float16", "bfloat16", "float32"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--force", action="store_true", help="replace the output")
    return parser.parse_args()


if __name__ == "__main__":
    main()
