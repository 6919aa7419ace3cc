"""A batch of processor outputs, as calibration sees it: which tokens are what, which grids, which samples."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from ..errors import YopoError
from ..runtime.plan import Grid

Layout = tuple[Grid, ...]


@dataclass(frozen=True)
class Rows:
    """Which tokens of a batch are what, bool [batch, tokens]; padding is none of them."""

    visual: Tensor
    text: Tensor
    reading: Tensor  # text after a visual token

    @classmethod
    def of(cls, batch: Any, image_token: int) -> Self:
        mask = batch.get("attention_mask")
        valid = torch.ones_like(batch["input_ids"], dtype=torch.bool) if mask is None else mask.bool()
        visual = valid & (batch["input_ids"] == image_token)
        text = valid & ~visual
        return cls(visual, text, text & (visual.cumsum(-1) > 0))

    def to(self, device: torch.device) -> Self:
        return type(self)(self.visual.to(device), self.text.to(device), self.reading.to(device))


def layouts_of(rows: Rows, grid: Grid, done: int) -> list[Layout]:
    """The visual grids of each sample, images of one size; `done` samples came before. YopoError where there is nothing to read."""
    found = []
    for place, (visual, reading) in enumerate(zip(rows.visual.sum(-1).tolist(), rows.reading.sum(-1).tolist(), strict=True)):
        if not visual or not reading:
            missing = "text after its image" if visual else "image"
            raise YopoError(f"Calibration sample {done + place + 1} has no {missing}.", "Each needs an image and a question.")
        found.append((grid,) * (visual // grid.tokens))
    return found


def hash_of(batch: Any, rows: Rows) -> str:
    """A hash of the batch's samples, the same in any order and batch: tokens without padding, and each one's share of the pixels."""
    pixels: Tensor = batch["pixel_values"]
    visual = rows.visual.sum(-1)
    images = torch.split(pixels, (visual * len(pixels) // visual.sum()).tolist())
    return add_hashes(map(_digest, batch["input_ids"], rows.visual | rows.text, images))


def _digest(tokens: Tensor, valid: Tensor, images: Tensor) -> str:
    digest = hashlib.sha256(tokens[valid].cpu().numpy().tobytes())
    digest.update(images.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def add_hashes(hashes: Iterable[str]) -> str:
    """One hash of several, the same in any order: their sum modulo 2^256."""
    return f"{sum(int(digest, 16) for digest in hashes) % 2**256:064x}"


def on_model(batch: Any, model: Any) -> dict[str, Any]:
    """The batch as the model's forward takes it: on its device, floating-point tensors in its dtype."""
    cast = {name: value.to(model.dtype) if torch.is_floating_point(value) else value for name, value in batch.items()}
    return {name: value.to(model.device) for name, value in cast.items()}
