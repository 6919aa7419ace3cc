"""Trials: the really pruned model, run forward from the first layer that a plan changes, against the dense model's answers.

The runtime's own layers run on one dense layer at a time, whose weights are copied into the plan's order. What every layer was
given under the current plan is kept, so that a trial costs the layers behind its first change.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..runtime.attention import TextMasks
from ..runtime.cache import SparseLayer
from ..runtime.layout import LayerLayout, layouts
from ..runtime.plan import LayerPlan, Plan, normalise, ranges
from ..runtime.text_model import Call, Projections, SparseTextModel
from .answers import Answered
from .prefix import Prefixes, State
from .twin import Twin

MEMORY_BYTES = 4 * 10**9
OPENING_FORWARDS = 3.0  # answering, the dense rows, the first kept states


@dataclass(frozen=True)
class Linear:
    """A linear layer of tensors: what the runtime asks of one."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, rows: Tensor) -> Tensor:
        return functional.linear(rows, self.weight, self.bias)


class PrunedLayer(SparseTextModel):
    """One layer of the runtime on a dense layer's weights, copied into the order of a layout."""

    def __init__(self, twin: Twin, index: int, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.layouts = (layout := layouts(plan)[index],)
        layer = twin.model.model.language_model.layers[index]
        self.layers = [_permuted(layer, twin.projections(index), layout, plan.sizes.head_dim)]
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
        return replace(self.call, text=state.text, visual=state.visual, masks=masks, unit=None, lattices={})


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


class Trials:
    """Measures plans of one model on one set of questions, and counts what that costs.

    `measured` holds the price of every plan measured, by its key: a plan is never run twice, and a search that is given the
    prices of an earlier run goes through the same plans without running them. `forwards` counts forward-equivalents, as that
    earlier run did: a pass of all samples through all layers is one.
    """

    def __init__(
        self, model: Any, answers: Iterable[Answered], plan: Plan, *,
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
        self.prefixes.accept()
        self.forwards = OPENING_FORWARDS
        self._counted: dict[str, tuple[Plan, Plan]] = {}
        self._kept: Plan | None = None
        self._offered: tuple[Plan, Plan] | None = None

    @property
    def samples(self) -> int:
        return sum(len(batch.lengths) for batch in self.questions)

    def settle(self, plan: Plan) -> None:
        """Measure changes of this plan from now on. Free for the plan measured last, whose states are at hand."""
        plan = normalise(plan)
        if self._last_counted != (self.plan, plan):
            self.forwards += self._share(plan)
        self.plan = plan

    @property
    def _last_counted(self) -> tuple[Plan, Plan] | None:
        return next(reversed(self._counted.values()), None)

    def _share(self, plan: Plan) -> float:
        """The share of the layers that a plan runs anew, on top of the current plan."""
        return 1 - first_difference(self.plan, plan) / len(plan.layers)

    def kl(self, plan: Plan) -> float:
        """Mean over the answers' tokens of KL(dense || pruned), in nats."""
        plan = normalise(plan)
        key = plan_key(plan)
        if key not in self._counted:
            self._counted[key] = (self.plan, plan)
            self.forwards += self._share(plan)
        if key not in self.measured:
            self.measured[key] = self._run(plan)
        return self.measured[key]

    @torch.inference_mode()
    def _run(self, plan: Plan) -> float:
        kept = self._catch_up()
        self.prefixes.discard()
        value = self._divergence(plan, min(first_difference(kept, plan), len(plan.layers) - 1))
        self._offered = (kept, plan)
        return value

    def _catch_up(self) -> Plan:
        """Make the kept states those of the current plan, which is returned; nothing runs where the last trial was just this change."""
        if self._kept != self.plan:
            if self._kept is None or self._offered != (self._kept, self.plan):
                self.prefixes.discard()
                self._divergence(self.plan, 0 if self._kept is None else first_difference(self._kept, self.plan))
            self.prefixes.accept()
            self._kept = self.plan
        return self.plan

    @torch.inference_mode()
    def changed(self, plan: Plan) -> float:
        """The share of questions that the pruned model answers differently: no more than that can its accuracy fall."""
        changed = 0
        for batch, pruned, dense in self._logits(normalise(plan), 0):
            same = (pruned.argmax(-1) == dense.argmax(-1)).split(batch.lengths)
            changed += sum(not bool(answer.all()) for answer in same)
        self.prefixes.discard()
        return changed / self.samples

    def _divergence(self, plan: Plan, first: int) -> float:
        """Run layers `first`.. of a plan; the states on the way are offered to the prefixes."""
        total, tokens = 0.0, 0
        for _, pruned, dense in self._logits(plan, first):
            divergence = (dense.exp() * (dense - pruned)).sum(-1)
            total, tokens = total + float(divergence.sum()), tokens + len(divergence)
        return total / tokens

    def _logits(self, plan: Plan, first: int) -> Iterator[tuple[Questions, Tensor, Tensor]]:
        """Each batch with the pruned and the dense log-probabilities of its answers, float32 [answer tokens, vocabulary]."""
        for numbers in self.prefixes.blocks(len(self.questions), first):
            states = [self.prefixes.get(first, number) for number in numbers]
            for number, state in zip(numbers, self._through(plan, first, numbers, states), strict=True):
                batch = self.questions[number]
                rows = self.model.model.language_model.norm(state.text[batch.predicts])
                pruned, dense = (self.model.lm_head(values).float().log_softmax(-1) for values in (rows, batch.dense))
                yield batch, pruned, dense

    def _through(self, plan: Plan, first: int, numbers: Sequence[int], states: list[State]) -> list[State]:
        """The states of these batches after the last layer; a layer's weights are laid out once for all of them."""
        calls = [self.questions[number].at(state) for number, state in zip(numbers, states, strict=True)]
        visual = [state.visual for state in states]
        for index in range(first, len(plan.layers)):
            layer = PrunedLayer(self.twin, index, plan)
            for place, (number, call) in enumerate(zip(numbers, calls, strict=True)):
                if index > first:
                    self.prefixes.put(index, number, State(call.text, visual[place]))
                if index >= plan.visual_depth:
                    call.visual = None
                layer.run(call)
                visual[place] = visual[place] if call.visual is None else call.visual
        return [State(call.text, rows) for call, rows in zip(calls, visual, strict=True)]


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
    same_windows = (one.locality, one.window_frames) == (other.locality, other.window_frames)
    for index, (first, second) in enumerate(zip(one.layers, other.layers, strict=True)):
        if first != second or (first.window is not None and not same_windows):
            return index
    return len(one.layers)


def plan_key(plan: Plan) -> str:
    """A name for what a normalised plan does, the same in every run."""
    text = f"{plan.locality} {plan.window_frames} " + " ".join(map(_layer_key, plan.layers))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@lru_cache(maxsize=4096)
def _layer_key(layer: LayerPlan) -> str:
    kept = ";".join(map(ranges, (layer.read_heads, layer.self_heads, layer.neurons)))
    return f"{kept};{layer.window};{layer.read_phases}"
