"""What a method hands to the language model of each picture: all of its visual tokens, or fewer where it works before it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import YopoError
from .rows import TEXT, VISUAL, Rows
from .schedule import Schedule, split
from .selection import (
    at_random,
    attention_of,
    conditionally_diverse,
    contextual,
    dominant,
    most_covering,
    most_diverse,
    pooled,
    relevance,
)

VISIONZIP_CONTEXTUAL = 10 / 64
"""Of VisionZip's tokens, those that are merged ones: 54 dominant ones, the class token among them, and 10."""
BY_CLASS_TOKEN = frozenset({"visionzip", "scope"})
"""Methods that go by what the vision tower's class token looks at."""


@dataclass(frozen=True)
class Tower:
    """What is taken from the vision tower's layer whose output the projector reads, class token first, of every picture of a batch.

    `hidden` `[pictures, 1 + tokens, width]` is its output, `attention` `[pictures, heads, tokens]` what its class token pays,
    `keys` `[pictures, 1 + tokens, head_dim]` its keys averaged over heads.
    """

    hidden: Tensor
    attention: Tensor
    keys: Tensor


def entered(model: Any, rows: Rows, schedule: Schedule, seed: int = 0, tower: Tower | None = None) -> Rows:
    """Of a whole prompt's rows, those that the schedule lets into the language model, all samples' pictures having its grids.

    `tower` is needed by methods of `BY_CLASS_TOKEN`.
    """
    if not schedule.grids or not bool((rows.kinds == VISUAL).any()):
        return rows
    merges = merged(model, tower, schedule) if tower is not None and schedule.method == "visionzip" else None
    hidden, places, number = rows.hidden.clone(), [], 0
    for sample, kinds in enumerate(rows.kinds):
        stays, visual = kinds == TEXT, rows.of_kind(sample, VISUAL)
        words = rows.hidden[sample, _asked(rows, sample)]
        for block, count in zip(
            visual.split([grid.tokens for grid in schedule.grids]), split(schedule.entering, schedule.grids), strict=True
        ):
            if merges is not None or schedule.coarse is not None:
                new = merges[number] if merges is not None else coarser(rows.hidden[sample, block], schedule)
                block = block[: len(new)]
                hidden[sample, block] = new.to(hidden.dtype)
            else:
                block = block[chosen(rows.hidden[sample, block], count, schedule.method, seed, words, tower, number)]
            stays[block] = True
            number += 1
        places.append(stays.nonzero()[:, 0])
    fewer = schedule.entering < schedule.tokens
    if fewer or rows.padded:
        rows = Rows(hidden, rows.positions, rows.kinds, rows.seen).take(places)
    return rows.renumbered() if fewer else rows


def _asked(rows: Rows, sample: int) -> Tensor:
    """The text after the last picture, or all of it where there is none."""
    text, visual = rows.of_kind(sample, TEXT), rows.of_kind(sample, VISUAL)
    after = text[text > visual[-1]] if len(visual) else text
    return after if len(after) else text


def chosen(
    features: Tensor, count: int, method: str, seed: int = 0, words: Tensor | None = None, tower: Tower | None = None, picture: int = 0
) -> Tensor:
    """Places of the `count` visual tokens of one picture `[tokens, hidden]` that a method lets in; `words` `[text, hidden]` ask.

    `tower` holds it as number `picture`.
    """
    if count == len(features):
        return torch.arange(count, device=features.device)
    match method:
        case "divprune":
            return most_diverse(features, count)
        case "cdpruner":
            assert words is not None
            return conditionally_diverse(features, relevance(features, words), count)
        case "scope":
            assert tower is not None
            return most_covering(tower.hidden[picture, 1:], tower.attention[picture].sum(0), count)
        case "random":
            return at_random(len(features), count, seed).to(features.device)
    return torch.arange(count, device=features.device)


def coarser(features: Tensor, schedule: Schedule) -> Tensor:
    """One picture's features `[tokens, hidden]` on the schedule's coarser grid."""
    assert schedule.coarse is not None
    fine = (schedule.grids[0].rows, schedule.grids[0].columns)
    return pooled(features, fine, (schedule.coarse.rows, schedule.coarse.columns))


def merged(model: Any, tower: Tower, schedule: Schedule) -> Tensor:
    """VisionZip (arXiv 2412.04467): class token and dominant ones in the picture's order, then the contextual ones; projected."""
    count = schedule.entering // len(schedule.grids)
    some = min(count - 1, round(count * VISIONZIP_CONTEXTUAL))
    kept = []
    for hidden, attention, keys in zip(tower.hidden, tower.attention, tower.keys, strict=True):
        best = torch.cat([torch.zeros(1, dtype=torch.long, device=hidden.device), dominant(attention, count - some - 1) + 1])
        others = torch.ones(len(hidden), dtype=torch.bool, device=hidden.device)
        others[best] = False
        kept.append(torch.cat([hidden[best], *([contextual(hidden[others], keys[others], some)[0]] if some else [])]))
    projected: Tensor = model.model.multi_modal_projector(torch.stack(kept))
    return projected


def look(model: Any, pixel_values: Tensor) -> Tower:
    """Run the vision tower and take from one of its layers what is needed; only the class token's attention is computed.

    Raises YopoError where the projector reads what enters the first layer.
    """
    layers = model.model.vision_tower.encoder.layers
    place = model.config.vision_feature_layer
    place += len(layers) + 1 if place < 0 else 0
    if place == 0:
        raise YopoError("VisionZip goes by the vision tower's attention, of which this model's projector sees nothing.", "Leave it out.")
    states = model.model.vision_tower(pixel_values, output_hidden_states=True, return_dict=True).hidden_states
    layer = layers[place - 1]
    attention, before = layer.self_attn, layer.layer_norm1(states[place - 1])
    shape = (len(before), -1, attention.num_heads, attention.head_dim)
    keys = attention.k_proj(before).view(shape).transpose(1, 2)
    query = attention.q_proj(before[:, :1]).view(shape).transpose(1, 2)
    paid = torch.stack([attention_of(one, some, attention.scale)[:, 0] for one, some in zip(query, keys, strict=True)])
    return Tower(states[place], paid[..., 1:], keys.mean(1))


def refusals(model: Any, methods: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """The methods that cannot run over `model`, transformers' own, each with the reason in a sentence."""
    attention = model.get_decoder().layers[0].self_attn
    for method in methods:
        if getattr(model.config.vision_config, "deepstack_visual_indexes", None):
            yield method, "Token pruners do not know visual features that are added between layers."
        elif method in BY_CLASS_TOKEN and not _class_token(model):
            yield method, f"{method} goes by the class token of LLaVA's vision tower, and this model has another tower."
        elif method in RANKING and not hasattr(attention, "k_proj"):
            yield method, f"{method} ranks by keys of a projection of their own, and this model's projections are fused."


def _class_token(model: Any) -> bool:
    return hasattr(model.model, "vision_tower") and hasattr(getattr(model.model.vision_tower, "encoder", None), "layers")


RANKING = frozenset({"fastv", "pyramiddrop", "sparsevlm", "dart"})
"""Methods that rank tokens inside the language model."""
