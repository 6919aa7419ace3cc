"""Attention against the one masked rectangle and the kernel: what skips the half that is never seen, and what goes by products."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from converters.planning.cost import window_pairs
from converters.runtime import attention, windows
from converters.runtime import full_attention as full
from converters.runtime.attention import attend, by_kernel, by_products
from converters.runtime.full_attention import causal_attention, full_attention
from converters.runtime.plan import Grid
from converters.runtime.token_split import Image, TokenSplit
from converters.runtime.windows import WindowRule

TEXT, VISUAL = [[0, 1, 6, 9], [0, 5, 6, 7]], [[2, 3, 4, 5, 7, 8], [1, 2, 3, 4, 8, 9]]  # slots of two samples with two images each


def rectangle(query: Tensor, key: Tensor, value: Tensor, slots: Tensor, key_slots: Tensor) -> Tensor:
    """Every query against every key, those it must not see masked."""
    return attend(query, key, value, (key_slots[:, None, None] <= slots[:, None, :, None]) & (key_slots[:, None, None] >= 0), 0.5)


def sides(text: list[list[int]], earlier: int = 0) -> tuple[Tensor, ...]:
    """Queries, keys and values of 4 and 2 heads, and their slots; keys are `earlier` ones, visual ones, text."""
    torch.manual_seed(0)
    slots = torch.tensor(VISUAL) + earlier
    before = torch.arange(earlier).expand(2, -1)
    after = torch.tensor(text)
    key_slots = torch.cat([before, slots, after.where(after < 0, after + earlier)], 1)
    count = key_slots.shape[1]
    return torch.randn(2, 4, 6, 8), torch.randn(2, 2, count, 8), torch.randn(2, 2, count, 8), slots, key_slots


@pytest.mark.parametrize("grid", [Grid(24, 24), Grid(27, 37), Grid(5, 4, 2)], ids=str)
@pytest.mark.parametrize("locality", ["causal", "symmetric"])
def test_strips_show_what_the_window_shows(grid: Grid, locality: str) -> None:
    """As many pairs as are counted for the cost, and no row of keys more than the window reaches."""
    for window in (3, 5):
        strips = windows.strips(grid, window, locality)
        assert int(strips.mask.flatten(0, 1)[strips.places].sum()) == window_pairs(grid, window, locality)
        below = 0 if locality == "causal" and grid.frames == 1 else window // 2
        rows = (strips.keys[0] % (grid.rows * grid.columns) // grid.columns).unique()
        assert len(rows) == min(grid.rows, min(windows.STRIP_ROWS, grid.rows) + window // 2 + below)


def test_causal_order_is_the_rectangle() -> None:
    given = sides(TEXT)
    torch.testing.assert_close(causal_attention(*given, scale=0.5), rectangle(*given))


@pytest.mark.parametrize("block", [1, 4, 6])
@pytest.mark.parametrize("earlier", [0, 3])
def test_blocks_are_the_rectangle(block: int, earlier: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full, "QUERY_BLOCK", block)
    given = sides([[0, 1, 6, 9], [0, 5, 6, -1]], earlier)  # the last key of the second sample is padding
    torch.testing.assert_close(full_attention(*given, text_rows=4, scale=0.5), rectangle(*given))


@pytest.mark.parametrize("locality", ["causal", "symmetric"])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_is_the_strips(locality: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pictures in one sample, one in the other, whose second place is padding; FlexAttention runs unfused here."""
    monkeypatch.setattr(windows, "STRIP_ROWS", 2)
    monkeypatch.setattr(windows, "STRIP_COLUMNS", 3)  # four columns: two strips of two
    grid, rule = Grid(3, 4, 2), WindowRule(3, locality)
    torch.manual_seed(0)
    slots = torch.stack([torch.cat([torch.arange(2, 26), torch.arange(30, 54)]), torch.arange(3, 51).where(torch.arange(48) < 24, -1)])
    text_slots = torch.tensor([[0, 1, 26, 27, 28, 29, 54], [0, 1, 2, 27, 28, -1, -1]])
    images = (Image(0, 0, grid), Image(0, 24, grid), Image(1, 0, grid))
    split = TokenSplit(text_slots.clamp(min=0), text_slots, slots.clamp(min=0), slots, images)
    query, (keys, values) = torch.randn(2, 2, 48, 16), torch.randn(2, 2 * 48 + 2 * 7, 2, 16)
    given = (query, keys, values, text_slots, split, rule, 0.25)
    expected = windows.windowed_attention(*given)
    monkeypatch.setattr(windows, "compiled", lambda: flex_attention)
    monkeypatch.setattr(windows, "may_be_flex", lambda query, split: True)
    for way in ("strips", "FlexAttention"):
        monkeypatch.setattr(windows, "fastest", lambda what, ways, device, way=way: way)
        seen = windows.windowed_attention(*given)
        torch.testing.assert_close(seen[0], expected[0])
        torch.testing.assert_close(seen[1, :, :24], expected[1, :, :24])
    assert len(split.block_masks) == 1


@pytest.mark.parametrize("together", [0, 1, 3, 4])
@pytest.mark.parametrize("keys_first", [True, False])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("masked", [None, (3, 1), (1, 4), (3, 4)])
def test_products_are_the_kernel(
    keys_first: bool, kv_heads: int, masked: tuple[int, int] | None, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and values as strips have them, heads after rows; a query that sees nothing is finite, and nobody's."""
    monkeypatch.setattr(attention, "LAID_OUT_BYTES", together * 3 * 7 * max(8, 4 // kv_heads * 5) * 4)
    torch.manual_seed(0)
    query, (key, value) = torch.randn(3, 4, 5, 8), torch.randn(2, 3, 7, kv_heads, 8).transpose(2, 3)
    mask = None if masked is None else torch.rand(*masked, 5, 7) < 0.6
    if mask is not None:
        mask[0, 0, 0] = False
    given = query, key, value, mask, 0.3
    expected, found = by_kernel(*given), by_products(*given, keys_first=keys_first)
    sees = torch.ones(3, 4, 5, dtype=torch.bool) if mask is None else mask.any(-1).expand(3, 4, 5)
    torch.testing.assert_close(found[sees], expected[sees])
    assert sees.all() == (mask is None)
    assert found.isfinite().all()


def test_products_round_less_than_eager_attention_does() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 4, count, 128, dtype=torch.bfloat16) for count in (64, 200, 200))
    mask = torch.rand(1, 1, 64, 200) < 0.7
    exact = by_kernel(query.double(), key.double(), value.double(), mask, 128**-0.5)
    scores = (query @ key.mT * 128**-0.5).masked_fill(~mask, -torch.inf)
    eager = scores.softmax(-1, dtype=torch.float32).to(torch.bfloat16) @ value
    assert (by_products(query, key, value, mask, 128**-0.5) - exact).norm() < (eager - exact).norm()


def test_which_attention_has_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only bfloat16; not few keys, scores too many to be kept, nor where gradients flow."""
    asked: dict[str, list[str]] = {}

    def second(what: str, ways: Callable[[], dict[str, object]], device: torch.device) -> str:
        assert asked.setdefault(what, list(ways())) == list(ways())
        return asked[what][1]

    monkeypatch.setattr(attention, "fastest", second)
    monkeypatch.setattr(attention, "KEY_BYTES", 2 * 70 * 8 * 2)
    monkeypatch.setattr(attention, "by_products", lambda query, *rest, keys_first=False: query * 0)
    heads, halves = torch.ones(1, 2, 70, 8), torch.ones(1, 2, 70, 8, dtype=torch.bfloat16)

    def goes_by_products(query: Tensor, keys: Tensor) -> bool:
        return not attend(query, keys, keys, None, 0.5).any()

    with torch.no_grad():
        assert not goes_by_products(heads[:, :, :1], heads)
        assert not goes_by_products(heads, heads)
        for count in (1, 15, 16, 17):
            assert goes_by_products(halves[:, :, :count], halves)
        for name, bound in (("KEY_BYTES", halves.nbytes + 1), ("SCORE_BYTES", 2 * 17 * 70 * 2 - 1)):
            with monkeypatch.context() as bounded:
                bounded.setattr(attention, name, bound)
                assert not goes_by_products(halves[:, :, :17], halves)
    assert not goes_by_products(halves[:, :, :17], halves)
    ways = {1: "products, keys first", 16: "products, keys first", 32: "products"}  # 15 and 16 are measured together
    threads = f"({torch.get_num_threads()} threads)"
    assert asked == {f"attention of up to {count} queries and 128 keys {threads}": ["kernel", way] for count, way in ways.items()}
