"""Which weights visual rows have of their own, and how they are read."""

import pytest
import torch

from converters.errors import YopoError
from converters.runtime.plan import Grid, LayerPlan, Plan, Sizes
from converters.serving.projections import Reading, VisualProjections, sources
from converters.serving.work import LayerWork, layer_works

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
