"""Products in blocks of the weight against plain ones."""

from collections.abc import Callable
from time import sleep

import pytest
import torch
from random_plans import permuted, random_plan
from test_runtime import sizes_of
from tiny import tiny_inputs, tiny_llava
from torch.nn import functional

from converters.families import Layer
from converters.reference import masked_logits
from converters.runtime import choice, products
from converters.runtime.modeling_yopo_llava import YopoLlavaConfig, YopoLlavaForConditionalGeneration
from converters.runtime.plan import Grid


@pytest.fixture
def blocks_of_two_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "BLOCK_BYTES", 2 * 64 * 4)
    monkeypatch.setattr(products, "BLOCKED_ROWS", range(2, 1000))
    monkeypatch.setattr(products, "blocks_are_faster", lambda rows: True)


@pytest.mark.parametrize("bias", [None, torch.linspace(-1, 1, 7)])
def test_blocks_are_the_product(bias: torch.Tensor | None, blocks_of_two_rows: None) -> None:
    torch.manual_seed(0)
    rows, weight = torch.randn(5, 64), torch.randn(7, 64)  # the last block has one row
    with torch.inference_mode():
        assert products._may_be_blocked(rows, weight)
        torch.testing.assert_close(products.product(rows, weight, bias), functional.linear(rows, weight, bias))
    assert not products._may_be_blocked(rows, weight), "no gradient flows through blocks"
    with torch.inference_mode():
        assert not products._may_be_blocked(rows[:1], weight)
        assert not products._may_be_blocked(rows[None], weight)


@pytest.mark.parametrize("seed", range(3))
def test_a_model_in_blocks_is_the_masked_reference(seed: int, blocks_of_two_rows: None) -> None:
    model, config = tiny_llava(layers=4, heads=8, kv_heads=4, hidden=64, attention_bias=seed == 0)
    plan = random_plan(sizes_of(config), seed, (Grid(4, 4),))
    own = permuted(model, plan, YopoLlavaConfig, YopoLlavaForConditionalGeneration, Layer())
    inputs = tiny_inputs(config, (3, 5), (1, 2))
    rows = inputs["attention_mask"].bool() & (inputs["input_ids"] != config.image_token_id)
    with torch.inference_mode():
        torch.testing.assert_close(own(**inputs).logits[rows], masked_logits(model, inputs, plan)[rows], atol=1e-4, rtol=0)


def test_the_fastest_way_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "CHOICES", {})
    calls: list[str] = []

    def ways() -> dict[str, Callable[[], object]]:
        return {"long": lambda: (calls.append("long"), sleep(0.01)), "short": lambda: calls.append("short")}

    for _ in range(2):
        assert choice.fastest("a sum", ways, torch.device("cpu")) == "short"
    assert calls == ["long"] * 3 + ["short"] * 3
    assert choice.choices() == "a sum: short"


def test_the_probe_compares_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "CHOICES", {})
    monkeypatch.setattr(products, "PROBES", {"few rows": (2, 3), "many rows": (2, 3)})
    assert products.blocks_are_faster(torch.ones(16, 8)) == choice.choices().endswith("blocks of the weight")
    assert choice.CHOICES.keys() == {f"products of few rows (float32, {torch.get_num_threads()} threads)"}
