"""`dense()`: nested, in threads, and in an export as in a model."""

from pathlib import Path
from threading import Thread
from typing import Any

import torch
from support.tiny import tiny_inputs, tiny_llava
from support.tiny_runtime import converted, random_plan

from converters.export.onnx.session import Exported
from converters.runtime.switch import is_off, switched_off


def test_an_inner_context_does_not_end_the_outer_one() -> None:
    one, other = object(), object()
    with switched_off(one):
        with switched_off(one), switched_off(other):
            assert is_off(one)
            assert is_off(other)
        assert is_off(one)
        assert not is_off(other)
    assert not is_off(one)


def test_other_threads_stay_pruned() -> None:
    model, config = tiny_llava()
    own, inputs = converted(model, random_plan(config, 1)), tiny_inputs(config, (3, 5))
    seen: dict[str, Any] = {}

    def run() -> None:
        with torch.inference_mode():
            seen["logits"] = own(**inputs).logits

    with torch.inference_mode():
        expected = own(**inputs).logits
        with own.dense():
            thread = Thread(target=run)
            thread.start()
            thread.join()
            dense = own(**inputs).logits
    assert seen["logits"].equal(expected)
    assert not dense.equal(expected)


def test_an_export_is_switched_the_same_way() -> None:
    opened: Any = Exported(Path("nowhere"), manifest=None)  # type: ignore[arg-type]
    with opened.dense():
        with opened.dense():
            pass
        assert not opened.pruned
    assert opened.pruned


def test_a_healed_projector_gives_way_to_its_base() -> None:
    model, config = tiny_llava()
    own, inputs = converted(model, random_plan(config, 1)), tiny_inputs(config, (3, 5))
    with torch.inference_mode(), own.dense():
        expected = own(**inputs).logits
    own.config.yopo["base_projector"] = True
    own.keep_base_projector()
    with torch.inference_mode():
        before = own(**inputs).logits
        own.model.multi_modal_projector.linear_2.weight.mul_(1.5)
        assert not own(**inputs).logits.equal(before)
        with own.dense():
            assert own(**inputs).logits.equal(expected)
