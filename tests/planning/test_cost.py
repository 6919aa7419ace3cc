"""Cost: published numbers, and counts made the slow way."""

from dataclasses import replace
from itertools import product

import pytest

from converters.planning.cost import (
    cost,
    dense_flops,
    dense_visual_flops,
    kv_cache_bytes,
    layer_cost,
    read_tokens,
    visible_pairs,
    window_pairs,
)
from converters.runtime.plan import Grid, LayerPlan, Plan, Sizes, dense_plan
from converters.runtime.stride import offset_of, offset_sizes, skew

LLAVA_7B = Sizes(4096, 11008, 32, 32, 32, 128)
LLAVA_13B = Sizes(5120, 13824, 40, 40, 40, 128)
INTERNVL2_8B = Sizes(4096, 14336, 32, 32, 8, 128)
QWEN2_VL_7B = Sizes(3584, 18944, 28, 28, 4, 128)
GRID = (Grid(24, 24),)
TILE = (Grid(16, 16),)


def freeze_all_read_all(sizes: Sizes, stride: int = 1, grids: tuple[Grid, ...] = GRID) -> Plan:
    layer = LayerPlan(tuple(range(sizes.num_attention_heads)), (), (), read_stride=stride)
    return Plan(sizes, (layer,) * sizes.num_hidden_layers, grids)


@pytest.mark.parametrize(("sizes", "tera"), [(LLAVA_7B, 7.634), (LLAVA_13B, 14.888)])
def test_dense_flops_are_the_published_ones(sizes: Sizes, tera: float) -> None:
    assert dense_visual_flops(sizes, GRID) / 1e12 == pytest.approx(tera, abs=5e-4)


def test_the_four_conventions() -> None:
    visual, total = dense_flops(LLAVA_7B, 576) / 1e12, dense_flops(LLAVA_7B, 576 + 64) / 1e12
    assert [round(flops, 2) for flops in (visual, visual / 2, total, total / 2)] == [7.63, 3.82, 8.5, 4.25]
    found = cost(dense_plan(LLAVA_7B, GRID), text_tokens=64)
    assert (found.visual_dense, found.total_dense) == (dense_flops(LLAVA_7B, 576), dense_flops(LLAVA_7B, 640))


def test_the_dense_plan_normalised_costs_less_than_dense() -> None:
    assert cost(dense_plan(LLAVA_7B, GRID)).share == pytest.approx(0.974, abs=5e-4)


def test_twelve_percent_of_visual_is_21_percent_of_total() -> None:
    found = cost(dense_plan(LLAVA_7B, GRID))
    text = found.total - found.visual
    assert (text + 0.12 * found.visual_dense) / found.total_dense == pytest.approx(0.21, abs=5e-3)


@pytest.mark.parametrize(
    ("sizes", "grids", "stride", "share"),
    [(LLAVA_7B, GRID, 1, 0.162), (LLAVA_7B, GRID, 2, 0.081), (INTERNVL2_8B, TILE, 1, 0.038), (QWEN2_VL_7B, TILE, 1, 0.016)],
)
def test_freeze_all_read_all(sizes: Sizes, grids: tuple[Grid, ...], stride: int, share: float) -> None:
    assert cost(freeze_all_read_all(sizes, stride, grids)).share == pytest.approx(share, abs=5e-4)


def test_the_published_13b_setting_is_28_6_percent() -> None:
    """Window 5, 30 heads, half of the neurons, 20 layers: said to be 25 %."""
    heads, neurons = tuple(range(30)), tuple(range(LLAVA_13B.intermediate_size // 2))
    layers = (LayerPlan(heads, heads, neurons, window=5),) * 20 + (LayerPlan((), (), ()),) * 20
    published = Plan(LLAVA_13B, layers, GRID, locality="symmetric")
    # Visual tokens are updated in the last of these layers as well, which nobody reads: counted here, left out by `cost`.
    executed = sum(layer_cost(layer, index, published).total for index, layer in enumerate(layers))
    assert executed / dense_visual_flops(LLAVA_13B, GRID) == pytest.approx(0.286, abs=5e-4)
    assert cost(published).share == pytest.approx(0.275, abs=5e-4)


def test_a_small_plan_by_hand() -> None:
    """Two layers, width 4, heads of 2, 3 x 3 tokens. Layer 0: self head 0, two neurons. Layer 1: head 1 reads with a stride of 2."""
    sizes = Sizes(4, 8, 2, 2, 2, 2)
    plan = Plan(sizes, (LayerPlan((), (0,), (0, 1)), LayerPlan((1,), (), (), read_stride=2)), (Grid(3, 3),))
    projections, scores, neurons = 2 * 4 * (9 * 4 * 2), 2 * 2 * 2 * 81, 2 * 3 * 9 * 4 * 2
    reading = 2 * 4 * (4 * 2 * 2)  # the first reading head of layer 1 shows offset 1, which has four tokens of the nine
    assert cost(plan).visual == projections + scores + neurons + reading
    through = replace(plan, layers=(replace(plan.layers[0], kv_rank=3), replace(plan.layers[1], kv_rank=1)))
    output, updating, read = 2 * 4 * (9 * 2), 2 * 3 * (9 * 4 + 3 * 9 * 2), 2 * 1 * (4 * 4 + 2 * 4 * 2)
    assert cost(through).visual == output + updating + scores + neurons + read


def test_offsets_go_through_a_rank_once() -> None:
    """Four heads at three offsets of 3 x 3 tokens, three each: 9 tokens go through, and those at one offset twice, to its two heads."""
    sizes = Sizes(8, 8, 1, 4, 4, 2)
    plan = Plan(sizes, (LayerPlan((0, 1, 2, 3), (), (), read_stride=3, kv_rank=2),), (Grid(3, 3),))
    assert cost(plan).visual == 2 * 2 * (8 * 9 + 2 * 2 * 4 * 3)


def test_for_queries_all_tokens_go_through_a_rank() -> None:
    """Head 0 computes, and two others show three tokens each: 9 tokens go through once, for all of them."""
    sizes = Sizes(8, 8, 2, 4, 4, 2)
    layer = LayerPlan((0, 1, 2), (0,), (), read_stride=3, kv_rank=2)
    plan = Plan(sizes, (layer, LayerPlan((0,), (), (), read_stride=3)), (Grid(3, 3),))
    through, queries, kv, outputs = 8 * 9 * 2, 9 * 2 * 2, 2 * (9 + 3 + 3) * 2 * 2, 9 * 2 * 8
    assert layer_cost(layer, 0, plan).projections == 2 * (through + queries + kv + outputs)


@pytest.mark.parametrize(("stride", "expected"), [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2)])
def test_skews(stride: int, expected: int) -> None:
    assert skew(stride) == expected


def test_rows_columns_and_frames_take_turns() -> None:
    assert [offset_of(row, 0, 0, 3) for row in range(4)] == [0, 1, 2, 0]
    assert [offset_of(0, column, 0, 5) for column in range(4)] == [0, 2, 4, 1]
    assert [offset_of(0, 0, frame, 3) for frame in range(4)] == [0, 1, 2, 0]


@pytest.mark.parametrize("stride", [1, 2, 3, 5, 7, 16])
def test_offsets_share_out_all_tokens(stride: int) -> None:
    sizes = offset_sizes(5, 7, 2, stride)
    assert sum(sizes) == 70
    tokens = product(range(5), range(7), range(2))
    assert sizes[0] == sum(offset_of(*token, stride) == 0 for token in tokens)
    assert read_tokens((Grid(5, 7, 2), Grid(1, 1)), stride, 0) == (sizes[0], 1)


@pytest.mark.parametrize("grid", [Grid(4, 6), Grid(1, 5), Grid(3, 3, 3)])
@pytest.mark.parametrize("window", [1, 3, 5, 9])
@pytest.mark.parametrize("locality", ["causal", "symmetric"])
def test_window_pairs_counted_one_by_one(grid: Grid, window: int, locality: str) -> None:
    tokens = list(product(range(grid.frames), range(grid.rows), range(grid.columns)))

    def visible(query: tuple[int, int, int], key: tuple[int, int, int]) -> bool:
        near = max(abs(query[1] - key[1]), abs(query[2] - key[2])) <= window // 2
        back = query[0] - key[0]
        return near and back >= 0 and (back > 0 or locality == "symmetric" or key <= query)

    expected = sum(visible(query, key) for query in tokens for key in tokens)
    assert window_pairs(grid, window, locality) == expected
    assert visible_pairs((grid, Grid(1, 1)), window, locality) == expected + 1


def test_pairs_without_a_window_are_counted_within_each_image() -> None:
    assert visible_pairs((Grid(2, 3), Grid(1, 2)), None, "causal") == 36 + 4


def test_kv_cache_bytes_by_hand() -> None:
    """Text 5 in all 2 x 2 KV heads; layer 0: KV head 0 whole (self, read), 1 interlaced; layer 1: nothing; layer 2 is past the depth."""
    sizes = Sizes(8, 8, 2, 4, 2, 2)
    plan = Plan(sizes, (LayerPlan((0, 2), (1,), (0,), read_stride=2), LayerPlan((3,), (), (), read_stride=3)), (Grid(3, 3),))
    entries = 4 * 5 + (9 + 5) + 3  # 3 x 3 in a stride of 2: 5 and 4 tokens; of 3: 3 each
    assert kv_cache_bytes(plan, plan.grids, 5, element_bytes=2) == 2 * entries * 2 * 2


def test_heads_of_a_window_leave_the_cache_unless_read() -> None:
    sizes = Sizes(8, 8, 2, 2, 2, 4)
    last = LayerPlan((0,), (), ())
    windowed = Plan(sizes, (LayerPlan((0,), (0, 1), (), window=3), last), (Grid(2, 2),))
    whole = replace(windowed, layers=(replace(windowed.layers[0], window=None), last))
    assert kv_cache_bytes(windowed, windowed.grids, 0, 1) == 2 * 4 * (4 + 4)
    assert kv_cache_bytes(whole, whole.grids, 0, 1) == 2 * 4 * (8 + 4)
