"""A batch of processor outputs, as calibration sees it: which tokens are what, which grids, which samples."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from ..errors import YopoError
from ..families import Visual
from ..runtime.plan import Grid

Layout = tuple[Grid, ...]


@dataclass(frozen=True)
class TokenMasks:
    """Which tokens of a batch are what, bool [batch, tokens]; padding is none of them."""

    visual: Tensor
    text: Tensor
    reading: Tensor  # text after a visual token

    @classmethod
    def of(cls, batch: Any, visuals: Sequence[Visual]) -> Self:
        mask = batch.get("attention_mask")
        valid = torch.ones_like(batch["input_ids"], dtype=torch.bool) if mask is None else mask.bool()
        placeholders = torch.tensor([kind.token for kind in visuals], device=valid.device)
        visual = valid & torch.isin(batch["input_ids"], placeholders)
        text = valid & ~visual
        return cls(visual, text, text & (visual.cumsum(-1) > 0))

    def to(self, device: torch.device) -> Self:
        return type(self)(self.visual.to(device), self.text.to(device), self.reading.to(device))


def layouts_of(batch: Any, rows: TokenMasks, visuals: Sequence[Visual], done: int = 0) -> list[Layout]:
    """The visual grids of each sample in the order of its tokens, as the processor tells them.

    Raises YopoError where there is nothing to read; `done` samples came before, for its message.
    """
    for place, (visual, reading) in enumerate(zip(rows.visual, rows.reading, strict=True)):
        if not visual.any() or not reading.any():
            missing = "text after its image" if visual.any() else "image"
            raise YopoError(f"Calibration sample {done + place + 1} has no {missing}.", "Each needs an image and a question.")
    return grids_of(batch, rows, visuals)


def grids_of(batch: Any, rows: TokenMasks, visuals: Sequence[Visual]) -> list[Layout]:
    """The same, also of samples that have no picture."""
    grids = {kind.token: kind.grids(batch) for kind in visuals}
    return [_layout(tokens[visual].tolist(), grids) for tokens, visual in zip(batch["input_ids"], rows.visual, strict=True)]


def _layout(placeholders: list[int], grids: Mapping[int, Iterator[Grid]]) -> Layout:
    """The grids that a sample's visual tokens fill one after the other; takes them from `grids`."""
    layout: list[Grid] = []
    place = 0
    while place < len(placeholders):
        layout.append(next(grids[placeholders[place]]))
        place += layout[-1].tokens
    return tuple(layout)


def hash_of(batch: Any, visuals: Sequence[Visual]) -> str:
    """A hash of the batch's samples, the same in any order and batch: tokens without padding, grids, and each one's share of the pixels."""
    rows = TokenMasks.of(batch, visuals)
    layouts = layouts_of(batch, rows, visuals)
    counts = {kind: (rows.visual & (batch["input_ids"] == kind.token)).sum(-1).tolist() for kind in visuals}
    pixels = [kind.shares(batch[kind.pixels], batch, counts[kind]) for kind in visuals if kind.pixels in batch]
    return add_hashes(map(_digest, batch["input_ids"], rows.visual | rows.text, layouts, zip(*pixels, strict=True)))


def _digest(tokens: Tensor, valid: Tensor, layout: Layout, pixels: Iterable[Tensor]) -> str:
    digest = hashlib.sha256(tokens[valid].cpu().numpy().tobytes())
    digest.update(" ".join(map(str, layout)).encode())
    for part in pixels:
        digest.update(part.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def add_hashes(hashes: Iterable[str]) -> str:
    """One hash of several, the same in any order: their sum modulo 2^256."""
    return f"{sum(int(digest, 16) for digest in hashes) % 2**256:064x}"


def on_model(batch: Any, model: Any) -> dict[str, Any]:
    """The batch as the model's forward takes it: on its device, floating-point tensors in its dtype."""
    cast = {name: value.to(model.dtype) if torch.is_floating_point(value) else value for name, value in batch.items()}
    return {name: value.to(model.device) for name, value in cast.items()}
