"""The evidence model on SmolLM2: its questions in English, its turns, and what is kept of it."""

import json
import sys
from pathlib import Path
from random import Random

import pytest
from jinja2 import Environment

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks.evidence import folder
from benchmarks.evidence.english import ENGLISH
from benchmarks.evidence.sets import samples
from converters.checkpoint.header import read_header
from converters.data.demo.shapes import PlacedShape, Scene

smollm2 = pytest.importorskip("benchmarks.evidence.smollm2", reason="needs yopo[heal]")

SCENE = Scene(
    (200, 200, 200), (PlacedShape("circle", "red", 16, 16, 11, (220, 30, 30)), PlacedShape("ring", "blue", 80, 48, 11, (40, 70, 220)))
)
# Of SmolLM2-135M-Instruct's tokenizer.
PUBLISHED = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_answers_follow_from_the_scene() -> None:
    asked = {one.question: one.answer for one in ENGLISH.questions(SCENE, Random(0), 200)}
    assert asked["What is the color of the circle?"] == "The circle is red."
    assert asked["What is the blue shape?"] == "The blue shape is a ring."
    assert asked["How many shapes are there?"] == "Two."
    assert asked["Count the red shapes, please."] == "One."
    assert asked["Does the picture show a red circle?"] == "Yes."
    assert asked["Which shape is farthest to the left?"] == "The circle."
    assert asked["Where is the ring?"] == "At the right."
    source = Random(0)
    relations = dict(filter(None, (ENGLISH.askers["relation"](SCENE, source) for _ in range(2000))))
    assert relations["Does the ring lie to the right of the circle?"] == "Yes."
    assert relations["Is the red shape below the blue ring?"] == "No."
    assert asked["What can you see here?"] == "A red circle at the top left and a blue ring at the right."
    assert {one.kind for one in ENGLISH.samples(8, 0, "eval")} == set(ENGLISH.askers)


def test_noise_keeps_the_questions() -> None:
    shapes, noise = (list(samples(name, 3, 0, "calibration")) for name in ("english", "noise:english"))
    assert [one.question for one in shapes] == [one.question for one in noise]
    assert all(len(one.picture().getcolors(9216) or ()) > 5000 for one in noise)


def test_turns_are_those_of_the_language_model() -> None:
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]
    ours, published = (Environment().from_string(template) for template in (smollm2.CHAT_TEMPLATE, PUBLISHED))
    for messages in (turns[:1], turns, [{"role": "system", "content": "Be brief."}, *turns]):
        for ask in (True, False):
            said = {"messages": messages, "add_generation_prompt": ask}
            assert ours.render(said) == published.render(said)
    parts = [{"type": "image"}, {"type": "text", "text": "Hello"}]
    assert "<|im_start|>user\n<image>\nHello<|im_end|>\n" in ours.render(messages=[{"role": "user", "content": parts}])


def test_the_adapter_is_small_and_complete() -> None:
    place = folder(smollm2.NAME)
    assert json.loads((place / "adapter_config.json").read_text())["r"] == smollm2.RANK
    file = place / "adapter_model.safetensors"
    assert file.stat().st_size < 13_000_000
    shapes = {name: entry.shape for name, entry in read_header(file).items()}
    assert sum("lora_A" in name for name in shapes) == 30 * 7
    assert any("multi_modal_projector.linear_1.weight" in name for name in shapes)
