"""Visual attention without a window: what skips the half that is never seen, against the one masked rectangle."""

import pytest
import torch
from torch import Tensor

from converters.runtime import attention
from converters.runtime.attention import attend, causal_attention, full_attention

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


def test_causal_order_is_the_rectangle() -> None:
    given = sides(TEXT)
    torch.testing.assert_close(causal_attention(*given, scale=0.5), rectangle(*given))


@pytest.mark.parametrize("block", [1, 4, 6])
@pytest.mark.parametrize("earlier", [0, 3])
def test_blocks_are_the_rectangle(block: int, earlier: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "QUERY_BLOCK", block)
    given = sides([[0, 1, 6, 9], [0, 5, 6, -1]], earlier)  # the last key of the second sample is padding
    torch.testing.assert_close(full_attention(*given, text_rows=4, scale=0.5), rectangle(*given))
