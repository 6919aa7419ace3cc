"""The ways by which people come to a model in transformers: nothing is asked, and the plan is obeyed."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoProcessor, pipeline

import yopo

QUESTION = "What color is the circle?"


@pytest.fixture(autouse=True)
def nobody_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*question: Any) -> str:
        raise AssertionError(f"asked: {question}")

    monkeypatch.setattr("builtins.input", refuse)


def test_a_pipeline_answers_as_ask_does(converted_demo: Path) -> None:
    image = Image.new("RGB", (96, 96), "red")
    ours = pipeline("image-text-to-text", model=str(converted_demo), trust_remote_code=True)
    assert ours.model.path_report().startswith("pruned")
    content = [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]
    (answer,) = ours(text=[{"role": "user", "content": content}], max_new_tokens=5, do_sample=False)
    assert answer["generated_text"][-1]["content"].strip() == yopo.ask(converted_demo, QUESTION, [image], max_new_tokens=5).text


@pytest.mark.parametrize("trust", [True, False])
def test_a_processor_needs_no_answer(converted_demo: Path, trust: bool) -> None:
    assert type(AutoProcessor.from_pretrained(converted_demo, trust_remote_code=trust)).__name__ == "LlavaProcessor"
