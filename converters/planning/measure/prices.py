"""Prices of all units of all layers at a plan: what each adds, or would add, to the move of the answers' logits.

One forward pass at the plan keeps what each layer is given; then one pass from the last layer to the first computes every layer once
more, in the open, and carries several gradients back through it. One is along the way that a question's logits have moved so far, which
tells exactly, to first order, whether a change moves them on or back. The others are random probes across it: a random sign for each of
the likeliest logits of each answer's token, so that the squares of what a change adds to them add up, in the mean, to what it adds to the
squared move. Contributions are sums: a set of changes is priced by adding vectors up, and it is seen which changes cancel.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...runtime.plan import Plan, normalise
from ..compensation import LinearCompensation, visual_keys
from .batches import QuestionBatch
from .drift import LIKELIEST, moves_over_margin
from .open_layer import OpenLayer, OpenPass, OpenRows, VisualMaps, open_rows
from .plan_keys import plan_key
from .trials import Trials

Item = TypeVar("Item")
Vectors = NDArray[np.float32]
"""Contributions by unit, gradient (along the present move, then the probes) and question."""

ROOT_FLOOR = 0.01
"""Squared move, over the margin, below which the slope of the drift does not rise any more."""
LEAST_MOVE = 0.01
"""Weighted move of a question below which its way is not much of one: at the dense model it is that of rounding."""
SCORE_BYTES = 1 << 28
"""Of a layer's attention scores: questions go through it in parts that need no more."""


@dataclass(frozen=True)
class Knobs:
    """The settings to be priced: strides, windows (0: none) and ranks (None: whole projections)."""

    strides: tuple[int, ...]
    windows: tuple[int, ...]
    ranks: tuple[int | None, ...]


@dataclass(frozen=True)
class LayerPrices:
    """What the units of a layer add to the logits' move under each gradient, by question.

    `read` `[KV heads, ...]` by stride: what text gains from seeing visual tokens. `self_heads` `[heads, ...]` by window; `neurons`
    `[neurons, ...]`. `rank` is by how much K and V change with a rank, `[KV heads, ...]`, `queries` the same of queries `[heads, ...]`.
    """

    read: Mapping[int, Vectors]
    self_heads: Mapping[int, Vectors]
    neurons: Vectors
    rank: Mapping[int | None, Vectors]
    queries: Mapping[int | None, Vectors]


@dataclass(frozen=True)
class PlanPrices:
    """The prices of all layers, and each question's present move: the root of its square, weighted as the gradients are."""

    layers: tuple[LayerPrices, ...]
    moved: Vectors


@dataclass(frozen=True)
class Pricing:
    """How prices are made: on these batches, with so many probes."""

    trials: Trials
    batches: Sequence[int]
    probes: int
    knobs: Knobs

    def of(self, plan: Plan) -> PlanPrices:
        """The prices at a plan. Counted as one forward pass and one backward pass for each gradient."""
        plan = normalise(plan)
        self.trials.stand_at(plan, self.batches)
        self.count(plan)
        going = _LayerByLayer(self, plan)
        layers: list[LayerPrices] = []
        for index in reversed(range(len(plan.layers))):
            with self.trials.adapter.layer_at_hand(index), self.trials.adapter.head_at_hand() if not layers else nullcontext():
                layers.append(going.layer(index))
        return PlanPrices(tuple(reversed(layers)), np.take(np.concatenate(going.of_all(going.moved)), going.order))

    def count(self, plan: Plan) -> None:
        """Count prices at a plan as if they were made."""
        self.trials.count_standing(normalise(plan), self.batches)
        passes = self.trials.samples_of(self.batches) / self.trials.samples * (2 + self.probes)
        self.trials.forwards += passes
        self.trials.dense_forwards += passes

    def compensations(self, plan: Plan, index: int) -> dict[int | None, LinearCompensation | None]:
        """By rank, those of a layer to be priced and the plan's own, as trials fit them; the trials must stand at the plan."""
        fits, own, key = self.trials.fits, plan.layers[index].kv_rank, visual_keys(plan, self.trials.dense)[index]
        if fits is None:
            return {None: None}
        visual = [self.trials.cache.get(index, number).visual for number in fits.own]
        sums = fits.sums(index, fits.own, visual)
        made = sums.solve_all({own, *self.knobs.ranks}, self.trials.adapter.kv_weights(index))
        found: dict[int | None, LinearCompensation | None] = {**made}
        if key is not None:
            found[own] = fits.compensation(index, key, fits.own, visual, own)
        return found | ({None: None} if sums.nothing_missing else {})


class _LayerByLayer:
    """The way back: gradients of the batches at the layer that it has come to, `[gradients, questions, rows, hidden]`."""

    def __init__(self, pricing: Pricing, plan: Plan) -> None:
        self.pricing, self.plan, self.trials = pricing, plan, pricing.trials
        self.strides = {1, *pricing.knobs.strides, *(layer.read_stride for layer in plan.layers)}
        self.gradients: dict[int, tuple[Tensor, Tensor]] = {}
        self.likeliest = min(LIKELIEST, self.trials.model.lm_head.weight.shape[0])
        self.batches = [number for number in pricing.batches if number in self.trials.questions]
        own = [(number, place) for number in self.batches for place in self._places(number)]
        everywhere = self.of_all(own)
        self.order = sorted(range(len(everywhere)), key=lambda place: everywhere[place])
        self.moved: list[Vectors] = []

    def layer(self, index: int) -> LayerPrices:
        """The prices of a layer; the layer above it was the last."""
        with torch.inference_mode():
            compensations = self.pricing.compensations(self.plan, index)
        layer = OpenLayer(self.trials.adapter, index, self.plan, compensations[self.plan.layers[index].kv_rank])
        maps = {rank: VisualMaps.of(self.trials.adapter, index, one) for rank, one in compensations.items()}
        parts = []
        for number in self.batches:
            state, questions = self.trials.cache.get(index, number), self.trials.questions[number]
            found, back = [], []
            for part in _parts(questions, self.plan):
                rows = open_rows(questions, state, self.strides, part)
                made, gradients = self._priced(layer, maps, rows, number, part)
                found.append(made)
                back.append(gradients)
            self.gradients[number] = torch.cat([one[0] for one in back], 1), torch.cat([one[1] for one in back], 1)
            parts += found
        return _together(self.of_all(parts), self.order)

    def of_all(self, found: list[Item]) -> list[Item]:
        """What every process has found for its questions, those of the first process first; `order` puts them in the batches' order."""
        return [one for share in self.trials.processes.gathered(found) for one in share]

    def _places(self, number: int) -> list[int]:
        """Which questions of a batch are this process's."""
        return list(self.trials.processes.share(range(len(self.trials.facts[number].lengths))))

    def _priced(
        self, layer: OpenLayer, maps: Mapping[int | None, VisualMaps], rows: OpenRows, number: int, part: slice
    ) -> tuple[LayerPrices, tuple[Tensor, Tensor]]:
        """The prices of some questions, and the gradients at the layer's input."""
        with torch.enable_grad():
            done = layer.run(rows)
        after = self.gradients.get(number)
        gradients = self._top(done.text.detach(), number, part) if after is None else (after[0][:, part], after[1][:, part])
        wanted = [done.middle, done.read, done.keys, done.values, *([] if done.queries is None else [done.queries])]
        back = _backward((done.text, done.visual), (*done.inputs, *wanted), gradients)
        with torch.no_grad():
            prices = _prices(layer, maps, rows, done, Behind(gradients[1], *back[2:]), self.pricing.knobs)
        return prices, (back[0], back[1])

    def _top(self, text: Tensor, number: int, part: slice) -> tuple[Tensor, Tensor]:
        """The gradients behind the last layer, for its text rows `[questions, rows, hidden]`; visual rows are not read any more."""
        model, questions = self.trials.model, self.trials.questions[number]
        predicts = questions.predicts.clone().unflatten(0, (questions.call.batch, -1))[part]
        first = sum(questions.lengths[: part.start])
        dense = questions.dense[first : first + int(predicts.sum())].clone()
        with torch.no_grad():
            reference = model.lm_head(dense).float()
        with torch.enable_grad():
            leaf = text.requires_grad_()
            moves = moves_over_margin(model.lm_head(model.get_decoder().norm(leaf[predicts])).float(), reference)
        given, moved = self._seeds(moves.detach(), questions.lengths[part], self._signs(number, part).to(moves))
        self.moved.append(moved.cpu().numpy())
        (gradient,) = _backward((moves,), (leaf,), (given,))
        none = gradient.new_zeros(len(given), len(text), questions.visual_width, text.shape[-1])
        return gradient, none

    def _signs(self, number: int, part: slice) -> Tensor:
        """Random signs `[probes, tokens, likeliest]` of some of this process's questions, from those of the whole batch."""
        lengths = self.trials.facts[number].lengths
        generator = torch.Generator().manual_seed(int(plan_key(self.plan)[:8], 16) + 1001 * number)
        signs = torch.randint(0, 2, (self.pricing.probes, sum(lengths), self.likeliest), generator=generator) * 2 - 1
        by_question = signs.split(lengths, 1)
        return torch.cat([by_question[place] for place in self._places(number)[part]], 1)

    def _seeds(self, moves: Tensor, lengths: Sequence[int], signs: Tensor) -> tuple[Tensor, Tensor]:
        """What goes back from moves `[tokens, 5]`, `[gradients, tokens, 5]`, and each question's present move.

        The squared move of a token counts by the slope of the drift there.
        """
        root = (moves.square().sum(-1, keepdim=True) + ROOT_FLOOR).sqrt()
        weight = (torch.exp(-root) / (2 * root)).sqrt()
        question = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(moves.device)

        def by_question(values: Tensor) -> Tensor:
            return values.new_zeros(len(values), len(lengths)).index_add_(1, question, values.sum(-1))

        moved = by_question((weight * moves).square()[None])[0].sqrt()
        along = weight * moves / moved.clamp(min=LEAST_MOVE)[question][:, None]
        across = signs - by_question(signs * along)[:, question][..., None] * along
        return weight * torch.cat([along[None], across / max(1, self.pricing.probes) ** 0.5]), moved


def _parts(questions: QuestionBatch, plan: Plan) -> Iterator[slice]:
    """Questions of a batch that go through a layer together."""
    visual, text = questions.visual_width, questions.call.text_slots.shape[1]
    each = plan.sizes.num_attention_heads * (visual + text) ** 2 * 4
    few = max(1, SCORE_BYTES // each)
    for start in range(0, questions.call.batch, few):
        yield slice(start, min(start + few, questions.call.batch))


@dataclass(frozen=True)
class Behind:
    """The gradients behind the parts of a layer (see `OpenPass`), one after the other in the first dimension."""

    visual: Tensor
    middle: Tensor
    read: Tensor
    keys: Tensor
    values: Tensor
    queries: Tensor | None = None


def _backward(outputs: tuple[Tensor, ...], inputs: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> list[Tensor]:
    """Every gradient's way back, stacked; one after the other, for that is faster than all at once."""
    found = []
    for last, each in enumerate(zip(*gradients, strict=True), 1 - len(gradients[0])):
        with torch.enable_grad():
            found.append(
                torch.autograd.grad(outputs, inputs, each, retain_graph=last < 0, allow_unused=True, materialize_grads=True)
            )  # fmt: skip
    return [torch.stack(one) for one in zip(*found, strict=True)]


def _prices(
    layer: OpenLayer, maps: Mapping[int | None, VisualMaps], rows: OpenRows, done: OpenPass, behind: Behind, knobs: Knobs
) -> LayerPrices:
    """Contributions: what units add, times the gradients where they add it."""
    questions, sizes = len(rows.text), layer.sizes
    windows, strides = {*knobs.windows, layer.kept.window or 0}, {*knobs.strides, 1, layer.kept.read_stride}
    nothing = layer.reading(rows, torch.zeros_like(rows.shown[1])[:, None])
    read = {}
    for stride in strides:
        gained = (layer.reading(rows, rows.shown[stride][:, None]) - nothing) * layer.may_read[:, None, None]
        by_head = (gained * behind.read).sum((-1, -2))
        read[stride] = _by_unit(by_head.unflatten(-1, (-1, sizes.group)).sum(-1))
    empty = np.zeros((0, len(behind.read), questions), np.float32)
    self_heads, neurons = dict.fromkeys(windows, empty), empty
    if done.neurons is not None:
        output, down = layer.linear.output.weight, layer.linear.down.weight
        added = (behind.middle @ output).unflatten(-1, (-1, sizes.head_dim)).transpose(2, 3)
        own, kept = layer.kept.window or 0, list(layer.kept.self_heads)
        self_heads[own] = _by_unit((layer.looking(rows, own) * added).sum((-1, -2)))
        for window in windows - {own}:  # of those kept; another one that is added has first the window that there is
            self_heads[window] = self_heads[own].copy()
            if kept:
                self_heads[window][kept] = _by_unit((layer.looking(rows, window, kept) * added[:, :, kept]).sum((-1, -2)))
        used = done.neurons.unflatten(0, (questions, -1))
        neurons = _by_unit(torch.stack([(used * (gradient @ down)).sum(1) for gradient in behind.visual]))
    rank, queries = {}, {}
    normed = layer.norms[0](rows.visual.detach()).flatten(0, 1)
    for wanted, other in maps.items():
        made_of = other.sources(normed)
        rank[wanted] = _heads(other.key.outputs(made_of) - done.keys, behind.keys, questions, sizes.num_key_value_heads)
        rank[wanted] += _heads(other.value.outputs(made_of) - done.values, behind.values, questions, sizes.num_key_value_heads)
        queries[wanted] = empty
        if done.queries is not None and behind.queries is not None:
            change = other.query.outputs(made_of if other.inner is not None else normed) - done.queries
            queries[wanted] = _heads(change, behind.queries, questions, sizes.num_attention_heads)
    return LayerPrices(read, self_heads, neurons, rank, queries)


def _heads(change: Tensor, gradient: Tensor, questions: int, heads: int) -> Vectors:
    """By head, the change of a product `[questions * rows, heads * head_dim]` times its gradients."""
    by_element = (change * gradient).unflatten(1, (questions, -1)).sum(2)
    return _by_unit(by_element.unflatten(-1, (heads, -1)).sum(-1))


def _by_unit(sums: Tensor) -> Vectors:
    """`[units, gradients, questions]` of `[gradients, questions, units]`."""
    array: Vectors = sums.permute(2, 0, 1).float().cpu().numpy()
    return array


def _together(parts: Sequence[LayerPrices], order: Sequence[int]) -> LayerPrices:
    """The prices of all questions, in this order."""

    def joined(name: str) -> Any:
        found = [getattr(part, name) for part in parts]
        if isinstance(found[0], dict):
            return {key: np.take(np.concatenate([one[key] for one in found], -1), order, -1) for key in found[0]}
        return np.take(np.concatenate(found, -1), order, -1)

    return LayerPrices(*map(joined, ("read", "self_heads", "neurons", "rank", "queries")))
