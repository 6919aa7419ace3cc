"""Token pruners over the dense model of transformers: tokens really leave the sequence, and decoding goes on from unequal caches.

The decoder layers are transformers' own, SDPA attention included. Scores are computed for the few rows that rank, in the one layer
that ranks; the keys are those that the layer left in the cache.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ..calibration.batch import Layout, TokenMasks, grids_of, on_model
from ..families import family_of
from ..planning.measure.answers import isin, placeholders_of
from ..runtime.layer_parts import head_norms
from ..runtime.outputs import CACHE
from .pictures import BY_CLASS_TOKEN, Tower, entered, look
from .rows import PADDING, TEXT, VISUAL, Rows, axes, insert
from .schedule import Schedule, Stage, recycled
from .selection import attention_of, least_duplicate, most_attended, raters, recycle

KEEPS_POSITIONS = frozenset({"fastv", "dart"})
"""Methods whose published code keeps the positions of the tokens that stay; the others number them anew, but for multimodal ones."""


@dataclass
class LayerRun:
    """Consecutive layers that hold the same tokens: `seen` `[batch]` is the next token's position, `valid` `[batch, keys]` no padding."""

    first: int
    last: int
    seen: Tensor
    valid: Tensor | None


@dataclass
class Decoding:
    """A prompt that was read: `logits` `[batch, vocabulary]` of its last token, and everything that the next one needs."""

    logits: Tensor
    cache: Any
    runs: list[LayerRun]

    @property
    def nbytes(self) -> int:
        """Bytes of K and V held."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers)


def generate(model: Any, inputs: Any, schedule: Schedule, max_new_tokens: int, seed: int = 0) -> Tensor:
    """Greedy answer of a dense model under a schedule: new tokens `[batch, up to max_new_tokens]`, padded after the end of each.

    All samples have the schedule's grids, or no picture.
    """
    with torch.inference_mode():
        return generated(model, prompt(model, inputs, schedule, seed), schedule, max_new_tokens)


def generate_each(model: Any, inputs: Any, made: Callable[[Layout], Schedule], max_new_tokens: int, seed: int = 0) -> list[Tensor]:
    """The same for samples of any grids, each under the schedule that is `made` for its own; those of the same ones go together."""
    config = model.config.to_dict()
    visuals = family_of(config).visuals(config)
    layouts = grids_of(inputs, TokenMasks.of(inputs, visuals), visuals)
    owner = torch.tensor([place for place, layout in enumerate(layouts) for _ in layout])
    answers: dict[int, Tensor] = {}
    with torch.inference_mode():
        rows = whole(model, inputs)
        for grids in dict.fromkeys(layouts):
            same = [place for place, layout in enumerate(layouts) if layout == grids]
            schedule = made(grids)
            seen = tower(model, inputs, schedule, torch.isin(owner, torch.tensor(same)))
            entering = entered(model, rows.of(same), schedule, seed, seen)
            answers |= dict(zip(same, generated(model, entering, schedule, max_new_tokens), strict=True))
    return [answers[place] for place in range(len(layouts))]


def generated(model: Any, rows: Rows, schedule: Schedule, max_new_tokens: int) -> Tensor:
    """Greedy tokens that follow what enters the language model."""
    end = model.generation_config.eos_token_id
    ends = torch.tensor(end if isinstance(end, list) else [] if end is None else [end], device=model.device)
    decoding = prefill(model, rows, schedule)
    done = torch.zeros(len(decoding.logits), dtype=torch.bool, device=model.device)
    tokens: list[Tensor] = []
    while True:
        token = decoding.logits.argmax(-1)
        pad = model.generation_config.pad_token_id
        tokens.append(token.where(~done, pad if pad is not None else ends[0] if len(ends) else 0))
        done |= torch.isin(token, ends)
        if len(tokens) == max_new_tokens or bool(done.all()):
            return torch.stack(tokens, 1)
        advance(model, decoding, token)


def prompt(model: Any, inputs: Any, schedule: Schedule, seed: int = 0) -> Rows:
    """What the language model reads: the processor's `inputs`, with the visual tokens that the schedule lets in."""
    return entered(model, whole(model, inputs), schedule, seed, tower(model, inputs, schedule))


def tower(model: Any, inputs: Any, schedule: Schedule, which: Tensor | None = None) -> Tower | None:
    """What a method of the class token needs of the pictures, or of those that `which` `[pictures]` tells."""
    if schedule.method not in BY_CLASS_TOKEN or "pixel_values" not in inputs or not schedule.grids:
        return None
    pixels = inputs["pixel_values"].to(model.device, model.dtype)
    return look(model, pixels if which is None else pixels[which.to(pixels.device)])


class _KnownError(Exception):
    """What the language model is called with is known."""


def whole(model: Any, inputs: Any, **features: Any) -> Rows:
    """A whole prompt as the model hands it to its language model, which does not run: nothing is left out.

    `features` (transformers' `mm_encoder_outputs`) may stand in the pixels' place.
    """
    given: dict[str, Any] = {}

    def look_on(_: Any, __: Any, keywords: dict[str, Any]) -> None:
        given.update(keywords)
        raise _KnownError

    hook = model.get_decoder().register_forward_pre_hook(look_on, with_kwargs=True)
    try:
        with suppress(_KnownError):
            model.model(**on_model(inputs, model), **features, use_cache=False)
    finally:
        hook.remove()
    ids = inputs["input_ids"].to(model.device)
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask.to(model.device)
    visual = isin(ids, placeholders_of(model))
    kinds = torch.where(mask == 0, PADDING, torch.where(visual, VISUAL, TEXT))
    numbers, multimodal = (mask.cumsum(1) - 1).clamp(min=0), given.get("position_ids")
    positions = numbers if multimodal is None or multimodal.dim() == 2 else multimodal[-3:].movedim(0, -1)
    seen = positions.flatten(2).amax(-1) if positions.dim() > 2 else positions
    return Rows(given["inputs_embeds"], positions, kinds, seen.masked_fill(mask == 0, 0).amax(1) + 1)


def prefill(model: Any, rows: Rows, schedule: Schedule) -> Decoding:
    """Read a prompt, dropping tokens where the schedule says."""
    text_model, cache, runs = model.get_decoder(), DynamicCache(), []
    whole = [len(rows.of_kind(sample, VISUAL)) for sample in range(len(rows.kinds))]
    rating = _rating(rows, schedule)
    first = 0
    for stage in (*schedule.stages, None):
        last = len(text_model.layers) if stage is None else stage.layer
        before = rows.hidden
        if last > first:
            runs.append(LayerRun(first, last, rows.seen, (rows.kinds != PADDING) if rows.padded else None))
            rows, before = _through(text_model, rows, first, last, cache)
        if stage is not None:
            before = rows.hidden if stage.ranks_itself else before
            rows = _dropped(text_model, rows, before, cache, stage, schedule, rating, whole)
        first = last
    return Decoding(_logits(model, rows.hidden), cache, runs)


def advance(model: Any, decoding: Decoding, ids: Tensor) -> None:
    """Read one more token `[batch]` after what was read."""
    text_model = model.get_decoder()
    hidden = model.get_input_embeddings()(ids[:, None])
    for run in decoding.runs:
        if run.valid is not None:
            run.valid = torch.cat([run.valid, torch.ones_like(run.valid[:, :1])], 1)
        positions = run.seen[:, None]
        rotary = text_model.rotary_emb(hidden, positions)
        mask = None if run.valid is None else run.valid[:, None, None]
        for layer in text_model.layers[run.first : run.last]:
            hidden = _layer(layer, hidden, positions, rotary, mask, decoding.cache)
        run.seen = run.seen + 1
    decoding.logits = _logits(model, hidden)


def _through(text_model: Any, rows: Rows, first: int, last: int, cache: Any) -> tuple[Rows, Tensor]:
    """Rows after layers `first` to `last`, and the hidden states that the last of them was given."""
    rotary, mask = text_model.rotary_emb(rows.hidden, rows.axes), rows.mask()
    hidden = before = rows.hidden
    for layer in text_model.layers[first:last]:
        before = hidden
        hidden = _layer(layer, hidden, rows.axes, rotary, mask, cache)
    return Rows(hidden, rows.positions, rows.kinds, rows.seen), before


def _layer(layer: Any, hidden: Tensor, positions: Tensor, rotary: Any, mask: Tensor | None, cache: Any) -> Tensor:
    output: Tensor = layer(
        hidden, attention_mask=mask, position_ids=positions, use_cache=True, position_embeddings=rotary, **{CACHE: cache}
    )
    return output


def _logits(model: Any, hidden: Tensor) -> Tensor:
    logits: Tensor = model.lm_head(model.get_decoder().norm(hidden[:, -1]))
    return logits


def _rating(rows: Rows, schedule: Schedule) -> list[Tensor]:
    """The tokens of each sample whose attention ranks, counted from the end of the row (1 is the last)."""
    batch = len(rows.kinds)
    if schedule.method != "sparsevlm":
        return [torch.ones(1, dtype=torch.long, device=rows.hidden.device)] * batch
    rating = []
    for sample in range(batch):
        visual, text = rows.of_kind(sample, VISUAL), rows.of_kind(sample, TEXT)
        if len(visual) and bool((text > visual[-1]).any()):
            text = text[text > visual[-1]]
            text = text[raters(rows.hidden[sample, visual], rows.hidden[sample, text])]
        rating.append(rows.kinds.shape[1] - text)
    return rating


def _dropped(
    text_model: Any, rows: Rows, before: Tensor, cache: Any, stage: Stage, schedule: Schedule, rating: Sequence[Tensor], whole: list[int]
) -> Rows:
    """The rows that stay before layer `stage.layer`, with recycled ones. `before` is what the ranking layer was given."""
    places, new = [], []
    for sample, ends in enumerate(rating):
        visual, stays = rows.of_kind(sample, VISUAL), rows.kinds[sample] == TEXT
        count = min(len(visual), max(1, stage.kept * whole[sample] // schedule.tokens)) if len(visual) else 0
        if count and schedule.method == "dart":
            stays[visual[_undoubled(text_model, rows, before, cache, stage, sample, count)]] = True
        elif count:
            paid = _attention(text_model, rows, before, cache, stage, sample, rows.kinds.shape[1] - ends)[..., visual]
            kept = most_attended(paid, count)
            stays[visual[kept]] = True
            if stage.recycled and count < len(visual):
                new.append(_recycled(rows, sample, visual, kept, paid))
        places.append(stays.nonzero()[:, 0])
    if new:
        rows, places = _with_recycled(rows, places, new)
    rows = rows.take(places)
    return rows if schedule.method in KEEPS_POSITIONS else rows.renumbered()


def _attention(text_model: Any, rows: Rows, before: Tensor, cache: Any, stage: Stage, sample: int, places: Tensor) -> Tensor:
    """Attention `[heads, queries, length]` that the tokens at `places` of a sample pay in the layer that ranks."""
    layer = text_model.layers[stage.layer - (not stage.ranks_itself)]
    attention, size = layer.self_attn, layer.self_attn.head_dim
    cosine, sine = text_model.rotary_emb(before, axes(rows.positions[sample : sample + 1]))
    normalised = layer.input_layernorm(before[sample] if stage.ranks_itself else before[sample, places])
    asking = normalised[places] if stage.ranks_itself else normalised
    query_norm, key_norm = head_norms(attention)
    queries = _rotated(attention.q_proj(asking), query_norm, cosine[0, places], sine[0, places], size)
    if stage.ranks_itself:
        keys = _rotated(attention.k_proj(normalised), key_norm, cosine[0], sine[0], size)
    else:
        keys = cache.layers[stage.layer - 1].keys[sample]
    number = torch.arange(rows.kinds.shape[1], device=places.device)
    visible = (number <= places[:, None]) & (rows.kinds[sample] != PADDING)
    return attention_of(queries, keys, attention.scaling, visible)


def _undoubled(text_model: Any, rows: Rows, before: Tensor, cache: Any, stage: Stage, sample: int, count: int) -> Tensor:
    """Which `count` of a sample's visual tokens DART keeps, by keys of the layer that ranks and by the rows that come out of it."""
    visual, text = rows.of_kind(sample, VISUAL), rows.of_kind(sample, TEXT)
    if stage.ranks_itself:
        layer = text_model.layers[stage.layer]
        keys = layer.self_attn.k_proj(layer.input_layernorm(before[sample]))
    else:
        keys = cache.layers[stage.layer - 1].keys[sample].transpose(0, 1).flatten(1)
    after = text[text > visual[-1]]
    return least_duplicate(text_model.norm(rows.hidden[sample]), keys.abs().sum(-1), visual, after, count)


def _rotated(rows: Tensor, norm: Any, cosine: Tensor, sine: Tensor, size: int) -> Tensor:
    """`[rows, heads * head_dim]` as `[heads, rows, head_dim]`, after a norm of each head (None: none), with rotary embedding."""
    heads = rows.unflatten(1, (-1, size)).transpose(0, 1)
    heads = heads if norm is None else norm(heads)
    first, second = heads.chunk(2, -1)
    rotated: Tensor = heads * cosine + torch.cat([-second, first], -1) * sine
    return rotated


def _recycled(rows: Rows, sample: int, visual: Tensor, kept: Tensor, paid: Tensor) -> tuple[int, Tensor, Tensor]:
    """What SparseVLM merges of a sample's leaving tokens: the sample, the hidden states and the positions of their centres."""
    leaving = torch.ones(len(visual), dtype=torch.bool, device=visual.device)
    leaving[kept] = False
    worth, clusters = recycled(int(leaving.sum()))
    best = visual[leaving][paid.mean((0, 1))[leaving].topk(worth).indices]
    merged, centres = recycle(rows.hidden[sample, best], clusters)
    return sample, merged, rows.positions[sample, best[centres]]


def _with_recycled(rows: Rows, places: list[Tensor], new: list[tuple[int, Tensor, Tensor]]) -> tuple[Rows, list[Tensor]]:
    """Rows with the merged tokens at their end, and places that take them right after each sample's visual tokens."""
    batch, length, width = rows.hidden.shape
    most = max(len(merged) for _, merged, _ in new)
    hidden, positions = rows.hidden.new_zeros(batch, most, width), rows.positions.new_zeros(batch, most, *rows.positions.shape[2:])
    for sample, merged, where in new:
        hidden[sample, : len(merged)], positions[sample, : len(merged)] = merged, where
        last = int(rows.of_kind(sample, VISUAL)[-1])
        places[sample] = insert(places[sample], len(merged), last, length)
    kinds = rows.kinds.new_full((batch, most), VISUAL)
    extended = Rows(
        torch.cat([rows.hidden, hidden], 1), torch.cat([rows.positions, positions], 1), torch.cat([rows.kinds, kinds], 1), rows.seen
    )
    return extended, places
