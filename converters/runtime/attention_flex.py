"""The neighbour window as a block mask of FlexAttention: the alternative to strips on a GPU, where measurement chooses one of them."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .plan import Grid
from .token_split import TokenSplit


@cache
def compiled() -> Callable[..., Any]:
    """FlexAttention is a kernel only when compiled."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def block_mask(text_slots: Tensor, split: TokenSplit, sees: Callable[[Tensor, Tensor, Grid], Tensor]) -> Any:
    """Who sees whom, in blocks: keys are the text (slots `[batch, keys]`), then the visual rows. All images have one grid.

    `sees(query, key, grid)` is the window's rule for two tokens of one image.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    (grid,), text = split.grids, text_slots.shape[1]
    batch, rows = split.visual_slots.shape

    def visible(sample: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        image, slot = query // grid.tokens, text_slots[sample, key.clamp(max=text - 1)]
        other = (key - text).clamp(min=0)
        near = (image == other // grid.tokens) & sees(query % grid.tokens, other % grid.tokens, grid)
        before = (slot >= 0) & (slot < split.visual_slots[sample, image * grid.tokens])
        return torch.where(key < text, before, near)

    return create_block_mask(visible, batch, None, rows, text + rows, device=text_slots.device.type)
