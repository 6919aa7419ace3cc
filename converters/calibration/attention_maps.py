"""What a dense model's heads look at: how much text attends to visual tokens, and visual tokens to each other by distance on the grid.

Measured on samples, layer by layer: what the paper begins with (arXiv 2410.06169, figures 2 to 4).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from ..errors import YopoError
from ..families import family_of
from ..runtime.plan import Grid
from .batch import Layout, TokenMasks, layouts_of, on_model
from .recorder import CHUNK_ELEMENTS

IMPLEMENTATION = "yopo_attention_maps"
ELSEWHERE = -1


@dataclass(frozen=True)
class AttentionMaps:
    """Means over samples. `read[layer][head]`: the share of its attention that text after a picture pays to visual tokens.

    `by_distance[layer][d]`: the share of their attention that visual tokens pay to those of the same picture `d` rows or columns away,
    whichever is more; mean over heads. The rest goes to text and to other pictures.
    """

    read: list[list[float]]
    by_distance: list[list[float]]
    samples: int

    def to_json(self) -> dict[str, Any]:
        return {"yopo_attention": 1, "samples": self.samples, "read": self.read, "by_distance": self.by_distance}


def attention_maps(model: Any, inputs: Iterable[Any]) -> AttentionMaps:
    """Run a dense transformers model over processor outputs, one sample or a left-padded batch each. Raises YopoError without any."""
    config = model.config.to_dict()
    family = family_of(config)
    visuals, sizes = family.visuals(config), family.sizes(config)
    meter, count = _Meter(sizes.num_hidden_layers, sizes.num_attention_heads), 0
    language_model = model.get_decoder()
    with torch.inference_mode(), _measuring(language_model, meter):
        for batch in inputs:
            rows = TokenMasks.of(batch, visuals)
            layouts = layouts_of(batch, rows, visuals, count)
            meter.rows, meter.distances = rows.to(model.device), distances(rows.visual, layouts).to(model.device)
            model.model(**on_model(batch, model), use_cache=False)
            count += len(layouts)
    if not count:
        raise YopoError("There is no sample to look at.", "Pass at least one image with a question.")
    return AttentionMaps((meter.read / count).tolist(), (meter.by_distance / count).tolist(), count)


def distances(visual: Tensor, layouts: Iterable[Layout]) -> Tensor:
    """Between every query and key `[batch, tokens, tokens]`, the larger of rows and columns apart; ELSEWHERE unless both lie in one
    picture and frame."""
    places = torch.full((*visual.shape, 3), ELSEWHERE)
    for sample, layout in enumerate(layouts):
        places[sample, visual[sample]] = torch.cat([_spots(grid, first) for grid, first in _numbered(layout)])
    query, key = places[:, :, None], places[:, None]
    apart = (query[..., 1:] - key[..., 1:]).abs().amax(-1)
    same = (query[..., 0] == key[..., 0]) & (query[..., 0] != ELSEWHERE)
    return torch.where(same, apart, ELSEWHERE)


def _numbered(layout: Layout) -> Iterator[tuple[Grid, int]]:
    """Grids with the number of their first frame."""
    first = 0
    for grid in layout:
        yield grid, first
        first += grid.frames


def _spots(grid: Grid, first: int) -> Tensor:
    """`[tokens, 3]`: frame, row and column of each."""
    frames = torch.arange(first, first + grid.frames)
    return torch.cartesian_prod(frames, torch.arange(grid.rows), torch.arange(grid.columns))


class _Meter:
    """Sums over samples; `distances` `[batch, tokens, tokens]` and `rows` are those of the batch at hand."""

    def __init__(self, layers: int, heads: int) -> None:
        self.read = torch.zeros(layers, heads, dtype=torch.float64)
        self.by_distance = torch.zeros(layers, 1, dtype=torch.float64)
        self.rows: TokenMasks
        self.distances: Tensor

    def attention(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        """Attention [batch, heads, tokens, head_dim] -> [batch, tokens, heads, head_dim], looked at on the way."""
        batch, heads, tokens, _size = query.shape
        key, value = (part.repeat_interleave(heads // part.shape[1], 1) for part in (key, value))
        places, outputs = torch.arange(tokens, device=query.device), []
        for part in torch.split(places, max(1, CHUNK_ELEMENTS // (batch * heads * tokens))):
            visible = mask[:, :, part] if mask is not None else part[:, None] >= places
            scores = (query[:, :, part].float() @ key.float().transpose(2, 3) * scaling).masked_fill(
                ~visible, torch.finfo(torch.float32).min
            )
            paid = scores.softmax(-1)
            self._add(module.layer_idx, paid, part)
            outputs.append((paid @ value.float()).to(query.dtype))
        return torch.cat(outputs, 2).transpose(1, 2).contiguous(), None

    def _add(self, layer: int, paid: Tensor, part: Tensor) -> None:
        """`paid` `[batch, heads, queries, keys]`: attention of the queries at `part`."""
        rows = self.rows
        reading = rows.reading[:, part].float() / rows.reading.sum(-1, keepdim=True)
        on_visual = (paid * rows.visual[:, None, None]).sum(-1)
        self.read[layer] += (on_visual * reading[:, None]).sum((0, 2)).double().cpu()
        seeing = rows.visual[:, part].float() / rows.visual.sum(-1, keepdim=True)
        near = self.distances[:, part]
        size = int(near.max()) + 1 if near.numel() else 0
        if size:
            weights = (paid.mean(1) * seeing[..., None])[near != ELSEWHERE]
            sums = torch.zeros(size, device=paid.device).scatter_add_(0, near[near != ELSEWHERE], weights)
            self._widen(size)
            self.by_distance[layer, :size] += sums.double().cpu()

    def _widen(self, size: int) -> None:
        """Room for so many distances."""
        if (missing := size - self.by_distance.shape[1]) > 0:
            self.by_distance = torch.nn.functional.pad(self.by_distance, (0, missing))


@contextmanager
def _measuring(language_model: Any, meter: _Meter) -> Iterator[None]:
    """Within, the language model's attention goes through the meter; afterwards all is as before, errors or not."""
    before = language_model.config._attn_implementation
    AttentionInterface.register(IMPLEMENTATION, meter.attention)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
    try:
        language_model.set_attn_implementation(IMPLEMENTATION)
        yield
    finally:
        language_model.set_attn_implementation(before)
