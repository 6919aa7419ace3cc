"""Which weights visual rows have of their own, and how they are read."""

from dataclasses import replace

import pytest
import torch

from converters.errors import YopoError
from converters.runtime.plan import Grid, LayerPlan, Plan, Sizes
from converters.serving.projections import Reading, VisualProjections, sources
from converters.serving.work import LayerWork, Range, layer_works

SIZES = Sizes(8, 6, 2, 4, 2, 2)
LAST = LayerPlan((0, 1, 2, 3), (), ())


def first(layer: LayerPlan, refitted: bool = False) -> LayerWork:
    return layer_works(Plan(SIZES, (layer, LAST), (Grid(2, 2),)), (0,) if refitted else ())[0]


def names(work: LayerWork) -> list[str]:
    return sorted(sources(work, SIZES.head_dim))


def test_what_is_done_as_text_does_it_needs_no_copy() -> None:
    every = (0, 1, 2, 3), tuple(range(6))
    assert names(first(LayerPlan(every[0], *every))) == []
    assert names(first(LayerPlan((), (), every[1]))) == []
    assert names(first(LayerPlan(every[0], (), every[1]))) == ["key", "value"]


def test_a_refit_is_not_what_text_does() -> None:
    work = first(LayerPlan((0, 1, 2, 3), (0, 1, 2, 3), (), kv_rank=3), refitted=True)
    assert names(work) == ["inner", "key", "query", "value"]
    assert {part.module for parts in sources(work, 2).values() for part in parts} == {
        f"self_attn.visual_{kind}_proj" for kind in ("kv", "k", "v", "q")
    }


def test_parts_of_a_layer_are_copied_row_by_row() -> None:
    """Query head 3, of KV head 1, which comes first in the file: place 0 of the queries; neurons 1 and 4 lead."""
    work = first(LayerPlan((2, 3), (3,), (1, 4)))
    assert (work.visual_kv_heads, work.computing, work.neurons) == (1, (0,), 2)
    own = VisualProjections(work, SIZES)
    generator = torch.Generator().manual_seed(0)
    shapes = {"self_attn.q_proj": (8, 8), "self_attn.k_proj": (4, 8), "self_attn.v_proj": (4, 8), "self_attn.o_proj": (8, 8)}
    shapes |= {"mlp.gate_proj": (6, 8), "mlp.up_proj": (6, 8), "mlp.down_proj": (8, 6)}
    file = {f"text.layers.0.{name}.weight": torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    file["text.layers.0.self_attn.k_proj.bias"] = torch.arange(4.0)
    reading = Reading({0: own}, (work,), 2, "text.")
    assert [name for name, _ in reading.through(file.items())] == list(file)
    weight = {name: file[f"text.layers.0.{name}.weight"] for name in shapes}
    assert own.key.weight.equal(weight["self_attn.k_proj"][:2])
    assert own.key.bias.tolist() == [0.0, 1.0]
    assert own.value.bias.tolist() == [0.0, 0.0]
    assert own.query.weight.equal(weight["self_attn.q_proj"][:2])
    assert own.output.weight.equal(weight["self_attn.o_proj"][:, :2])
    assert own.gate_up.weight.equal(torch.cat([weight["mlp.gate_proj"][:2], weight["mlp.up_proj"][:2]]))
    assert own.down.weight.equal(weight["mlp.down_proj"][:, :2])


def test_a_weight_that_is_not_there() -> None:
    work = first(LayerPlan((0, 1, 2, 3), (), ()))
    reading = Reading({0: VisualProjections(work, SIZES)}, (work,), 2, "text.")
    packed = {"text.layers.0.self_attn.k_proj.weight_packed": torch.zeros(1)}
    with pytest.raises(YopoError, match=r"Visual tokens need text.layers.0.self_attn.k_proj.weight, which is not in the checkpoint"):
        list(reading.through(packed.items()))


def quantised(scale: torch.Tensor, weight: torch.Tensor) -> tuple[VisualProjections, Reading, dict[str, torch.Tensor]]:
    """A frozen layer, whose keys are in eight bits in the file."""
    work = first(LayerPlan((0, 1, 2, 3), (), ()))
    own, module = VisualProjections(work, SIZES), "text.layers.0.self_attn."
    file = {f"{module}k_proj.weight_scale": scale, f"{module}k_proj.weight": weight, f"{module}v_proj.weight": torch.ones(4, 8)}
    return own, Reading({0: own}, (work,), 2, "text."), file


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn])
def test_copies_of_weights_in_eight_bits(kind: torch.dtype) -> None:
    """Steps of 1/2 in the first output and of 2 in the others."""
    own, reading, file = quantised(torch.tensor([[0.5], [2], [2], [2]]), torch.tensor([[3.0] * 8, *[[-7.0] * 8] * 3]).to(kind))
    assert [name for name, _ in reading.through(file.items())] == list(file)
    assert own.key.weight[:, 5].tolist() == [1.5, -14, -14, -14]
    assert own.value.weight.eq(1).all()


@pytest.mark.parametrize(("scale", "weight"), [((4, 2), torch.int8), ((4, 1), torch.uint8)])
def test_weights_of_which_no_copy_can_be_made(scale: tuple[int, int], weight: torch.dtype) -> None:
    _, reading, file = quantised(torch.ones(scale), torch.ones(4, 8, dtype=weight))
    with pytest.raises(YopoError, match=r"Visual tokens need text.layers.0.self_attn.k_proj.weight, which is torch") as refused:
        list(reading.through(file.items()))
    assert "without zero points" in str(refused.value.hint)


def test_copies_of_packed_weights() -> None:
    """Eight numbers of four bits are one of 32: -8 to -1 in the first output, 0 to 7 in the others; steps of 1, then of 1/4."""
    packed = torch.tensor([[0x76543210], *[[0xFEDCBA98 - 2**32]] * 3], dtype=torch.int32)
    own, reading, file = quantised(torch.tensor([[1.0, 0.25]] * 4), torch.ones(0))
    module = "text.layers.0.self_attn.k_proj."
    file |= {f"{module}weight_packed": packed, f"{module}weight_shape": torch.tensor([4, 8])}
    file.pop(f"{module}weight")
    list(reading.through(file.items()))
    assert own.key.weight[0].tolist() == [-8, -7, -6, -5, -1, -0.75, -0.5, -0.25]
    assert own.key.weight[3].tolist() == [0, 1, 2, 3, 1, 1.25, 1.5, 1.75]


@pytest.mark.parametrize("kind", ["weight_zero_point", "weight_g_idx", "qweight"])
def test_quantised_weights_that_are_not_read(kind: str) -> None:
    _, reading, file = quantised(torch.ones(4, 1), torch.ones(4, 8, dtype=torch.int8))
    with pytest.raises(YopoError, match=rf"Visual tokens need text.layers.0.self_attn.k_proj.weight, which has a {kind}"):
        list(reading.through({f"text.layers.0.self_attn.k_proj.{kind}": torch.ones(1), **file}.items()))


def test_a_weight_without_its_scale() -> None:
    _, reading, file = quantised(torch.ones(4, 1), torch.ones(4, 8, dtype=torch.int8))
    file.pop("text.layers.0.self_attn.k_proj.weight_scale")
    with pytest.raises(YopoError, match=r"k_proj.weight, which is not in the checkpoint"):
        list(reading.through(file.items()))


def test_products_that_an_engine_takes_over() -> None:
    """All but K and V that are in parts of different strides, of which some outputs alone are asked for."""
    every = LayerPlan((0, 1, 2, 3), (3,), (1, 4))
    whole = VisualProjections(first(every), SIZES)
    assert len(list(whole.taken_whole())) == len(list(whole.children())) == 6
    in_parts = VisualProjections(replace(first(every), parts=(Range(0, 1, 1), Range(1, 2, 2))), SIZES)
    assert {id(one) for one in in_parts.children()} - {id(one) for one in in_parts.taken_whole()} == {id(in_parts.key), id(in_parts.value)}
    whole.query.multiply = lambda rows, weight, bias: rows + 1
    assert whole.query(torch.ones(3, 8)).eq(2).all()
    assert whole.query(torch.ones(0, 8)).shape == (0, 2)
