"""Every way of a product, and a model whose products go by it, against the plain one."""

from collections.abc import Callable
from time import sleep

import pytest
import torch
from support.random_plans import permuted, random_plan
from support.tiny import tiny_inputs, tiny_llava
from support.tiny_runtime import sizes_of
from torch.nn import functional

from converters.evaluation.reference import masked_logits
from converters.families import Layer
from converters.runtime import autotune as choice
from converters.runtime import chunking as pieces
from converters.runtime import matmul as products
from converters.runtime.modeling_yopo_llava import YopoLlavaConfig, YopoLlavaForConditionalGeneration
from converters.runtime.plan import Grid


@pytest.fixture(params=products.WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if "oneDNN" in request.param and not products._has_onednn(torch.bfloat16):
        pytest.skip("no oneDNN here")
    monkeypatch.setattr(products, "LARGE_BYTES", 1)
    monkeypatch.setattr(products, "BLOCK", 3)
    monkeypatch.setattr(products, "_way", lambda rows, weight: request.param)
    monkeypatch.setattr(pieces, "PIECE_BYTES", 512)
    return str(request.param)


@pytest.mark.parametrize("few", [2, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [None, torch.linspace(-1, 1, 7)])
def test_every_way_is_the_product(
    way: str, bias: torch.Tensor | None, dtype: torch.dtype, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "FEW_ROWS", few)
    torch.manual_seed(0)
    wide, weight = torch.randn(5, 70, dtype=dtype), torch.randn(7, 64, dtype=dtype)
    bias = bias if bias is None else bias.to(dtype)
    for rows in (wide[:, :64].contiguous(), wide[:, 6:], wide[:, 6:].t().contiguous().t(), wide[:1, :64]):
        expected = functional.linear(rows, weight, bias)
        with torch.inference_mode():
            assert products._has_ways(rows, weight)
            torch.testing.assert_close(products.product(rows, weight, bias), expected)
            total = torch.ones(len(rows), 7, dtype=dtype)
            assert products.added(total, rows, weight, bias) is total
            torch.testing.assert_close(total, 1 + expected, atol=1e-2 if dtype == torch.bfloat16 else 1e-5, rtol=1e-2)
    assert not products._has_ways(wide, weight), "gradients flow through plain products"


def test_a_head_gives_logits_of_any_shape(way: str) -> None:
    head, rows = products.Head(8, 11), torch.randn(2, 3, 8)
    expected = functional.linear(rows, head.weight, head.bias)
    for some in (slice(None), slice(-1, None), slice(0, 0)):
        with torch.inference_mode():
            torch.testing.assert_close(head(rows[:, some]), expected[:, some])


def test_many_rows_are_added_in_place() -> None:
    torch.manual_seed(0)
    rows, weight, bias, total = torch.randn(5, 8), torch.randn(7, 8), torch.randn(7), torch.randn(5, 7)
    expected = total + functional.linear(rows, weight, bias)
    assert products.added(total, rows, weight, bias) is total
    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize("seed", range(3))
def test_a_model_by_every_way_is_the_masked_reference(seed: int, way: str) -> None:
    model, config = tiny_llava(layers=4, heads=8, kv_heads=4, hidden=64, attention_bias=seed == 0)
    plan = random_plan(sizes_of(config), seed, (Grid(4, 4),))
    own = permuted(model, plan, YopoLlavaConfig, YopoLlavaForConditionalGeneration, Layer())
    inputs = tiny_inputs(config, (3, 5), (1, 2))
    rows = inputs["attention_mask"].bool() & (inputs["input_ids"] != config.image_token_id)
    with torch.inference_mode():
        torch.testing.assert_close(own(**inputs).logits[rows], masked_logits(model, inputs, plan)[rows], atol=1e-4, rtol=0)


def test_pieces_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 3 * 2 * 4)
    one, other = torch.randn(7, 2), torch.randn(7, 1)
    for context in (torch.inference_mode, torch.enable_grad):
        with context():
            assert pieces.by_pieces(torch.add, one, other).equal(one + other)


def test_the_fastest_way_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "CHOICES", {})
    calls: list[str] = []

    def ways() -> dict[str, Callable[[], object]]:
        return {"long": lambda: (calls.append("long"), sleep(0.01)), "short": lambda: calls.append("short")}

    for _ in range(2):
        assert choice.fastest("a sum", ways, torch.device("cpu")) == "short"
    assert calls == ["long", "short"] * 5
    assert choice.choices() == "a sum: short"


@pytest.mark.parametrize(("seconds", "chosen"), [((1.0, 0.98, 0.99), "usual"), ((1.0, 0.94, 0.93), "third"), ((1.0, 2.0, 3.0), "usual")])
def test_the_usual_way_stays_unless_another_is_clearly_faster(
    seconds: tuple[float, ...], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "CHOICES", {})
    names = ("usual", "second", "third")
    monkeypatch.setattr(choice, "_measured", lambda ways, device: dict(zip(names, seconds, strict=True)))
    assert choice.fastest("a sum", lambda: dict.fromkeys(names, lambda: None), torch.device("cpu")) == chosen
    assert choice.CHOICES["a sum"] == dict(zip(names, seconds, strict=True))


def test_the_ways_are_compared_for_each_number_of_rows_and_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "CHOICES", {})
    monkeypatch.setattr(products, "LARGE_BYTES", 1)
    monkeypatch.setattr(products, "FEW_ROWS", 32)
    wide, deep = torch.ones(8, 4), torch.ones(4, 8)
    with torch.inference_mode():
        for count, weight in ((16, wide), (1, wide), (13, wide), (16, deep), (17, wide), (33, wide), (50, wide)):
            products.product(torch.ones(count, weight.shape[1]), weight)
    threads = f"(float32, {torch.get_num_threads()} threads)"
    sizes = ["up to 16 rows, wide", "one row, wide", "up to 16 rows, deep", "up to 32 rows, wide", "many rows, wide"]
    assert list(choice.CHOICES) == [f"products of {size} weights {threads}" for size in sizes]
    assert "weight first" not in choice.CHOICES[f"products of many rows, wide weights {threads}"], "its result would have to be turned"
