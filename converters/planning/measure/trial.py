"""Trials: the really pruned model, run forward from the first layer that a plan changes, against the dense model's answers.

The runtime's own layers run on one dense layer at a time, whose weights are copied into the plan's order. What every layer was
given under the current plan is kept, so that a trial costs the layers behind its first change.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf, sqrt
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...runtime.attention import TextMasks
from ...runtime.cache import SparseLayer
from ...runtime.layout import LayerLayout, layouts
from ...runtime.plan import LayerPlan, Plan, dense_plan, normalise, ranges
from ...runtime.text_model import Call, Projections, SparseTextModel
from ..compensation import Fitting, Refit, visual_keys
from .activation_cache import Prefixes, State
from .answers import Answered
from .dense_adapter import Twin

MEMORY_BYTES = 4 * 10**9
LIKELIEST = 5
"""Tokens whose logits are compared."""
LEAST_MARGIN = 0.1
"""Nats: closer than that two tokens are taken for a tie."""
OPENING_FORWARDS = 3.0  # answering, the dense rows, the first kept states
FIT_ROWS = 8  # visual rows that a refit is fitted on, times the hidden size
FIT_SHARE = 0.25  # of the samples, at least
KEPT_REFITS = 8  # of each layer


@dataclass(frozen=True)
class Linear:
    """A linear layer of tensors: what the runtime asks of one."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, rows: Tensor) -> Tensor:
        return functional.linear(rows, self.weight, self.bias)


class PrunedLayer(SparseTextModel):
    """One layer of the runtime on a dense layer's weights, copied into the order of a layout, with K and V refitted where told."""

    def __init__(self, twin: Twin, index: int, plan: Plan, refit: Refit | None = None) -> None:
        super().__init__()
        self.plan = plan
        self.layouts = (layout := layouts(plan)[index],)
        assert layout.kv_rank is None or (refit is not None and refit.inner is not None)
        layer = twin.model.model.language_model.layers[index]
        self.layers = [_permuted(layer, twin.projections(index), layout, plan.sizes.head_dim)]
        if refit is not None:
            attention, held = self.layers[0].self_attn, layout.held * plan.sizes.head_dim
            if refit.inner is not None:
                attention.visual_kv_proj = Linear(*refit.inner)
            attention.visual_k_proj, attention.visual_v_proj = (
                _refitted(part, slice(held), refit) for part in (attention.k_proj, attention.v_proj)
            )
            if layout.ranked_queries:
                attention.visual_q_proj = _refitted(attention.q_proj, _elements(layout.computing, plan.sizes.head_dim), refit)
        self.split_weights()

    def run(self, call: Call) -> None:
        """Update the rows of a call."""
        self._attention(self.layers[0], self.layouts[0], call, SparseLayer(call.timeline, first=True))
        self._ffn(self.layers[0], self.layouts[0], call)


@dataclass(frozen=True)
class Questions:
    """One batch without its rows. `predicts` `[batch * text rows]` marks the text rows that predict an answer's tokens.

    `dense` `[answer tokens, hidden]` are the dense model's final rows there, `lengths` the tokens of each answer.
    """

    call: Call
    predicts: Tensor
    dense: Tensor
    lengths: tuple[int, ...]

    def at(self, state: State) -> Call:
        """The call with these rows."""
        masks = TextMasks(self.call.timeline, self.call.text_slots, causal=False)
        return replace(self.call, text=state.text, visual=state.visual, masks=masks, unit=None)


def opened(answered: Answered, twin: Twin) -> tuple[Questions, State]:
    """A batch, and its rows at the input of layer 0."""
    call = twin.call(answered)
    assert call.streams is not None
    assert call.visual is not None
    predicts = answered.predicts.gather(1, call.streams.text_index) & (call.text_slots >= 0)
    empty = call.text[:0]
    questions = Questions(
        replace(call, text=empty, visual=empty), predicts.flatten(), answered.dense, tuple(answered.predicts.sum(1).tolist())
    )
    return questions, State(call.text, call.visual)


@dataclass(frozen=True)
class Standing:
    """The plan whose states a batch has kept (None: none yet), and the change of it whose states the last trial offers."""

    plan: Plan | None
    offered: Plan | None = None

    def left_for(self, plan: Plan) -> tuple[Plan, Plan] | None:
        """What is still to run before the states are those of a plan; None where they are at hand."""
        return None if self.plan is None or plan in (self.plan, self.offered) else (self.plan, plan)


class Trials:
    """Measures plans of one model on one set of questions, and counts what that costs.

    A plan is measured on all batches or on the first few. Where it is `fitting`, K and V of visual rows are refitted for every plan, on
    the first batches, `fit`, which every measurement therefore has. `measured` holds the divergence of every plan on every batch, by the
    plan's key and the batch: nothing is run twice, and a search that is given what an earlier run measured goes through the same
    plans without running them. `forwards` counts forward-equivalents, as that earlier run did: a pass of all samples through all
    layers is one, a pass of half of them through the later half of the layers a quarter.
    """

    def __init__(
        self, model: Any, answers: Iterable[Answered], plan: Plan, *, fitting: bool = False,
        memory_bytes: int = MEMORY_BYTES, folder: Path | None = None, measured: dict[str, float] | None = None,
    ) -> None:  # fmt: skip
        """Trials that start from `plan`. States beyond `memory_bytes` go to files below `folder` (None: the system's)."""
        self.model = model
        self.twin = Twin.of(model)
        self.plan = normalise(plan)
        self.measured = {} if measured is None else measured
        self.prefixes = Prefixes(memory_bytes, folder)
        self.questions: list[Questions] = []
        with torch.inference_mode():
            for number, answered in enumerate(answers):
                questions, state = opened(answered, self.twin)
                self.questions.append(questions)
                self.prefixes.put(0, number, state)
        self.prefixes.accept(self.batches)
        self.heard: Callable[[], None] = lambda: None  # called after every measurement
        self.forwards = OPENING_FORWARDS
        self._counted: set[str] = set()
        self._counts = [Standing(self.plan) for _ in self.questions]
        self._kept = [Standing(None) for _ in self.questions]
        self.dense = self.plan
        self.fit = range(self._enough_to_fit() if fitting else 0)
        self._refits: dict[tuple[int, str], Refit] = {}
        self._dense_rows = Prefixes(memory_bytes // 2, folder)
        if self.fit:
            self._keep_dense_rows()

    def _enough_to_fit(self) -> int:
        """How many of the first batches are enough to fit on."""
        rows = samples = 0
        for number, questions in enumerate(self.questions, 1):
            assert questions.call.streams is not None
            rows += int((questions.call.streams.visual_slots >= 0).sum())
            samples += len(questions.lengths)
            if rows >= FIT_ROWS * self.plan.sizes.hidden_size and samples >= FIT_SHARE * self.samples:
                return number
        return len(self.questions)

    @torch.inference_mode()
    def _keep_dense_rows(self) -> None:
        """The normalised visual rows of the dense model, layer by layer, of the batches to fit on."""

        def keep(index: int, visual: Sequence[Tensor]) -> None:
            for number, rows in zip(self.fit, visual, strict=True):
                self._dense_rows.put(index, number, State(self._normalised(index, number, rows), rows[:0]))

        whole = dense_plan(self.plan.sizes, self.plan.grids)
        self._through(whole, 0, self.fit, [self.prefixes.get(0, number) for number in self.fit], keep=False, tell=keep)
        self._dense_rows.accept(self.fit)

    def _normalised(self, index: int, number: int, rows: Tensor) -> Tensor:
        """What a layer makes K and V from, of a batch's visual rows without padding."""
        streams = self.questions[number].call.streams
        assert streams is not None
        normalised: Tensor = self.twin.model.model.language_model.layers[index].input_layernorm(rows[streams.visual_slots.flatten() >= 0])
        return normalised

    @property
    def batches(self) -> range:
        return range(len(self.questions))

    @property
    def samples(self) -> int:
        return self.samples_of(self.batches)

    def samples_of(self, batches: Iterable[int]) -> int:
        return sum(len(self.questions[batch].lengths) for batch in batches)

    def some(self, samples: float) -> "Some":
        """Trials on as many of the first batches as it takes for so many samples, or on all."""
        enough = next((last for last in self.batches if self.samples_of(self.batches[: last + 1]) >= samples), len(self.batches) - 1)
        return Some(self, self.batches[: enough + 1])

    def settle(self, plan: Plan) -> None:
        """Measure changes of this plan from now on. Free for the plan measured last, whose states are at hand."""
        self.plan = normalise(plan)

    def shift(self, plan: Plan, batches: Sequence[int] | None = None) -> float:
        """Mean `shift` of the answers' tokens on these batches (default: all)."""
        plan, batches = normalise(plan), self.batches if batches is None else batches
        batches = batches if len(batches) > len(self.fit) else self.fit
        key = plan_key(plan)
        self._count(plan, [batch for batch in batches if f"{key}:{batch}" not in self._counted])
        self._counted.update(f"{key}:{batch}" for batch in batches)
        if unknown := [batch for batch in batches if f"{key}:{batch}" not in self.measured]:
            self._run(plan, unknown)
            self.heard()
        return sum(self.measured[f"{key}:{batch}"] for batch in batches) / sum(sum(self.questions[batch].lengths) for batch in batches)

    def race(self, plan: Plan, rival: Plan, slack: float) -> float:
        """The same, batch by batch, and given up (infinite) once the plan is worse than the rival by a share `slack` of what that has."""
        for last in self.batches[max(0, len(self.fit) - 1) :]:
            so_far = self.batches[: last + 1]
            if last < len(self.batches) - 1 and self.shift(plan, so_far) > self.shift(rival, so_far) * (1 + slack):
                return inf
        return self.shift(plan)

    def error(self, plan: Plan, rival: Plan) -> float:
        """The standard error of the difference of two plans' shifts, from how it differs between batches; both are measured on all.

        That of a ratio of sums over batches, the tokens of which differ (Cochran, Sampling Techniques, 1977, section 6.4); 0 of one batch.
        """
        keys = [plan_key(normalise(one)) for one in (plan, rival)]
        tokens = [sum(questions.lengths) for questions in self.questions]
        more = [self.measured[f"{keys[0]}:{batch}"] - self.measured[f"{keys[1]}:{batch}"] for batch in self.batches]
        mean, batches = sum(more) / sum(tokens), len(tokens)
        squares = sum((one - mean * many) ** 2 for one, many in zip(more, tokens, strict=True))
        return sqrt(squares * batches / max(1, batches - 1)) / sum(tokens)

    def _count(self, plan: Plan, batches: Iterable[int]) -> None:
        """Count a run of these batches as if nothing was known before, whatever is really run."""
        for batch in batches:
            weight = len(self.questions[batch].lengths) / self.samples
            if again := self._counts[batch].left_for(self.plan):
                self.forwards += weight * (1 - first_difference(*again) / len(plan.layers))
            self.forwards += weight * (1 - first_difference(self.plan, plan) / len(plan.layers))
            self._counts[batch] = Standing(self.plan, plan)

    @torch.inference_mode()
    def _run(self, plan: Plan, batches: list[int]) -> None:
        if not batches:
            return
        if again := self._lacks(self.plan, 0):
            self._kept[: len(self.fit)] = [Standing(None) for _ in self.fit]
        if again or self._lacks(plan, first_difference(self.plan, plan)):
            batches = sorted({*self.fit, *batches})
        self._catch_up(batches)
        self._measure(plan, batches, min(first_difference(self.plan, plan), len(plan.layers) - 1))
        for batch in batches:
            self._kept[batch] = Standing(self.plan, plan)

    def _catch_up(self, batches: list[int]) -> None:
        """Make the kept states those of the current plan; nothing runs where the last trial was just this change."""
        again: dict[int, list[int]] = {}
        for batch in batches:
            standing = self._kept[batch]
            if standing.plan is None:
                again.setdefault(0, []).append(batch)
            elif standing.left_for(self.plan):
                again.setdefault(first_difference(standing.plan, self.plan), []).append(batch)
            elif standing.plan != self.plan:
                self.prefixes.accept([batch])
        for first, part in again.items():
            self._measure(self.plan, part, first)
            self.prefixes.accept(part)

    @torch.inference_mode()
    def logits(self, plan: Plan, refits: Mapping[int, Refit] | None = None) -> Iterator[tuple[Questions, Tensor, Tensor]]:
        """Each batch with the pruned and the dense log-probabilities of its answers, float32 [answer tokens, vocabulary].

        `refits` are those of the layers, where the trials are not `fitting` themselves.
        """
        for _, batch, pruned, dense in self._logits(normalise(plan), self.batches, 0, keep=False, refits=refits):
            yield batch, pruned, dense

    def changed(self, plan: Plan, refits: Mapping[int, Refit] | None = None) -> float:
        """The share of questions that the pruned model answers differently: no more than that can its accuracy fall."""
        changed = 0
        for batch, pruned, dense in self.logits(plan, refits):
            same = (pruned.argmax(-1) == dense.argmax(-1)).split(batch.lengths)
            changed += sum(not bool(answer.all()) for answer in same)
        return changed / self.samples

    def _measure(self, plan: Plan, batches: Sequence[int], first: int) -> None:
        """Run layers `first`.. of a plan; the states on the way are offered to the prefixes, the divergences noted."""
        self.prefixes.discard(batches)
        key = plan_key(plan)
        for number, _, pruned, dense in self._logits(plan, batches, first, keep=True):
            self.measured[f"{key}:{number}"] = float(shift(pruned, dense).sum())

    def _logits(
        self, plan: Plan, batches: Sequence[int], first: int, keep: bool, refits: Mapping[int, Refit] | None = None
    ) -> Iterator[tuple[int, Questions, Tensor, Tensor]]:
        for numbers in self._blocks(plan, batches, first):
            states = [self.prefixes.get(first, number) for number in numbers]
            for number, state in zip(numbers, self._through(plan, first, numbers, states, keep, refits), strict=True):
                batch = self.questions[number]
                rows = self.model.model.language_model.norm(state.text[batch.predicts])
                pruned, dense = (self.model.lm_head(values).float().log_softmax(-1) for values in (rows, batch.dense))
                yield number, batch, pruned, dense

    def _blocks(self, plan: Plan, batches: Sequence[int], first: int) -> Iterator[Sequence[int]]:
        """Batches that go through the layers together; those to fit on all at once where refits are lacking."""
        if self._lacks(plan, first):
            yield self.fit
            batches = [batch for batch in batches if batch not in self.fit]
        yield from self.prefixes.blocks(batches, first)

    def _lacks(self, plan: Plan, first: int) -> bool:
        """Whether the plan has to go through layers `first`.. on the batches to fit on before others."""
        keys = list(enumerate(visual_keys(plan, self.dense)))[first:]
        return bool(self.fit) and any(key is not None and (index, key) not in self._refits for index, key in keys)

    def _refit(self, index: int, key: str, numbers: Sequence[int], visual: Sequence[Tensor], rank: int | None) -> Refit:
        """The refit of a layer, from the visual rows that it is given where it is not known yet."""
        found = self._refits.pop((index, key), None)
        if found is None:
            fitting = Fitting()
            for number, rows in zip(numbers, visual, strict=True):
                if number in self.fit:
                    fitting.add(self._normalised(index, number, rows), self._dense_rows.get(index, number).text)
            found = fitting.refit(rank, self.twin.kv_weights(index))
        self._refits[index, key] = found
        mine = [other for layer, other in self._refits if layer == index]
        if len(mine) > KEPT_REFITS:
            del self._refits[index, mine[0]]
        return found

    def _through(
        self, plan: Plan, first: int, numbers: Sequence[int], states: list[State], keep: bool,
        refits: Mapping[int, Refit] | None = None, tell: Callable[[int, Sequence[Tensor]], None] = lambda index, visual: None,
    ) -> list[State]:  # fmt: skip
        """The states of these batches after the last layer; a layer's weights are laid out once for all of them.

        `tell` hears what visual rows each layer is given.
        """
        calls = [self.questions[number].at(state) for number, state in zip(numbers, states, strict=True)]
        visual = [state.visual for state in states]
        keys = visual_keys(plan, self.dense)
        for index in range(first, len(plan.layers)):
            tell(index, visual)
            key = keys[index] if self.fit else None
            refit = (refits or {}).get(index) if key is None else self._refit(index, key, numbers, visual, plan.layers[index].kv_rank)
            layer = PrunedLayer(self.twin, index, plan, refit)
            for place, (number, call) in enumerate(zip(numbers, calls, strict=True)):
                if keep and index > first:
                    self.prefixes.put(index, number, State(call.text, visual[place]))
                if index >= plan.visual_depth:
                    call.visual = None
                layer.run(call)
                visual[place] = visual[place] if call.visual is None else call.visual
        return [State(call.text, rows) for call, rows in zip(calls, visual, strict=True)]


@dataclass(frozen=True)
class Some:
    """Trials on some of the batches."""

    trials: Trials
    batches: Sequence[int]

    @property
    def forwards(self) -> float:
        return self.trials.forwards

    def settle(self, plan: Plan) -> None:
        self.trials.settle(plan)

    def shift(self, plan: Plan) -> float:
        return self.trials.shift(plan, self.batches)


def shift(pruned: Tensor, dense: Tensor) -> Tensor:
    """How far each token's logits moved `[tokens]`, 0 for not at all, 1 for beyond measure, from log-probabilities `[tokens, vocabulary]`.

    `1 - exp(-r)`: `r` is the root mean square by which the dense model's five likeliest tokens moved against each other, over its margin
    between the first two: near 1 the answer is about to change. The order of plans by its mean on 128 questions is nearer to that by
    the answers that change on 1,000 others than the order by KL, which a few questions decide (`benchmarks/planner.md`).
    """
    likeliest = dense.topk(min(LIKELIEST, dense.shape[-1]), -1)
    moved = (pruned - dense).gather(-1, likeliest.indices)
    moved = (moved - moved.mean(-1, keepdim=True)).square().mean(-1).sqrt()
    margin = (likeliest.values[:, 0] - likeliest.values[:, 1]).clamp(min=LEAST_MARGIN)
    return -torch.expm1(-moved / margin)


def _permuted(layer: Any, parts: Projections, layout: LayerLayout, head_dim: int) -> SimpleNamespace:
    """The parts of a dense layer that the runtime uses, in the layout's order; nothing is copied that does not move."""
    queries, kv = _elements(layout.query_order, head_dim), _elements(layout.kv_order, head_dim)
    attention = SimpleNamespace(
        head_dim=head_dim,
        scaling=layer.self_attn.scaling,
        q_proj=_ordered(parts.query, queries, 0),
        k_proj=_ordered(parts.key, kv, 0),
        v_proj=_ordered(parts.value, kv, 0),
        o_proj=_ordered(parts.output, queries, 1),
    )
    ffn = SimpleNamespace(
        act_fn=parts.activation,
        gate_proj=_ordered(parts.gate, layout.neuron_order, 0),
        up_proj=_ordered(parts.up, layout.neuron_order, 0),
        down_proj=_ordered(parts.down, layout.neuron_order, 1),
    )
    norms = {name: getattr(layer, name) for name in ("input_layernorm", "post_attention_layernorm")}
    return SimpleNamespace(self_attn=attention, mlp=ffn, **norms)


def _refitted(linear: Linear, rows: Any, refit: Refit) -> Linear:
    """These rows of a projection as those of one of rows before a refit."""
    weight, bias = linear.weight[rows], None if linear.bias is None else linear.bias[rows]
    return Linear(refit.weight(weight), refit.bias(weight, bias))


def _ordered(linear: Any, order: Sequence[int], dim: int) -> Linear:
    if list(order) == list(range(len(order))):
        return Linear(linear.weight, linear.bias)
    index = torch.tensor(order, device=linear.weight.device)
    bias = linear.bias if linear.bias is None or dim == 1 else linear.bias.index_select(0, index)
    return Linear(linear.weight.index_select(dim, index), bias)


def _elements(heads: Sequence[int], head_dim: int) -> list[int]:
    return [head * head_dim + element for head in heads for element in range(head_dim)]


def first_difference(one: Plan, other: Plan) -> int:
    """The first layer that two normalised plans treat differently; the number of layers where there is none."""
    same_windows = one.locality == other.locality
    for index, (first, second) in enumerate(zip(one.layers, other.layers, strict=True)):
        if first != second or (first.window is not None and not same_windows):
            return index
    return len(one.layers)


def plan_key(plan: Plan) -> str:
    """A name for what a normalised plan does, the same in every run."""
    text = f"{plan.locality} " + " ".join(map(_layer_key, plan.layers))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@lru_cache(maxsize=4096)
def _layer_key(layer: LayerPlan) -> str:
    kept = ";".join(map(ranges, (layer.read_heads, layer.self_heads, layer.neurons)))
    return f"{kept};{layer.window};{layer.read_stride};{layer.kv_rank}"
