"""What people do with any model of transformers: losses, outputs, caches, ways of generating, compiling, placing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny import tiny_inputs, tiny_llava
from support.tiny_runtime import converted, random_plan, sizes_of, text_rows
from torch.nn import functional

from converters.runtime.outputs import CACHE, IGNORED, labels_with_logits
from converters.runtime.plan import Grid, dense_plan


def dense_and_pruned(seed: int | None = 3) -> tuple[Any, Any, Any]:
    """A dense model, the same under a random plan (None: under one that prunes nothing), and their config."""
    model, config = tiny_llava(layers=3, heads=8, hidden=64)
    plan = dense_plan(sizes_of(config), (Grid(4, 4),)) if seed is None else random_plan(config, seed)
    return model, converted(model, plan), config


def test_labels_that_nothing_predicts_are_left_out() -> None:
    logits = torch.ones(1, 5, 3)
    logits[0, 1:3] = 0  # visual tokens
    labels = torch.tensor([[7, 8, 9, 10, 11]])
    assert labels_with_logits(labels, logits).tolist() == [[7, 8, IGNORED, IGNORED, 11]]
    assert labels_with_logits(labels, logits, shifted=True).tolist() == [[7, IGNORED, IGNORED, 10, 11]]


@torch.no_grad()
def test_the_loss_is_the_dense_models_where_there_are_logits() -> None:
    model, own, config = dense_and_pruned(None)
    inputs = tiny_inputs(config, (3, 5), (1, 2))
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, IGNORED)
    predicting = text_rows(inputs, config)[:, :-1]
    logits, following = model(**inputs).logits[:, :-1][predicting], labels[:, 1:][predicting]
    expected = functional.cross_entropy(logits, following)
    torch.testing.assert_close(own(**inputs, labels=labels).loss, expected, atol=1e-5, rtol=1e-5)
    count = torch.tensor(len(following) * 2)
    torch.testing.assert_close(own(**inputs, labels=labels, num_items_in_batch=count).loss, expected / 2, atol=1e-5, rtol=1e-5)
    with own.dense():
        torch.testing.assert_close(own(**inputs, labels=labels).loss, model(**inputs, labels=labels).loss, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["output_hidden_states", "output_attentions"])
def test_outputs_that_there_are_not_are_refused_through_every_door(name: str) -> None:
    _, own, config = dense_and_pruned()
    inputs = tiny_inputs(config, (3, 5))
    with pytest.raises(ValueError, match=f"{name} is not available"):
        own(**inputs, **{name: True})
    with pytest.raises(ValueError, match=f"{name} is not available"):
        own.generate(**inputs, max_new_tokens=2, return_dict_in_generate=True, **{name: True})
    if name == "output_attentions":
        return  # a config refuses them under SDPA
    for part in (own.config, own.config.text_config):
        setattr(part, name, True)
        with pytest.raises(ValueError, match=f"{name} is not available"):
            own(**inputs)
        with torch.no_grad(), own.dense():
            assert own(**inputs).logits is not None
        setattr(part, name, False)


def test_calls_without_tokens_or_pixels_are_refused() -> None:
    _, own, config = dense_and_pruned()
    inputs = dict(tiny_inputs(config, (3, 5), (1, 2)))
    with pytest.raises(ValueError, match=r"nothing to read: the tokens have the shape \(2, 0\)"):
        own(input_ids=inputs["input_ids"][:, :0])
    empty = {**inputs, "pixel_values": inputs["pixel_values"][:0]}
    for call in (own, lambda **given: own.generate(**given, max_new_tokens=2)):
        with pytest.raises(ValueError, match=r"hold no picture: their shape is \(0, 3, 16, 16\)"):
            call(**empty)
    with pytest.raises(ValueError, match="answers at text tokens"):
        own(**{**inputs, "attention_mask": torch.zeros_like(inputs["attention_mask"])})
    with torch.no_grad():  # a sample that is all padding is nobody's
        one = {**inputs, "attention_mask": inputs["attention_mask"] * torch.tensor([[1], [0]])}
        torch.testing.assert_close(own(**one).logits[0], own(**inputs).logits[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_caches() -> None:
    _, own, config = dense_and_pruned()
    inputs = tiny_inputs(config, (3, 5))
    assert own(**inputs)[CACHE].get_seq_length() == inputs["input_ids"].shape[1]
    assert own(**inputs, use_cache=False).get(CACHE) is None
    with pytest.raises(ValueError, match="plain DynamicCache, not in a StaticCache"):
        own.generate(**inputs, max_new_tokens=2, cache_implementation="static")


@torch.no_grad()
def test_a_dense_assistant_changes_nothing() -> None:
    model, own, config = dense_and_pruned()
    inputs = tiny_inputs(config, (3, 5))
    limits = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": [config.image_token_id]}
    expected = own.generate(**inputs, **limits)
    assert own.generate(**inputs, **limits, assistant_model=model).equal(expected)
    assert own.generate(**inputs, **limits, assistant_model=own).equal(expected)


@torch.no_grad()
def test_placed_by_accelerate(tmp_path: Path) -> None:
    _, own, config = dense_and_pruned()
    own.save_pretrained(tmp_path)
    inputs = tiny_inputs(config, (3, 5))
    for where in ("auto", {"": "cpu"}):
        placed = type(own).from_pretrained(tmp_path, device_map=where).eval()
        torch.testing.assert_close(placed(**inputs).logits, own(**inputs).logits, atol=1e-5, rtol=0)
    names = [f"model.{name}" for name in ("vision_tower", "multi_modal_projector")]
    names += [f"model.language_model.{name}" for name in ("embed_tokens", "norm", "rotary_emb")]
    spread = {**dict.fromkeys([*names, "lm_head"], "cpu"), "model.language_model.layers": "disk"}
    offloaded = type(own).from_pretrained(tmp_path, device_map=spread, offload_folder=tmp_path / "offloaded")
    for _ in range(2):
        torch.testing.assert_close(offloaded(**inputs).logits, own(**inputs).logits, atol=1e-5, rtol=0)
    assert all(weight.is_meta for weight in offloaded.model.language_model.layers.parameters())
    with own.dense(), offloaded.dense():
        torch.testing.assert_close(offloaded(**inputs).logits, own(**inputs).logits, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore")  # of the compiler's own, which differ between versions of PyTorch
def test_a_compiled_model_is_the_model() -> None:
    _, own, config = dense_and_pruned()
    inputs = tiny_inputs(config, (3, 5), (1, 2))
    compiled = torch.compile(own, backend="eager", dynamic=False)
    with torch.no_grad():
        torch.testing.assert_close(compiled(**inputs).logits, own(**inputs).logits, atol=1e-5, rtol=0)
        with own.dense():
            torch.testing.assert_close(compiled(**inputs).logits, own(**inputs).logits, atol=1e-5, rtol=0)
        torch.testing.assert_close(compiled(**inputs).logits, own(**inputs).logits, atol=1e-5, rtol=0)
