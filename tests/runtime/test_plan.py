"""The plan: its JSON form, every error, and its normal form."""

import json
from dataclasses import replace
from typing import Any

import pytest

from converters.runtime.plan import (
    Grid,
    LayerPlan,
    Plan,
    PlanError,
    Sizes,
    dense_plan,
    from_json,
    indices,
    normalise,
    ranges,
    to_json,
    validate,
)

SIZES = Sizes(hidden_size=8, intermediate_size=6, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=2)
GRIDS = (Grid(3, 4),)


def plan(*layers: LayerPlan, **changes: Any) -> Plan:
    return Plan(SIZES, layers, GRIDS, **changes)


EVERYTHING = LayerPlan((0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3, 4, 5))
NOTHING = LayerPlan((), (), ())
MIXED = plan(
    LayerPlan((0, 2, 3), (1,), (0, 1, 5), 3, 1, kv_rank=5),
    LayerPlan((2,), (), (4,), None, 4),
    NOTHING,
    locality="symmetric",
)


def test_json_round_trip() -> None:
    text = json.dumps(to_json(MIXED))
    assert from_json(json.loads(text)) == MIXED
    assert '"read_heads": "0,2-3"' in text


@pytest.mark.parametrize(("kept", "text"), [((), ""), ((4,), "4"), ((0, 1, 2, 5, 7, 8), "0-2,5,7-8")])
def test_ranges(kept: tuple[int, ...], text: str) -> None:
    assert ranges(kept) == text
    assert indices(text) == kept


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), 2, "schema is 2, this version reads 1"),
        (("colour",), 1, "the plan has an unknown key: colour"),
        (("layers", 1, "read_head"), "", "layer 1 has an unknown key: read_head"),
        (("layers", 0), [], "layer 0 is not an object"),
        (("layers", 0, "neurons"), "0-x", "'0-x' is not an index"),
        (("layers", 0, "neurons"), "2,1", "layer 0: neurons must be sorted, unique and within 0..5"),
        (("layers", 0, "neurons"), "0,2,1,3", "layer 0: neurons must be sorted"),
        (("layers", 0, "neurons"), "0,1,1", "layer 0: neurons must be sorted"),
        (("layers", 0, "neurons"), "6", "within 0..5"),
        (("layers", 2, "self_heads"), "4", "layer 2: self_heads must be sorted, unique and within 0..3"),
        (("layers", 0, "window"), 4, "layer 0: window is 4, not an odd number"),
        (("layers", 0, "read_stride"), 17, "layer 0: read_stride is 17, not within 1..16"),
        (("layers", 0, "read_stride"), "2", "a value of the wrong type"),
        (("layers", 0, "kv_rank"), 0, "layer 0: kv_rank is 0, not within 1.."),
        (("layers", 0, "self_phases"), 2, "layer 0 has an unknown key: self_phases"),
        (("layers",), [], "the plan has 0 layers, the model 3"),
        (("locality",), "both", "locality is 'both'"),
        (("grids",), [], "at least one reference grid"),
        (("grids",), [[0, 3, 1]], "at least one row"),
        (("window_frames",), 1, "the plan has an unknown key: window_frames"),
        (("sizes", "num_key_value_heads"), 3, "4 attention heads cannot share 3 KV heads"),
        (("sizes", "head_size"), 3, "sizes has an unknown key: head_size"),
    ],
)
def test_impossible_plans_are_named(path: tuple[Any, ...], value: Any, message: str) -> None:
    data = to_json(MIXED)
    place: Any = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(PlanError, match=message.replace("[", r"\[").replace("'", ".")):
        from_json(data)


@pytest.mark.parametrize("key", ["sizes", "layers", "locality"])
def test_a_missing_key_is_named(key: str) -> None:
    data = to_json(MIXED)
    del data[key]
    with pytest.raises(PlanError, match=f"lacks {key}"):
        from_json(data)


@pytest.mark.parametrize("data", [None, [], {}, {"layers": []}])
def test_other_json_is_not_a_plan(data: Any) -> None:
    with pytest.raises(PlanError, match="not a plan"):
        from_json(data)


def test_the_dense_plan_is_valid_and_reads_everywhere() -> None:
    dense = validate(dense_plan(SIZES, GRIDS))
    assert dense.visual_depth == 3
    assert dense.visual_tokens == 12


@pytest.mark.parametrize(
    ("layers", "depth"),
    [
        ((NOTHING,) * 3, 0),
        ((EVERYTHING, NOTHING, NOTHING), 1),
        ((NOTHING, EVERYTHING, LayerPlan((), (0,), (1,))), 2),
        ((EVERYTHING,) * 3, 3),
    ],
)
def test_visual_depth_is_the_last_layer_that_reads(layers: tuple[LayerPlan, ...], depth: int) -> None:
    assert plan(*layers).visual_depth == depth


def test_updates_that_nobody_reads_are_dropped() -> None:
    reading = replace(EVERYTHING, self_heads=(), neurons=())
    assert normalise(dense_plan(SIZES, GRIDS)).layers == (EVERYTHING, EVERYTHING, reading)
    assert normalise(plan(EVERYTHING, EVERYTHING, LayerPlan((), (0,), (1,), 5))).layers == (EVERYTHING, reading, NOTHING)


def test_fields_without_effect_take_their_default() -> None:
    frozen = LayerPlan((0,), (), (1,), window=5, read_stride=2)
    whole = LayerPlan((0,), (1,), (), window=None, read_stride=2)  # head 0 reads the KV head that self head 1 computes
    normal = normalise(plan(frozen, whole, EVERYTHING, locality="symmetric"))
    assert normal.layers[0] == replace(frozen, window=None)
    assert normal.layers[1] == replace(whole, read_stride=1)
    ranked = normalise(plan(*(replace(layer, kv_rank=3) for layer in (frozen, EVERYTHING, EVERYTHING, NOTHING))))
    assert [(layer.kv_rank, layer.ranked_queries) for layer in ranked.layers] == [(3, False), (3, True), (3, False), (None, False)]
    assert normal.locality == "causal"
    windowed = plan(replace(whole, window=5), EVERYTHING, EVERYTHING, locality="symmetric")
    assert normalise(windowed).locality == "symmetric"


def test_normalising_twice_changes_nothing() -> None:
    assert normalise(normalise(MIXED)) == normalise(MIXED)
