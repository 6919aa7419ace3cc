"""Costs and pictures against figures that can be worked out by hand."""

from converters.runtime.plan import Grid, LayerPlan, Plan, Sizes, dense_plan
from yopo_cli.ui.costs import bill, cost_json, cost_table, count_text, dense_bill, share_text
from yopo_cli.ui.picture import head_map, picture

LLAVA_7B = Sizes(4096, 11008, 32, 32, 32, 128)
FOUR = Sizes(8, 16, 3, 4, 4, 2)


def test_four_conventions_of_the_7b_model() -> None:
    costs = dense_bill(dense_plan(LLAVA_7B, (Grid(24, 24),)))
    _, rows = cost_table(costs)
    assert [row[2] for row in rows] == ["7.63 T", "3.82 T", "8.50 T", "4.25 T", "336 M"]  # K and V: 2 * 32 * 4096 * 640 * 2 bytes
    assert {row[4] for row in rows} == {"100.00 %"}
    assert cost_json(costs, None)["budget"] == {"asked": None, "reached": 1.0}


def test_twelve_percent_of_visual_is_a_fifth_of_total() -> None:
    costs = bill(Plan(LLAVA_7B, (LayerPlan(tuple(range(32)), (), (), None, 1),) * 32, (Grid(24, 24),)))
    assert share_text(costs.spent.share) == "16.20 %"  # K and V of 32 layers alone
    total = 1 - (1 - costs.spent.share) * costs.spent.visual_dense / costs.spent.total_dense
    assert abs(costs.spent.total_share - total) < 1e-12


def test_counts() -> None:
    assert [count_text(count) for count in (0, 999, 1000, 12_345, 7.634e12)] == ["0", "999", "1.00 k", "12.3 k", "7.63 T"]


def test_picture_of_three_layers() -> None:
    layers = (
        LayerPlan((0, 1), (1, 2), tuple(range(8)), window=3, kv_rank=12),
        LayerPlan((0, 1, 2, 3), (1, 3), (0,), read_stride=2),
        LayerPlan((3,), (0,), (5,)),  # the last reading layer: nothing reads what it would update
    )
    lines = picture(Plan(FOUR, layers, (Grid(4, 4),)))
    assert lines[0].split() == ["layer", "heads", "read", "self", "neurons", "sees", "every", "rank", "cost"]
    assert lines[1].split()[:-1] == ["0", "r#s.", "2", "2", "8", "3x3", "all", "12"]
    assert lines[2].split()[:-1] == ["1", "r#r#", "4", "2", "1", "all", "1/2", "all"]
    assert lines[3].split()[:-1] == ["2", "...r", "1", "0", "0", "-", "all", "all"]
    assert lines[-1] == "visual tokens leave after layer 3 of 3"
    assert "causal" in " ".join(lines)


def test_picture_fits_eighty_columns() -> None:
    for heads in (8, 32, 40, 64):
        sizes = Sizes(heads * 128, 27648, 80, heads, heads, 128)
        assert max(map(len, picture(dense_plan(sizes, (Grid(24, 24),))))) <= 80


def test_letters_stand_for_neighbours_where_heads_are_many() -> None:
    layer = LayerPlan((0, 2), (1, 4), ())
    assert head_map(layer, 64)[:4] == "#rs."
    assert len(head_map(layer, 40)) == 20
