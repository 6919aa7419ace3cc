"""Train the demo model from nothing: `python -m tools.demo.train --output DIR`.

Three stages, as LLaVA has them, each with a wall-clock budget so that its learning rate reaches zero on any machine:

`torchrun --nproc-per-node 2 -m tools.demo.train --threads 1 ...` is faster than two threads on a busy machine.

1. vision: the tower alone learns to tell, from the layer that the projector reads, what each patch belongs to. It stands in for
   CLIP's pretraining; afterwards the tower moves at a small rate.
2. alignment: the projector alone learns to map a patch to the sum of the word embeddings that describe it. Without it the
   language model does not find out for an hour that the visual tokens mean anything.
3. language: projector and language model learn to answer. Many questions share one picture in a row; a block mask hides them from
   each other and positions restart, so each sees what it would see alone. Without the mask earlier answers are copied.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy
import torch
from PIL import Image, ImageDraw
from torch import Tensor, distributed, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast
from transformers.masking_utils import sdpa_mask

from converters.data.demo.shapes import (
    CANVAS_SIZE,
    COLORS,
    SHAPES,
    Scene,
    ShapeQuestion,
    draw,
    draw_object,
    questions,
    random_scene,
    random_source,
)
from tools.demo.architecture import (
    GRID_SIZE,
    IMAGE_MEAN,
    IMAGE_STD,
    PATCH_SIZE,
    VISUAL_TOKENS,
    build_model,
    build_processor,
    save,
)
from tools.demo.evaluate import evaluate
from tools.demo.muon import Muon

COVERED_PIXELS = 8  # of a patch's 64: fewer, and the patch counts as background
OBJECT_WEIGHT = 4.0  # an object's patches are rare; their share of the loss is raised
ROW_TEXT_TOKENS = 170  # questions of one training row, about seventeen
TWO_PICTURE_SHARE = 0.05
IGNORED = -100
MUON_RATE = 6e-3
TRAINING_ATTENTION = "shared_prefix"


@dataclass(frozen=True)
class Pool:
    """Pictures kept in memory with what each patch shows; P pictures, N visual tokens."""

    shapes: tuple[str, ...]
    scenes: list[Scene]
    pixels: Tensor  # uint8, (P, 3, size, size)
    shape: Tensor  # int64, (P, N): 0 background, else 1 + index in `shapes`
    color: Tensor  # int64, (P, N): likewise for COLORS
    center: Tensor  # float32, (P, N): 1 in the patch that holds an object's centre
    place: Tensor  # float32, (P, N, 2): x and y in [0, 1] of the object's centre, or of the patch itself in the background


def patch_objects(scene: Scene) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Number of the object that covers most of each patch (0: none), and 1 where the object's centre lies; both (N,)."""
    canvas = Image.new("L", (CANVAS_SIZE, CANVAS_SIZE), 0)
    pen = ImageDraw.Draw(canvas)
    for number, placed in enumerate(scene.objects, start=1):
        draw_object(pen, placed, number, 0, 1)
    cells = numpy.asarray(canvas).reshape(GRID_SIZE, PATCH_SIZE, GRID_SIZE, PATCH_SIZE).transpose(0, 2, 1, 3).reshape(VISUAL_TOKENS, -1)
    covered = numpy.stack([(cells == number).sum(axis=1) for number in range(1, len(scene.objects) + 1)])
    owner = numpy.where(covered.max(axis=0) >= COVERED_PIXELS, covered.argmax(axis=0) + 1, 0)
    center = numpy.zeros(VISUAL_TOKENS, dtype=numpy.float32)
    for number, placed in enumerate(scene.objects, start=1):
        cell = int(placed.y // PATCH_SIZE) * GRID_SIZE + int(placed.x // PATCH_SIZE)
        owner[cell], center[cell] = number, 1.0
    return owner, center


def build_pool(count: int, seed: int, scene_of: Callable[[Random], Scene] = random_scene, shapes: tuple[str, ...] = SHAPES) -> Pool:
    """Draw the training pictures once; `shapes` are all names that their objects have."""
    scenes = [scene_of(random_source(seed, "train", index)) for index in range(count)]
    pixels = numpy.empty((count, CANVAS_SIZE, CANVAS_SIZE, 3), dtype=numpy.uint8)
    shape = numpy.zeros((count, VISUAL_TOKENS), dtype=numpy.int64)
    color = numpy.zeros((count, VISUAL_TOKENS), dtype=numpy.int64)
    center = numpy.zeros((count, VISUAL_TOKENS), dtype=numpy.float32)
    place = numpy.zeros((count, VISUAL_TOKENS, 2), dtype=numpy.float32)
    cells = (numpy.arange(VISUAL_TOKENS) % GRID_SIZE, numpy.arange(VISUAL_TOKENS) // GRID_SIZE)
    own_place = (numpy.stack(cells, axis=1) + 0.5) / GRID_SIZE
    names = list(COLORS)
    for index, scene in enumerate(scenes):
        pixels[index] = numpy.asarray(draw(scene))
        owner, center[index] = patch_objects(scene)
        shape[index] = numpy.array([0, *(1 + shapes.index(placed.shape) for placed in scene.objects)])[owner]
        color[index] = numpy.array([0, *(1 + names.index(placed.color) for placed in scene.objects)])[owner]
        centers = numpy.array([(0.0, 0.0), *((placed.x / CANVAS_SIZE, placed.y / CANVAS_SIZE) for placed in scene.objects)])
        place[index] = numpy.where(owner[:, None] > 0, centers[owner], own_place)
    channels_first = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return Pool(shapes, scenes, channels_first, *map(torch.from_numpy, (shape, color, center, place)))


def normalise(pixels: Tensor) -> Tensor:
    """What the image processor does to a picture of the canvas size; (B, 3, size, size), bytes in, floats out."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    return (pixels.float() / 255 - mean) / std


def visual_features(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """The hidden states that the projector reads, class token dropped; (B, N, vision hidden)."""
    states = model.model.vision_tower(normalise(pixels), output_hidden_states=True).hidden_states
    layer: int = model.config.vision_feature_layer
    features: Tensor = states[layer][:, 1:]
    return features


def shared_prefix_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, prefix: int, **_: Any
) -> tuple[Tensor, None]:
    """Attention of training rows: the first `prefix` positions are causal and never see the text, so that part of the mask is left out.

    It runs outside of autocast: with 16-wide heads a processor's bfloat16 kernel is half as fast as its float32 one. Query, key and
    value are (B, heads, prefix + L, head_dim), keys and values of fewer heads are shared; the result is (B, prefix + L, heads, head_dim).
    """
    with torch.autocast("cpu", enabled=False):
        query, key, value = query.float(), key.float(), value.float()
        if key.shape[1] < query.shape[1]:
            key, value = (states.repeat_interleave(query.shape[1] // states.shape[1], dim=1) for states in (key, value))
        before = functional.scaled_dot_product_attention(query[:, :, :prefix], key[:, :, :prefix], value[:, :, :prefix], is_causal=True)
        after = functional.scaled_dot_product_attention(query[:, :, prefix:], key, value, attn_mask=attention_mask[:, :, prefix:])
    return torch.cat([before, after], dim=2).transpose(1, 2), None


class Stage:
    """One stage's optimiser, its schedule over a clock's time (the wall's, or the process's own), and its log."""

    def __init__(
        self,
        name: str,
        parameters: list[nn.Parameter],
        rate: float,
        minutes: float,
        log: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.seconds, self.log, self.clock = name, minutes * 60, log, clock
        self.parameters: list[nn.Parameter] = []
        self.optimizers: list[tuple[torch.optim.Optimizer, float]] = []
        self.add_adamw(parameters, rate)
        self.started = clock()
        self.steps = 0
        self.progress = 0.0
        self.mean_loss = 0.0

    def add_adamw(self, parameters: list[nn.Parameter], rate: float) -> None:
        self.parameters += parameters
        self.optimizers.append((torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01), rate))

    def add_muon(self, matrices: list[nn.Parameter], rate: float) -> None:
        """Muon for the matrices inside the layers: one rate suits matrices of every size."""
        self.parameters += matrices
        self.optimizers.append((Muon(matrices, lr=rate, weight_decay=0.01), rate))

    def step(self, loss: Tensor) -> None:
        """Warm-up over the first 4 % of the time, then half a cosine down to zero."""
        for parameter in self.parameters:
            parameter.grad = None
        loss.backward()
        elapsed = (self.clock() - self.started) / self.seconds
        self.progress, mean_loss = self._average_over_processes(elapsed, loss.item())
        progress = min(1.0, self.progress)
        factor = min(progress / 0.04 + 0.01, 0.5 * (1 + math.cos(math.pi * progress)))
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer, rate in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
        self.steps += 1
        self.mean_loss += (mean_loss - self.mean_loss) * max(0.02, 1 / self.steps)
        if self.steps % 50 == 0:
            self.log(f"{self.name} {progress:.1%} step {self.steps} loss {self.mean_loss:.4f}")

    def _average_over_processes(self, *numbers: float) -> list[float]:
        """Average gradients and these numbers, so that every process takes the same step and stops at the same one."""
        if not distributed.is_initialized():
            return list(numbers)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        flat = torch.cat([torch.tensor(numbers), *(gradient.flatten() for gradient in gradients)])
        distributed.all_reduce(flat)
        flat /= distributed.get_world_size()
        pieces = flat[len(numbers) :].split([gradient.numel() for gradient in gradients])
        for gradient, piece in zip(gradients, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))
        averages: list[float] = flat[: len(numbers)].tolist()
        return averages


def batches(count: int, size: int, seed: int) -> Iterator[Tensor]:
    """Indices of pictures, in a new random order every round, for ever."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(count, generator=generator)
        yield from order[: count - count % size].split(size)


def patch_losses(pool: Pool, indices: Tensor, shape: Tensor, color: Tensor, center: Tensor, place: Tensor) -> Tensor:
    """Mean error of what is said of every patch: logits (B, N, names), (B, N, colours), (B, N) and x, y (B, N, 2)."""
    truth = pool.shape[indices]
    weight = torch.where(truth > 0, OBJECT_WEIGHT, 1.0)
    errors = functional.cross_entropy(shape.transpose(1, 2), truth, reduction="none")
    errors = errors + functional.cross_entropy(color.transpose(1, 2), pool.color[indices], reduction="none")
    errors = errors + functional.binary_cross_entropy_with_logits(center, pool.center[indices], reduction="none")
    errors = errors + 20 * (place - pool.place[indices]).square().sum(dim=-1)
    return (errors * weight).sum() / weight.sum()


def train_vision(
    model: LlavaForConditionalGeneration,
    pool: Pool,
    minutes: float,
    seed: int,
    log: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
    precision: torch.dtype = torch.bfloat16,
) -> int:
    """Per-patch labels from linear heads: what, which colour, is it the centre, where is the centre."""
    width: int = model.model.vision_tower.config.hidden_size
    sizes = [1 + len(pool.shapes), 1 + len(COLORS), 1, 2]
    heads = nn.Linear(width, sum(sizes))
    stage = Stage("vision", [*model.model.vision_tower.parameters(), *heads.parameters()], 1.5e-3, minutes, log, clock)
    for indices in batches(len(pool.scenes), 32, seed):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
            features = visual_features(model, pool.pixels[indices])
        shape, color, center, place = heads(features.float()).split(sizes, dim=-1)
        stage.step(patch_losses(pool, indices, shape, color, center[..., 0], place))
        if stage.steps % 200 == 0:
            seen = pool.shape[indices] > 0
            guesses = ((shape, pool.shape[indices]), (color, pool.color[indices]))
            right = [(guess.argmax(-1) == labels)[seen].float().mean() for guess, labels in guesses]
            distance = (place - pool.place[indices])[seen].abs().mean() * CANVAS_SIZE
            log(f"vision shape {right[0]:.3f} color {right[1]:.3f} centre off by {distance:.2f} pixels")
        if stage.progress >= 1:
            break
    return stage.steps


Words = Callable[[list[str]], Tensor]  # the embeddings of words, (words, hidden)


def words_of(model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> Words:
    """Of the demo, where each word is one token."""
    embeddings = model.model.language_model.embed_tokens.weight.detach()
    return lambda names: embeddings[torch.tensor(tokenizer.convert_tokens_to_ids(names))]


def described_patches(words: Words, pool: Pool, indices: Tensor) -> Tensor:
    """Sum of the word embeddings of a patch: shape, colour, place between the four sides, and `shape` at a centre; (B, N, hidden)."""
    x, y = pool.place[indices].unsqueeze(-1).unbind(dim=-2)
    left, right, top, bottom, shape = words(["left", "right", "top", "bottom", "shape"])
    target = words(["background", *pool.shapes])[pool.shape[indices]] + words(["background", *COLORS])[pool.color[indices]]
    described: Tensor = target + (1 - x) * left + x * right + (1 - y) * top + y * bottom + pool.center[indices].unsqueeze(-1) * shape
    return described


def train_alignment(
    model: LlavaForConditionalGeneration,
    words: Words,
    pool: Pool,
    minutes: float,
    seed: int,
    log: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """The projector learns to speak in the language model's (still frozen) word embeddings."""
    projector = model.model.multi_modal_projector
    stage = Stage("alignment", list(projector.parameters()), 3e-3, minutes, log, clock)
    for indices in batches(len(pool.scenes), 32, seed):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            features = visual_features(model, pool.pixels[indices])
        errors = (projector(features.float()) - described_patches(words, pool, indices)).square().mean(dim=-1)
        weight = torch.where(pool.shape[indices] > 0, OBJECT_WEIGHT, 1.0)
        stage.step((errors * weight).sum() / weight.sum())
        if stage.progress >= 1:
            break
    return stage.steps


@dataclass(frozen=True)
class TextRows:
    """The text after the pictures of B rows, padded to L tokens."""

    tokens: Tensor  # (B, L)
    labels: Tensor  # (B, L): the token to predict where an answer is predicted, IGNORED elsewhere
    segment: Tensor  # (B, L): number of the question from 1, 0 in the padding
    offset: Tensor  # (B, L): position inside the question


@cache
def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[int, ...]:
    """Tokens of a piece of text; the questions are few enough to be remembered."""
    return tuple(tokenizer(text, add_special_tokens=False).input_ids)


def pack(
    tokenizer: PreTrainedTokenizerFast, asked: list[list[ShapeQuestion]], turn: str = "{} ASSISTANT:", longest: int = ROW_TEXT_TOKENS
) -> TextRows:
    """Lay out each row's questions, as a turn has them, and answers one after the other, as many as fit into `longest` tokens."""
    tokens = torch.full((len(asked), longest), tokenizer.pad_token_id)
    labels = torch.full_like(tokens, IGNORED)
    segment, offset = torch.zeros_like(tokens), torch.zeros_like(tokens)
    for row, row_questions in enumerate(asked):
        start = 0
        for number, question in enumerate(row_questions, start=1):
            prompt = encode(tokenizer, turn.format(question.question))
            answer = (*encode(tokenizer, question.answer), tokenizer.eos_token_id)
            end = start + len(prompt) + len(answer)
            if end > longest:
                break
            tokens[row, start:end] = torch.tensor(prompt + answer)
            labels[row, start + len(prompt) - 1 : end - 1] = torch.tensor(answer)
            segment[row, start:end] = number
            offset[row, start:end] = torch.arange(end - start)
            start = end
    return TextRows(tokens, labels, segment, offset)


def block_mask(segment: Tensor, prefix: int) -> Tensor:
    """True where a query may look: the past of its own question, and the prefix; (B, 1, prefix + L, prefix + L)."""
    blocks = functional.pad(segment, (prefix, 0))
    own = blocks.unsqueeze(2) == blocks.unsqueeze(1)
    length = blocks.shape[1]
    shared = torch.arange(length) < prefix
    return ((own | shared) & torch.ones(length, length, dtype=torch.bool).tril()).unsqueeze(1)


def answer_loss(model: LlavaForConditionalGeneration, before: Sequence[int], pixels: Tensor, text: TextRows) -> Tensor:
    """Cross entropy of the answers; pixels (B, pictures per row, 3, size, size), with the tokens before them."""
    rows, pictures = pixels.shape[:2]
    features = visual_features(model, pixels.flatten(0, 1))
    visual = model.model.multi_modal_projector(features).reshape(rows, pictures * VISUAL_TOKENS, -1)
    embed = model.model.language_model.embed_tokens
    start = torch.tensor(before).expand(rows, -1)
    embeddings = torch.cat([embed(start), visual.float(), embed(text.tokens)], dim=1)
    prefix = len(before) + visual.shape[1]
    positions = torch.cat([torch.arange(prefix).expand(rows, prefix), prefix + text.offset], dim=1)
    mask = block_mask(text.segment, prefix)
    states = model.model.language_model(
        inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, use_cache=False, prefix=prefix
    ).last_hidden_state[:, prefix:]
    scored = text.labels != IGNORED
    return functional.cross_entropy(model.lm_head(states[scored]).float(), text.labels[scored])


def about_one_of_two(question: ShapeQuestion, ordinal: str) -> ShapeQuestion:
    return ShapeQuestion(f"In the {ordinal} picture, {question.question[0].lower()}{question.question[1:]}", question.answer, question.kind)


def train_language(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    pool: Pool,
    minutes: float,
    rate: float,
    tower_rate: float,
    rows: int,
    seed: int,
    log: Callable[[str], None],
    checkpoint: Callable[[], None],
) -> int:
    """Projector and language model learn to answer; now and then a row has two pictures and says which one it asks about."""
    layers = [*model.model.multi_modal_projector.parameters(), *model.model.language_model.layers.parameters()]
    language_model = model.model.language_model
    words = [*language_model.embed_tokens.parameters(), *language_model.norm.parameters(), *model.lm_head.parameters()]
    stage = Stage("language", [*words, *(parameter for parameter in layers if parameter.ndim < 2)], rate, minutes, log)
    stage.add_muon([parameter for parameter in layers if parameter.ndim == 2], MUON_RATE)
    if tower_rate:
        stage.add_adamw(list(model.model.vision_tower.requires_grad_(True).parameters()), tower_rate)
    source = Random(f"questions/{seed}")
    before = [tokenizer.bos_token_id, tokenizer.convert_tokens_to_ids("USER:")]
    saved = time.monotonic()
    for indices in batches(len(pool.scenes), rows, seed + 1):
        asked = [questions(pool.scenes[index], source, 22) for index in indices.tolist()]
        pixels = pool.pixels[indices].unsqueeze(1)
        if source.random() < TWO_PICTURE_SHARE:
            pixels = pixels.view(-1, 2, *pixels.shape[2:])
            asked = [_mixed(source, first, second) for first, second in zip(asked[::2], asked[1::2], strict=True)]
        with torch.autocast("cpu", torch.bfloat16):
            loss = answer_loss(model, before, pixels, pack(tokenizer, asked))
        stage.step(loss)
        if time.monotonic() - saved > 200:
            checkpoint()
            saved = time.monotonic()
        if stage.progress >= 1:
            break
    return stage.steps


def _mixed(source: Random, first: list[ShapeQuestion], second: list[ShapeQuestion]) -> list[ShapeQuestion]:
    both = [about_one_of_two(question, "first") for question in first] + [about_one_of_two(question, "second") for question in second]
    source.shuffle(both)
    return both


def check_format(processor: LlavaProcessor, pool: Pool) -> None:
    """Training rows must be, token by token and pixel by pixel, what the processor makes of a chat; questions about one picture."""
    tokenizer = processor.tokenizer
    question = questions(pool.scenes[0], Random(0), 8)[0]
    text = pack(tokenizer, [[question]])
    conversation: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.question}]},
        {"role": "assistant", "content": [{"type": "text", "text": question.answer}]},
    ]
    served = processor(text=processor.apply_chat_template(conversation), images=draw(pool.scenes[0]), return_tensors="pt")
    start = [tokenizer.bos_token_id, tokenizer.convert_tokens_to_ids("USER:"), *[processor.image_token_id] * VISUAL_TOKENS]
    trained = start + text.tokens[0][text.segment[0] > 0].tolist()
    if served.input_ids[0].tolist() != trained:
        raise RuntimeError(f"Training tokens {trained} are not the chat template's {served.input_ids[0].tolist()}.")
    torch.testing.assert_close(served.pixel_values, normalise(pool.pixels[:1]), rtol=0, atol=1e-5)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, required=True, help="folder of the finished model")
    parser.add_argument("--resume", type=Path, help="folder of an earlier run to start from; a stage of no minutes is left out")
    parser.add_argument("--tower", type=Path, help="folder of an earlier run whose vision tower is the starting point")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=40_000, help="training pictures kept in memory, 28 kB each")
    parser.add_argument("--vision-minutes", type=float, default=12.0)
    parser.add_argument("--alignment-minutes", type=float, default=1.5)
    parser.add_argument("--language-minutes", type=float, default=40.0)
    parser.add_argument("--language-rate", type=float, default=2e-3)
    parser.add_argument("--tower-rate", type=float, default=1e-4, help="rate of the vision tower in the language stage; 0 freezes it")
    parser.add_argument("--rows", type=int, default=6, help="pictures in one step of the language stage, in each process; an even number")
    parser.add_argument("--eval-questions", type=int, default=2000)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    started = time.monotonic()
    if distributed.is_torchelastic_launched():
        distributed.init_process_group("gloo")
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    seed = options.seed + 1000 * rank  # of pictures and questions; the weights start the same everywhere

    def log(line: str) -> None:
        if rank == 0:
            print(f"{time.monotonic() - started:7.1f} s  {line}", flush=True)

    processor = build_processor()
    tokenizer = processor.tokenizer
    model = build_model(tokenizer, options.seed)
    if options.resume:
        model.load_state_dict(LlavaForConditionalGeneration.from_pretrained(options.resume, dtype=torch.float32).state_dict())
    if options.tower:
        earlier = LlavaForConditionalGeneration.from_pretrained(options.tower, dtype=torch.float32)
        model.model.vision_tower.load_state_dict(earlier.model.vision_tower.state_dict())
    AttentionInterface.register(TRAINING_ATTENTION, shared_prefix_attention)
    AttentionMaskInterface.register(TRAINING_ATTENTION, sdpa_mask)
    model.model.language_model.set_attn_implementation(TRAINING_ATTENTION)
    log(f"{sum(parameter.numel() for parameter in model.parameters())} parameters")
    pool = build_pool(options.pictures, seed)
    check_format(processor, pool)
    log(f"{len(pool.scenes)} pictures")
    steps = {}
    if options.vision_minutes:
        steps["vision"] = train_vision(model, pool, options.vision_minutes, seed, log)
    model.model.vision_tower.requires_grad_(False)
    if options.alignment_minutes:
        steps["alignment"] = train_alignment(model, words_of(model, tokenizer), pool, options.alignment_minutes, seed, log)

    def checkpoint() -> None:
        if rank == 0:
            save(model, processor, options.output)
            log(f"checkpoint {json.dumps(evaluate(options.output, 140, options.seed, 'calibration', torch.float32))}")

    checkpoint()
    steps["language"] = train_language(
        model, tokenizer, pool, options.language_minutes, options.language_rate, options.tower_rate, options.rows, seed, log, checkpoint
    )
    if rank > 0:
        return
    save(model, processor, options.output)
    record = {
        "steps": steps,
        "seconds": round(time.monotonic() - started),
        "float32": evaluate(options.output, options.eval_questions, options.seed, "eval", torch.float32),
        "bfloat16": evaluate(options.output, options.eval_questions, options.seed, "eval", torch.bfloat16),
    }
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
