"""A pruned layer computed in the open: every unit for visual rows, and masks in the place of what the plan leaves out.

So what each unit adds, or would add, is at hand together with the gradient behind it. Slower than the runtime's layer, and the same
function.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...runtime.attention import by_kernel, rotate
from ...runtime.call import Rotary
from ...runtime.layer_parts import head_norms
from ...runtime.plan import Plan
from ...runtime.projection import Plain
from ...runtime.token_split import Image
from ...runtime.windows import sees
from ..compensation import LinearCompensation
from .activation_cache import LayerInput
from .batches import QuestionBatch
from .dense_adapter import DenseAdapter
from .pruned_layer import compensated


@dataclass(frozen=True)
class OpenRows:
    """Some questions of a batch at a layer's input: rows `[questions, rows, hidden]`, slots `[questions, rows]`, -1 for padding."""

    text: Tensor
    visual: Tensor
    text_slots: Tensor
    visual_slots: Tensor
    text_rotary: Rotary
    visual_rotary: Rotary
    images: tuple[Image, ...]
    shown: Mapping[int, Tensor]

    @property
    def keys(self) -> Tensor:
        """The slots of all keys, visual ones first."""
        return torch.cat([self.visual_slots, self.text_slots], 1)


def open_rows(questions: QuestionBatch, state: LayerInput, strides: Iterable[int], part: slice) -> OpenRows:
    """The questions `part` of a batch. Every tensor is new: what was made in inference mode cannot take part in a graph."""
    call, split = questions.call, questions.call.split
    assert split is not None
    assert call.visual_rotary is not None
    count = call.batch
    first = range(count)[part][0]
    own = [Image(image.sample - first, image.start, image.grid) for image in split.images if image.sample in range(count)[part]]

    def of(rows: Tensor) -> Tensor:
        apart: Tensor = rows.unflatten(0, (count, -1))
        return apart[part].clone()

    def rotary(pair: Rotary) -> Rotary:
        return of(pair[0]), of(pair[1])

    return OpenRows(
        of(state.text), of(state.visual), call.text_slots[part].clone(), split.visual_slots[part].clone(), rotary(call.text_rotary),
        rotary(call.visual_rotary), tuple(own), {stride: _shown(questions, stride)[part] for stride in strides},
    )  # fmt: skip


def _shown(questions: QuestionBatch, stride: int) -> Tensor:
    """Bool `[questions, visual rows]`: which of them a stride shows."""
    split = questions.call.split
    assert split is not None
    rows, slots = split.shown(stride)
    width = split.visual_slots.shape[1]
    mask = torch.zeros(len(rows), width + 1, dtype=torch.bool, device=rows.device)
    return mask.scatter(1, rows.where(slots >= 0, width), True)[:, :width]


@dataclass(frozen=True)
class OpenPass:
    """What a layer did, in tensors of one graph.

    `text`, `visual` are its rows after it, `inputs` before and `middle` the visual ones between attention and FFN. `read` is what text
    heads see `[questions, heads, rows, head_dim]`; `keys`, `values` and `queries` are the products of visual rows `[questions * rows,
    heads * head_dim]`. Not in the graph: `neurons`, all those of visual rows `[questions * rows, neurons]`.
    """

    text: Tensor
    visual: Tensor
    inputs: tuple[Tensor, Tensor]
    middle: Tensor
    read: Tensor
    keys: Tensor
    values: Tensor
    queries: Tensor | None = None
    neurons: Tensor | None = None


@dataclass(frozen=True)
class VisualMaps:
    """The projections of visual rows for K, V and queries, after `inner` where they go through a rank."""

    key: Plain
    value: Plain
    query: Plain
    inner: Plain | None = None

    @classmethod
    @torch.no_grad()
    def of(cls, adapter: DenseAdapter, index: int, compensation: LinearCompensation | None) -> "VisualMaps":
        """Those of a layer. Queries are compensated where there is a rank alone."""
        linear: Any = adapter.projections(index)
        parts = linear.key, linear.value, linear.query
        if compensation is None:
            key, value, query = (Plain(part.weight.detach(), None if part.bias is None else part.bias.detach()) for part in parts)
            return cls(key, value, query)
        made = [compensated(part, slice(None), compensation) for part in parts]
        if compensation.inner is None:
            return cls(made[0], made[1], Plain(linear.query.weight.detach(), linear.query.bias))
        dtype = linear.key.weight.dtype
        weight, bias = (part.clone().to(dtype) for part in compensation.inner)
        return cls(made[0], made[1], made[2], Plain(weight, bias))

    def sources(self, normed: Tensor) -> Tensor:
        """What K and V are made from, of normalised rows `[rows, hidden]`."""
        return normed if self.inner is None else self.inner.outputs(normed)


class OpenLayer:
    """Layer `index` of a dense model under a plan, K and V of visual rows compensated or not.

    What the plan keeps is computed in a graph, the rest beside it. `updates`: whether visual rows may change.
    """

    def __init__(self, adapter: DenseAdapter, index: int, plan: Plan, compensation: LinearCompensation | None) -> None:
        layer = adapter.model.get_decoder().layers[index]
        self.plan, self.kept, self.sizes = plan, plan.layers[index], plan.sizes
        self.updates = index < plan.visual_depth - 1
        linear: Any = adapter.projections(index)
        self.linear = linear
        self.maps = VisualMaps.of(adapter, index, compensation)
        self.norms = layer.input_layernorm, layer.post_attention_layernorm
        self.query_norm, self.key_norm = head_norms(layer.self_attn)
        self.scale, self.device = layer.self_attn.scaling, adapter.kv_weights(index)[0].device
        kept = set(self.kept.neurons)
        self.neurons = [
            self._index(self.kept.neurons),
            self._index([one for one in range(self.sizes.intermediate_size) if one not in kept]),
        ]
        with torch.no_grad():
            self.ffn = [self._some_neurons(part) for part in self.neurons]

    def run(self, rows: OpenRows) -> OpenPass:
        """The layer on these rows, in a graph from them to what comes out."""
        text, visual = rows.text.requires_grad_(), rows.visual.requires_grad_()
        normed_text, normed = _flat(self.norms[0](text)), _flat(self.norms[0](visual))
        made_of = self.maps.sources(normed)
        keys, values = self.maps.key.outputs(made_of), self.maps.value.outputs(made_of)
        both = [self._turned(keys, self.key_norm, rows.visual_rotary)]
        both.append(self._turned(self.linear.key.outputs(normed_text), self.key_norm, rows.text_rotary))
        seen = [self._heads(part, len(text)) for part in (values, self.linear.value.outputs(normed_text))]
        self.keys, self.values = torch.cat(both, 2), torch.cat(seen, 2)
        self.asking = self._turned(self.linear.query.outputs(normed_text), self.query_norm, rows.text_rotary)
        read = self.reading(rows, self._reads(rows))
        after = text + self.linear.output.inputs(_joined(read)).view_as(text)
        if not self.updates:
            return OpenPass(self._text_ffn(after), visual, (text, visual), visual, read, keys, values)
        queries = self.maps.query.outputs(normed if self.kept.kv_rank is None else made_of)
        self.looked_for = self._turned(queries, self.query_norm, rows.visual_rotary)
        middle = self._attended(rows, visual)
        out, neurons = self._fed(middle)
        return OpenPass(self._text_ffn(after), out, (text, visual), middle, read, keys, values, queries, neurons)

    def _attended(self, rows: OpenRows, visual: Tensor) -> Tensor:
        """Visual rows after the attention of the heads that are kept."""
        if not self.kept.self_heads:
            return visual.clone()
        size, heads = self.sizes.head_dim, self.kept.self_heads
        places = self._index([head * size + element for head in heads for element in range(size)])
        output = self.linear.output
        weight = output.weight if len(heads) == self.sizes.num_attention_heads else output.weight[:, places]
        seen = _joined(self.looking(rows, self.kept.window or 0, heads))
        return visual + Plain(weight.detach(), output.bias).outputs(seen).view_as(visual)

    def _fed(self, middle: Tensor) -> tuple[Tensor, Tensor]:
        """Visual rows after the neurons that are kept, and what all neurons give."""
        normed, down = _flat(self.norms[1](middle)), self.linear.down
        used = self._neurons(self.ffn[0], normed)
        neurons = torch.empty(len(normed), self.sizes.intermediate_size, dtype=used.dtype, device=used.device)
        with torch.no_grad():
            for place, part in zip(self.neurons, (used.detach(), self._neurons(self.ffn[1], normed.detach())), strict=True):
                neurons[:, place] = part
        if not self.kept.neurons:
            return middle, neurons
        weight = down.weight if not len(self.neurons[1]) else down.weight[:, self.neurons[0]]
        return middle + Plain(weight.detach(), down.bias).outputs(used).view_as(middle), neurons

    def _some_neurons(self, places: Tensor) -> tuple[Plain, Plain]:
        """The gate and up projections of some neurons; nothing is copied where they are all."""
        parts = self.linear.gate, self.linear.up
        whole = len(places) == self.sizes.intermediate_size
        weights = [part.weight.detach() if whole else part.weight.detach()[places] for part in parts]
        biases = [None if part.bias is None else part.bias.detach()[places] for part in parts]
        return Plain(weights[0], biases[0]), Plain(weights[1], biases[1])

    def _neurons(self, ffn: tuple[Plain, Plain], normed: Tensor) -> Tensor:
        neurons: Tensor = self.linear.activation(ffn[0].outputs(normed)) * ffn[1].outputs(normed)
        return neurons

    def reading(self, rows: OpenRows, shown: Tensor) -> Tensor:
        """What text heads see, where `shown` `[questions, 1 or heads, visual rows]` tells which visual keys there are."""
        keys, queries = rows.keys[:, None], rows.text_slots[..., None]
        allowed = ((keys >= 0) & (keys <= queries)) | (queries < 0)
        columns = torch.cat([shown, shown.new_ones(*shown.shape[:2], rows.text_slots.shape[1])], -1)
        return by_kernel(self.asking, self.keys, self.values, allowed[:, None] & columns[:, :, None], self.scale)

    def _reads(self, rows: OpenRows) -> Tensor:
        """Which visual keys each head shows text under the plan."""
        held, reads = set(self.kept.kv_heads(self.sizes)[0]), set(self.kept.read_heads)
        strides = [1 if head // self.sizes.group in held else self.kept.read_stride for head in range(self.sizes.num_attention_heads)]
        shown = [rows.shown[stride] if head in reads else torch.zeros_like(rows.shown[stride]) for head, stride in enumerate(strides)]
        return torch.stack(shown, 1)

    @property
    def may_read(self) -> Tensor:
        """`[heads]`: those that read with their KV head: of one that is read those that do, else all."""
        reads = torch.zeros(self.sizes.num_attention_heads, device=self.device)
        reads[list(self.kept.read_heads)] = 1
        groups = reads.unflatten(0, (-1, self.sizes.group))
        return torch.where(groups.any(1, keepdim=True), groups, 1).flatten()

    def looking(self, rows: OpenRows, window: int, heads: Sequence[int] | None = None) -> Tensor:
        """What visual heads see, all of them or these, through a window (0: none), `[questions, heads, rows, head_dim]`."""
        slots, queries = rows.keys[:, None], rows.visual_slots[..., None]
        allowed = (slots >= 0) & (slots <= queries)
        if window:
            allowed = _windowed(rows, window, self.plan.locality, allowed)
        allowed = (allowed | (queries < 0))[:, None]
        asked, keys, values = self.looked_for, self.keys, self.values
        if heads is not None and len(heads) < self.sizes.num_attention_heads:
            shared = self._index([head // self.sizes.group for head in heads])
            asked, keys, values = asked[:, self._index(heads)], keys[:, shared], values[:, shared]
        return by_kernel(asked, keys, values, allowed, self.scale)

    def _text_ffn(self, text: Tensor) -> Tensor:
        normed = _flat(self.norms[1](text))
        neurons = self.linear.activation(self.linear.gate.outputs(normed)) * self.linear.up.outputs(normed)
        update: Tensor = self.linear.down.inputs(neurons)
        return text + update.view_as(text)

    def _turned(self, made: Tensor, norm: Any, rotary: Rotary) -> Tensor:
        """Heads `[questions, heads, rows, head_dim]` of products, normalised and turned."""
        heads = made.unflatten(-1, (-1, self.sizes.head_dim))
        heads = heads if norm is None else norm(heads)
        cosine, sine = (part.flatten(0, 1) for part in rotary)
        turned: Tensor = rotate(heads, cosine, sine).unflatten(0, rotary[0].shape[:2])
        return turned.transpose(1, 2)

    def _heads(self, made: Tensor, questions: int) -> Tensor:
        heads: Tensor = made.unflatten(-1, (-1, self.sizes.head_dim)).unflatten(0, (questions, -1))
        return heads.transpose(1, 2)

    def _index(self, places: Sequence[int]) -> Tensor:
        return torch.tensor(list(places), dtype=torch.long, device=self.device)


def _flat(rows: Tensor) -> Tensor:
    return rows.flatten(0, 1)


def _joined(heads: Tensor) -> Tensor:
    """`[questions * rows, heads * head_dim]`"""
    return heads.transpose(1, 2).flatten(2).flatten(0, 1)


def _windowed(rows: OpenRows, window: int, locality: str, earlier: Tensor) -> Tensor:
    """Which keys visual rows see through a window of their own picture, and the text before it."""
    visual = rows.visual_slots.shape[1]
    allowed = torch.zeros_like(earlier)
    for image in rows.images:
        own = slice(image.start, image.start + image.grid.tokens)
        token = torch.arange(image.grid.tokens, device=earlier.device)
        allowed[image.sample, own, own] = sees(token[:, None], token[None], image.grid, window, locality)
        first = rows.visual_slots[image.sample, image.start]
        allowed[image.sample, own, visual:] = (rows.text_slots[image.sample] >= 0) & (rows.text_slots[image.sample] < first)
    return allowed
