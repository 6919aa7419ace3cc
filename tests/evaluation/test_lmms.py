"""The model class for lmms-eval, where that is installed: both sides in one pass, and nothing asked twice."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("lmms_eval")

from converters.data.demo.sets import samples
from converters.evaluation.lmms import Yopo, manifest


def requests(count: int) -> tuple[list[Any], dict[str, Any]]:
    """What lmms-eval asks of a model: each question as a message with its picture."""
    found = list(samples("demo", count, 0, "eval"))

    def messages(document: Any) -> list[dict[str, Any]]:
        content = [{"type": "image", "url": document.image}, {"type": "text", "text": document.question}]
        return [{"role": "user", "content": content}]

    settings = {"max_new_tokens": 4, "until": ["</s>", "\n"]}
    asked = [SimpleNamespace(args=("", messages, settings, place, "demo", "test")) for place in range(count)]
    return asked, {"demo": {"test": found}}


def test_both_sides_in_one_pass(converted_demo: Path, tmp_path: Path) -> None:
    record = str(tmp_path / "answers.jsonl")
    asked, documents = requests(5)
    answers = {}
    for side in ("pruned", "dense"):
        model = Yopo(pretrained=str(converted_demo), device="cpu", batch_size=2, record=record, side=side)
        model.task_dict = documents
        answers[side] = [one.text for one in model.generate_until(asked)]
        model.group = SimpleNamespace(names=model.group.names, open=None)  # whoever is asked again would need it
        assert [one.text for one in model.generate_until(asked)] == answers[side]
    truth = [one.answer for one in documents["demo"]["test"]]
    assert sum(said == right for said, right in zip(answers["dense"], truth, strict=True)) >= 4
    assert manifest().model_id == "yopo"


def test_a_side_that_is_not_there(converted_demo: Path) -> None:
    with pytest.raises(ValueError, match="side=both: this model has dense, pruned"):
        Yopo(pretrained=str(converted_demo), device="cpu", side="both")
