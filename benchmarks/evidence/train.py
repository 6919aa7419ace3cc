"""Train one evidence model from the demo's weights: `python -m benchmarks.evidence.train NAME --state FILE`, from the repository's root.

Two stages, timed in the process's own seconds, so that a process that is stopped now and then learns as much; FILE is written every
minute, and the same command goes on from it.

1. eyes: what the language model is to get for every visual token is what the demo's gets (the weak tower's: after its first layers).
   The harder model learns instead what each patch shows, as the demo did: its objects are none of the demo's.
2. language: answers, and on the demo's pictures also the demo's states after every layer, at the text and at the visual tokens.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForImageTextToText
from transformers.masking_utils import sdpa_mask

from converters.data.demo import harder
from converters.data.demo.letters import LETTERS
from converters.data.demo.sets import CANVASES, SETS, QuestionSet
from converters.data.demo.shapes import SHAPES, Scene, draw, random_scene, random_source
from converters.loading import demo_folder
from tools.demo.architecture import build_processor
from tools.demo.train import (
    IGNORED,
    MUON_RATE,
    TRAINING_ATTENTION,
    Stage,
    TextRows,
    batches,
    block_mask,
    build_pool,
    pack,
    shared_prefix_attention,
    train_alignment,
    train_vision,
    words_of,
)

from . import MODELS, folder
from .architectures import CHAT_TEMPLATE, LAYERS, Untrained, save
from .evaluate import accuracy
from .students import Student, inherit, student

OBJECT_WEIGHT = 4.0
QUESTIONS = 22


@dataclass(frozen=True)
class Pictures:
    """Pictures of one size with their scenes, and what is asked about them; `taught`: the demo knows such pictures."""

    scenes: list[Scene]
    pixels: Tensor  # uint8, (P, 3, height, width)
    questions: QuestionSet
    share: float
    taught: bool


def drawn(questions: QuestionSet, scene_of: Callable[[Random], Scene], count: int, seed: int, share: float, taught: bool) -> Pictures:
    """Training pictures."""
    scenes = [scene_of(random_source(seed, "train", index)) for index in range(count)]
    pixels = torch.from_numpy(numpy.stack([numpy.asarray(draw(scene)) for scene in scenes])).permute(0, 3, 1, 2).contiguous()
    return Pictures(scenes, pixels, questions, share, taught)


def diet(name: str, count: int, seed: int) -> list[Pictures]:
    """What a model learns its language on."""
    demo = SETS["demo"]
    if name == "harder":
        hard = drawn(SETS["harder"], SETS["harder"].scene, count, seed, 0.85, False)
        return [hard, drawn(demo, demo.scene, count // 4, seed + 1, 0.15, True)]
    if name not in ("qwen2-vl", "llava-next"):
        return [drawn(demo, demo.scene, count, seed, 1.0, True)]
    known = drawn(demo, demo.scene, count, seed, 0.55, True)
    other = [canvas for canvas in CANVASES if canvas != (3, 3)]
    parts = [
        drawn(demo, lambda source, canvas=canvas: random_scene(source, *canvas), count // 4, seed + 1, 0.15, False)  # type: ignore[misc]
        for canvas in other
    ]
    return [known, *parts]


class Runner:
    """One stage's optimisers with their state in a file, saved every minute of the process's time."""

    def __init__(self, stage: Stage, model: nn.Module, file: Path) -> None:
        self.stage, self.model, self.file = stage, model, file
        self.saved = time.process_time()
        found = torch.load(file) if file.exists() else {}
        self.finished: list[str] = found.get("finished", [])
        if found:
            model.load_state_dict(found["model"])
        if found.get("stage") == stage.name:
            stage.started = time.process_time() - found["seconds"]
            stage.steps, stage.mean_loss = found["steps"], found["mean_loss"]
            for (optimizer, _), state in zip(stage.optimizers, found["optimizers"], strict=True):
                optimizer.load_state_dict(state)

    def step(self, loss: Tensor) -> bool:
        """Whether there is another step."""
        self.stage.step(loss)
        done = self.stage.progress >= 1
        if done or time.process_time() - self.saved > 60:
            self.save(done)
        return not done

    def save(self, done: bool) -> None:
        stage = self.stage
        state: dict[str, Any] = {"model": self.model.state_dict(), "finished": [*self.finished, stage.name] if done else self.finished}
        if not done:
            optimizers = [optimizer.state_dict() for optimizer, _ in stage.optimizers]
            seconds = time.process_time() - stage.started
            state |= {"stage": stage.name, "seconds": seconds, "steps": stage.steps, "mean_loss": stage.mean_loss, "optimizers": optimizers}
        torch.save(state, self.file.with_suffix(".part"))
        os.replace(self.file.with_suffix(".part"), self.file)
        self.saved = time.process_time()


def states_of(learner: Student, pixels: Tensor, text: TextRows, depth: int | None = None) -> tuple[list[Tensor], int]:
    """The states before the first and after each of `depth` layers, (B, prefix + L, hidden), and the length of the prefix."""
    language = learner.language
    rows = len(pixels)
    before, after = (language.embed_tokens(torch.tensor(ids, dtype=torch.long)).expand(rows, -1, -1) for ids in learner.around())
    state = torch.cat([before, learner.visual(pixels), after, language.embed_tokens(text.tokens)], dim=1)
    prefix = state.shape[1] - text.tokens.shape[1]
    turns = language.rotary_emb(state, learner.positions(pixels, text.offset))
    mask = block_mask(text.segment, prefix)
    states = [state]
    for layer in language.layers[:depth]:
        state = layer(state, attention_mask=mask, position_embeddings=turns, prefix=prefix)
        states.append(state)
    return states, prefix


def likeness(own: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """Squared error over the teacher's mean square; (B, L, hidden), weight (B, L)."""
    error, size = (own - teacher).square().mean(dim=-1), teacher.square().mean(dim=-1)
    return (error * weight).sum() / (size * weight).sum()


class Lesson:
    """The demo as the teacher: its states beside the student's, at the same tokens."""

    def __init__(self, learner: Student, teacher: Student) -> None:
        self.learner, self.teacher = learner, teacher
        self.order, self.slots = learner.order(), learner.slots()

    def visual(self, pixels: Tensor) -> Tensor:
        """How unlike the demo's the visual tokens are."""
        with torch.no_grad():
            target = self.teacher.visual(pixels)[:, self.order]
        own = self.learner.visual(pixels)[:, self.slots]
        return likeness(own, target, objects(target))

    @torch.no_grad()
    def taught(self, pixels: Tensor, text: TextRows, depth: int | None = None) -> list[tuple[Tensor, Tensor]]:
        """The demo's states: of visual tokens, and of text."""
        states, prefix = states_of(self.teacher, pixels, text, depth)
        start = len(self.teacher.around()[0])
        return [(state[:, start:prefix][:, self.order], state[:, prefix:]) for state in states]

    def unlike(self, states: list[Tensor], prefix: int, taught: list[tuple[Tensor, Tensor]], text: TextRows) -> Tensor:
        """Mean over layers of what text and visual tokens differ by; the student's last states belong to the teacher's."""
        start = len(self.learner.around()[0])
        present = (text.segment > 0).float()
        weight = objects(taught[0][0])
        errors = []
        for state, (visual, words) in zip(states[-len(taught) :], taught, strict=True):
            own = state[:, start + self.slots]
            errors += [likeness(own, visual, weight), likeness(state[:, prefix:], words, present)]
        return torch.stack(errors).mean()


def objects(visual: Tensor) -> Tensor:
    """More weight on the tokens that differ from the picture's usual one, the background; (B, V)."""
    usual = visual.median(dim=1, keepdim=True).values
    distance = (visual - usual).square().mean(dim=-1)
    return 1 + (OBJECT_WEIGHT - 1) * (distance / distance.amax(dim=1, keepdim=True))


def train_eyes(learner: Student, lesson: Lesson, pictures: Pictures, options: argparse.Namespace, log: Callable[[str], None]) -> None:
    """The tower learns to give the language model what the demo's tower does; a weak one, with the first language layers."""
    new_layers = len(learner.language.layers) - LAYERS
    parts: list[nn.Module] = [learner.tower, learner.projector, *learner.language.layers[:new_layers]]
    parameters = list({id(parameter): parameter for part in parts for parameter in part.parameters()}.values())
    flat, matrices = _by_shape(parameters)
    stage = Stage("eyes", flat, 2e-3, options.eyes_minutes, log, time.process_time)
    stage.add_muon(matrices, 1e-2)
    runner = Runner(stage, learner.model, options.state)
    source = Random(f"eyes/{options.seed}/{stage.steps}")
    for indices in batches(len(pictures.scenes), options.eyes_rows, options.seed + stage.steps):
        pixels = pictures.pixels[indices]
        if new_layers:
            text = _text(learner, pictures, indices, source, 4)
            states, prefix = states_of(learner, pixels, text, new_layers)
            loss = lesson.unlike(states, prefix, lesson.taught(pixels, text, 0), text)
        else:
            loss = lesson.visual(pixels)
        if not runner.step(loss):
            break


def _by_shape(parameters: list[nn.Parameter]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    return [parameter for parameter in parameters if parameter.ndim != 2], [parameter for parameter in parameters if parameter.ndim == 2]


def _text(learner: Student, pictures: Pictures, indices: Tensor, source: Random, count: int) -> TextRows:
    asked = [pictures.questions.questions(pictures.scenes[index], source, count) for index in indices.tolist()]
    return pack(learner.untrained.tokenizer, asked)


def train_language(learner: Student, lesson: Lesson, food: list[Pictures], options: argparse.Namespace, log: Callable[[str], None]) -> None:
    """Answers, and the demo's states where the demo knows such pictures."""
    language = learner.language
    flat, matrices = _by_shape([*learner.projector.parameters(), *language.layers.parameters()])
    words = [*language.embed_tokens.parameters(), *language.norm.parameters(), *learner.model.lm_head.parameters()]
    stage = Stage("language", [*words, *flat], options.rate, options.language_minutes, log, time.process_time)
    stage.add_muon(matrices, options.muon_rate)
    inside = {id(parameter) for parameter in learner.projector.parameters()}
    stage.add_adamw([parameter for parameter in learner.tower.parameters() if id(parameter) not in inside], options.tower_rate)
    runner = Runner(stage, learner.model, options.state)
    source = Random(f"questions/{options.seed}/{stage.steps}")
    meals = [batches(len(part.scenes), options.rows, options.seed + stage.steps) for part in food]
    scores = {"answers": 0.0, "states": 0.0}
    while True:
        number = source.choices(range(len(food)), [part.share for part in food])[0]
        pictures, indices = food[number], next(meals[number])
        pixels, text = pictures.pixels[indices], _text(learner, pictures, indices, source, QUESTIONS)
        states, prefix = states_of(learner, pixels, text)
        loss = answer_loss(learner, states[-1][:, prefix:], text)
        scores["answers"] += 0.05 * (loss.item() - scores["answers"])
        if pictures.taught and options.likeness:
            unlike = lesson.unlike(states, prefix, lesson.taught(pixels, text), text)
            scores["states"] += 0.05 * (unlike.item() - scores["states"])
            loss = loss + options.likeness * unlike
        if not runner.step(loss):
            break
        if stage.steps % 50 == 0:
            log(f"answers {scores['answers']:.4f} states {scores['states']:.4f}")


def answer_loss(learner: Student, states: Tensor, text: TextRows) -> Tensor:
    """Cross entropy of the answers."""
    scored = text.labels != IGNORED
    logits = learner.model.lm_head(learner.language.norm(states[scored]))
    return functional.cross_entropy(logits, text.labels[scored])


def train_harder_eyes(learner: Student, options: argparse.Namespace, log: Callable[[str], None]) -> None:
    """The demo's own first two stages on harder pictures."""
    pool = build_pool(options.pictures, options.seed, harder.random_scene, (*SHAPES, *LETTERS))
    if options.tower:
        learner.tower.load_state_dict(torch.load(options.tower))
    else:
        train_vision(learner.model, pool, options.eyes_minutes, options.seed, log, time.process_time, torch.float32)
    learner.tower.requires_grad_(False)
    words = words_of(learner.model, learner.untrained.tokenizer)
    train_alignment(learner.model, words, pool, options.alignment_minutes, options.seed, log, time.process_time)
    learner.tower.requires_grad_(True)
    torch.save({"model": learner.model.state_dict(), "finished": ["eyes"]}, options.state)


def the_demo() -> Student:
    model = AutoModelForImageTextToText.from_pretrained(demo_folder(), dtype=torch.float32)
    processor = build_processor()
    return Student(Untrained(model, processor.tokenizer, {}, CHAT_TEMPLATE, processor.image_processor))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("name", choices=list(MODELS))
    parser.add_argument("--state", type=Path, required=True, help="where the training is kept while it runs")
    parser.add_argument("--output", type=Path, help="folder of the finished model (default: its place beside this file)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=12_000)
    parser.add_argument("--eyes-minutes", type=float, default=5.0)
    parser.add_argument("--eyes-rows", type=int, default=8)
    parser.add_argument("--tower", type=Path, help="weights of a vision tower that knows the harder pictures already")
    parser.add_argument("--alignment-minutes", type=float, default=0.7)
    parser.add_argument("--language-minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--muon-rate", type=float, default=MUON_RATE / 2)
    parser.add_argument("--tower-rate", type=float, default=3e-4)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--likeness", type=float, default=1.0, help="weight of the demo's states beside the answers")
    parser.add_argument("--questions", type=int, default=2000)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    log = lambda line: print(f"{time.process_time():7.1f} s  {line}", flush=True)  # noqa: E731
    AttentionInterface.register(TRAINING_ATTENTION, shared_prefix_attention)
    AttentionMaskInterface.register(TRAINING_ATTENTION, sdpa_mask)
    teacher, learner = the_demo(), student(options.name, options.seed)
    teacher.model.requires_grad_(False)
    inherit(learner, teacher.model)
    for one in (teacher, learner):
        one.language.set_attn_implementation(TRAINING_ATTENTION)
    output = options.output or folder(options.name)
    lesson = Lesson(learner, teacher)
    found = torch.load(options.state)["finished"] if options.state.exists() else []
    food = diet(options.name, options.pictures, options.seed)
    log(f"{sum(parameter.numel() for parameter in learner.model.parameters())} parameters")
    if "eyes" not in found:
        if options.name == "harder":
            train_harder_eyes(learner, options, log)
        else:
            train_eyes(learner, lesson, food[0], options, log)
    if "language" not in found:
        train_language(learner, lesson, food, options, log)
    learner.model.load_state_dict(torch.load(options.state)["model"])
    save(learner.untrained, output)
    results = {name: accuracy(output, name, options.questions, options.seed) for name in MODELS[options.name]}
    print(json.dumps(results), flush=True)


if __name__ == "__main__":
    main()
