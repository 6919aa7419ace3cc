"""Token pruners over the dense model of transformers: tokens really leave the sequence, and decoding goes on from unequal caches.

The decoder layers are transformers' own, SDPA attention included. Scores are computed for the few rows that rank, in the one layer
that ranks; the keys are those that the layer left in the cache.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ..families import family_of
from ..runtime.layer_parts import head_norms
from ..runtime.outputs import CACHE
from .pictures import apart, entering, pictures
from .rows import PADDING, TEXT, VISUAL, Rows, insert
from .schedule import Schedule, Stage, recycled, schedule
from .selection import attention_of, most_attended, raters, recycle

KEEPS_POSITIONS = frozenset({"fastv"})
"""Methods whose published code keeps the positions of the tokens that stay; the others number them anew."""


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
    """Greedy answer of a dense LLaVA under a schedule: new tokens `[batch, up to max_new_tokens]`, padded after the end of each."""
    end = model.generation_config.eos_token_id
    ends = torch.tensor(end if isinstance(end, list) else [] if end is None else [end], device=model.device)
    with torch.inference_mode():
        decoding = prefill(model, prompt(model, inputs, schedule, seed), schedule)
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


def generated(model: Any, inputs: Any, made: Schedule, budget: float, max_new_tokens: int, seed: int = 0) -> Iterator[Tensor]:
    """The same of a batch in one piece, or, where every picture has grids of its own, by sample, each at this share of what it has."""
    config = model.config.to_dict()
    family = family_of(config)
    if family.picture is None:
        yield generate(model, inputs, made, max_new_tokens, seed)
        return
    for own in apart(inputs):
        grids = tuple(family.visuals(config)[0].grids(own))
        yield generate(model, own, schedule(made.method, made.sizes, grids, budget), max_new_tokens, seed)


def prompt(model: Any, inputs: Any, schedule: Schedule, seed: int = 0) -> Rows:
    """What the language model reads: the processor's `inputs`, with the visual tokens that the schedule lets in."""
    given = pictures(model, inputs, schedule, seed) if "pixel_values" in inputs else None
    return embedded(model, inputs["input_ids"], inputs.get("attention_mask"), given, schedule)


def embedded(model: Any, ids: Tensor, mask: Tensor | None, given: Tensor | None, schedule: Schedule) -> Rows:
    """Rows of a prompt `[batch, length]` whose placeholders stand for whole pictures; `given` `[pictures, tokens, hidden]` enter."""
    mask = torch.ones_like(ids) if mask is None else mask
    kinds = torch.where(mask == 0, PADDING, torch.where(ids == model.config.image_token_id, VISUAL, TEXT))
    rows = Rows(model.get_input_embeddings()(ids), (mask.cumsum(1) - 1).clamp(min=0), kinds, mask.sum(1))
    whole = schedule.tokens // schedule.pictures
    if given is None:
        return rows
    if entering(schedule) < whole or rows.padded:
        rows = rows.take([_entering(kind, whole, given.shape[1]) for kind in rows.kinds])
    if given.shape[1] < whole:
        rows = rows.renumbered()
    visual = (rows.kinds == VISUAL)[..., None]
    return Rows(rows.hidden.masked_scatter(visual, given.to(rows.hidden.dtype)), rows.positions, rows.kinds, rows.seen)


def _entering(kinds: Tensor, whole: int, count: int) -> Tensor:
    """Places of a sample's text and of the first `count` of each `whole` placeholders."""
    visual = kinds == VISUAL
    number = (visual.cumsum(0) - 1) % whole
    return ((kinds == TEXT) | (visual & (number < count))).nonzero()[:, 0]


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
    rotary, mask = text_model.rotary_emb(rows.hidden, rows.positions), rows.mask()
    hidden = before = rows.hidden
    for layer in text_model.layers[first:last]:
        before = hidden
        hidden = _layer(layer, hidden, rows.positions, rotary, mask, cache)
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
        if count:
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
    cosine, sine = text_model.rotary_emb(before, rows.positions[sample : sample + 1])
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
    hidden, positions = rows.hidden.new_zeros(batch, most, width), rows.positions.new_zeros(batch, most)
    for sample, merged, where in new:
        hidden[sample, : len(merged)], positions[sample, : len(merged)] = merged, where
        last = int(rows.of_kind(sample, VISUAL)[-1])
        places[sample] = insert(places[sample], len(merged), last, length)
    kinds = torch.full_like(positions, VISUAL)
    extended = Rows(
        torch.cat([rows.hidden, hidden], 1), torch.cat([rows.positions, positions], 1), torch.cat([rows.kinds, kinds], 1), rows.seen
    )
    return extended, places
