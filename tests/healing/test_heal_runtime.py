"""The pruned forward pass can be trained through: its gradients are those of the masked reference, strips, offsets and splits included."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import save_model
from support.conversions import load, provenance, text_rows
from support.random_plans import random_plan
from support.tiny import tiny_inputs
from support.tiny_families import internvl_inputs, qwen_inputs, tiny_internvl, tiny_qwen

from converters.checkpoint.convert import convert
from converters.checkpoint.reader import open_checkpoint
from converters.evaluation.reference import masked_logits
from converters.runtime.plan import Grid, LayerPlan, Plan

EVERY = tuple(range(4))


def gradients(model: Any, logits: torch.Tensor, rows: torch.Tensor) -> list[torch.Tensor]:
    """Gradients of a scalar that every text row's every logit takes part in, with respect to the projector."""
    model.zero_grad()
    weights = torch.linspace(-1, 1, logits[rows].numel()).view(logits[rows].shape)
    (logits[rows].log_softmax(-1) * weights).sum().backward()
    return [parameter.grad.clone() for parameter in model.get_submodule(model.projector).parameters()]


def assert_same_gradients(model: Any, inputs: Any, rows: torch.Tensor) -> None:
    with torch.inference_mode():
        model(**inputs)  # what a first run keeps must not be in the way of a backward pass
    expected = gradients(model, masked_logits(model, inputs), rows)
    assert all(gradient.abs().max() > 1e-3 for gradient in expected)
    for model.model.language_model.recomputing in (False, True):
        for found, wanted in zip(gradients(model, model(**inputs, use_cache=False).logits, rows), expected, strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-4 * float(wanted.abs().max()), rtol=1e-3)


@pytest.mark.parametrize("window", [None, 3])
def test_strips_offsets_and_split_weights(tmp_path: Path, window: int | None) -> None:
    save_model(tmp_path / "dense", layers=3)
    checkpoint = open_checkpoint(tmp_path / "dense")
    layers = (LayerPlan((0, 2, 3), (1, 2), (3, 4, 40), window), LayerPlan(EVERY, (0,), (), window, 3), LayerPlan((1, 2), (), (), None, 2))
    plan = Plan(checkpoint.sizes, layers, (Grid(4, 4),))
    model = load(convert(checkpoint, plan, tmp_path / "out", provenance(tmp_path / "dense")))
    inputs = tiny_inputs(model.config, (3, 5), (1, 2))
    assert_same_gradients(model, inputs, text_rows(inputs))


@pytest.mark.parametrize("family", ["qwen", "phi3", "qwen3"])
def test_other_families(tmp_path: Path, family: str) -> None:
    dense = tiny_qwen() if family == "qwen" else tiny_internvl(family)
    inputs = qwen_inputs([(1, 3, 4)], [(1, 2, 2)])[0] if family == "qwen" else internvl_inputs(1, 2)
    dense.save_pretrained(tmp_path / "dense")
    checkpoint = open_checkpoint(tmp_path / "dense")
    plan = random_plan(checkpoint.sizes, 3, (Grid(4, 4),))
    model = load(convert(checkpoint, plan, tmp_path / "out", provenance(tmp_path / "dense")))
    assert_same_gradients(model, inputs, text_rows(inputs))
