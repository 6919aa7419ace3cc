"""Trials: the really pruned model, run forward from the first layer that a plan changes, against the dense model's answers.

What every layer was given under the current plan is kept, so that a trial costs the layers behind its first change.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from ...processes import ALONE, Processes
from ...runtime.plan import Plan, dense_plan, normalise
from ..compensation import LinearCompensation, visual_keys
from ..cost import dense_flops, layer_cost
from .activation_cache import ActivationCache, LayerInput
from .answers import Answered
from .batches import BatchFacts, QuestionBatch, open_batch
from .dense_adapter import DenseAdapter
from .drift import logit_drift
from .fits import Fits
from .plan_keys import first_difference, plan_key
from .pruned_layer import PrunedLayer

MEMORY_BYTES = 4 * 10**9
OPENING_FORWARDS = 3.0  # answering, the dense rows, the first kept states

Compensations = Mapping[int, LinearCompensation]
"""By layer."""
OnLayer = Callable[[int, Sequence[Tensor]], None]
"""Called with a layer's index and the visual rows that each batch brings to it."""


@dataclass(frozen=True)
class CachedPlan:
    """Of which plan the cache has a batch's states (None: none yet), and the candidate whose states the last trial left there."""

    plan: Plan | None
    candidate: Plan | None = None

    def missing_for(self, plan: Plan) -> tuple[Plan, Plan] | None:
        """The plan of the states and the one that they have to become, where layers must be run for that; None where nothing must."""
        return None if self.plan is None or plan in (self.plan, self.candidate) else (self.plan, plan)


class Trials:
    """Measures the logit drift of plans of one model on one set of questions, and counts what that costs.

    A plan is measured on all batches or on the first few. If `fitting`, K and V of visual rows get a linear compensation for every plan,
    fitted on the first batches, `fit`, which take part in every measurement. `measured` has the sum of the drift over a batch's answer
    tokens, by the plan's key and the batch: nothing is run twice, and a search that is given the measurements of an earlier run goes
    through the same plans without running them. `forwards` counts forward passes as if all of them had been run: all questions through
    all layers are one, half of them through the later half of the layers a quarter. `dense_forwards` counts the same by FLOPs, in those of
    a pass of the dense model: layers in which visual tokens do less are cheaper.

    Of several `processes` each is given its share of every batch (None: nothing of it). What they measure is added up for all, so that all
    of them, asked the same, know and do the same.
    """

    def __init__(
        self, model: Any, answers: Iterable[Answered | None], plan: Plan, *, fitting: bool = False,
        memory_bytes: int = MEMORY_BYTES, folder: Path | None = None, measured: dict[str, float] | None = None,
        processes: Processes = ALONE,
    ) -> None:  # fmt: skip
        """Trials that start from `plan`. States beyond `memory_bytes` go to files below `folder` (None: the system's)."""
        self.model = model
        self.adapter = DenseAdapter.of(model)
        self.plan = normalise(plan)
        self.measured = {} if measured is None else measured
        self.cache = ActivationCache(memory_bytes, folder)
        self.processes = processes
        self.questions: dict[int, QuestionBatch] = {}
        found: list[BatchFacts | None] = []
        with torch.inference_mode():
            for number, answered in enumerate(answers):
                found.append(None)
                if answered is not None:
                    self.questions[number], state = open_batch(answered, self.adapter)
                    found[-1] = self.questions[number].facts
                    self.cache.put(0, number, state)
        self.facts = [BatchFacts.of_shares(shares) for shares in zip(*processes.gathered(found), strict=True)]
        self.cache.accept(self.batches)
        self.on_measurement: Callable[[], None] = lambda: None  # called after every measurement
        self.forwards = self.dense_forwards = OPENING_FORWARDS
        self._counted: set[str] = set()
        self._counts = [CachedPlan(self.plan) for _ in self.facts]
        self._kept = [CachedPlan(None) for _ in self.facts]
        self.dense = self.plan
        self.fits = Fits(self.adapter, self.questions, self.facts, memory_bytes // 2, folder, processes) if fitting else None
        if self.fits is not None:
            self._run_dense(self.fits)

    @property
    def fit(self) -> range:
        """The first batches, which compensations are fitted on."""
        return range(0) if self.fits is None else self.fits.batches

    @torch.inference_mode()
    def _run_dense(self, fits: Fits) -> None:
        """Have the dense model's visual rows kept, layer by layer."""
        whole = dense_plan(self.plan.sizes, self.plan.grids)
        self._through(whole, 0, fits.own, [self.cache.get(0, number) for number in fits.own], keep=False, on_layer=fits.keep_dense)

    @property
    def batches(self) -> range:
        return range(len(self.facts))

    @property
    def samples(self) -> int:
        return self.samples_of(self.batches)

    def samples_of(self, batches: Iterable[int]) -> int:
        return sum(len(self.facts[batch].lengths) for batch in batches)

    def some(self, samples: float) -> "TrialSubset":
        """Trials on as many of the first batches as it takes for so many samples, or on all."""
        enough = next((last for last in self.batches if self.samples_of(self.batches[: last + 1]) >= samples), len(self.batches) - 1)
        return TrialSubset(self, self.batches[: enough + 1])

    def settle(self, plan: Plan) -> None:
        """Measure changes of this plan from now on. Free for the plan measured last, whose states are at hand."""
        self.plan = normalise(plan)

    def stand_at(self, plan: Plan, batches: Sequence[int]) -> None:
        """Settle, and have what each layer is given under this plan in the cache for these batches and those to fit on."""
        self.settle(plan)
        self.logit_drift(plan, batches)
        batches = sorted({*self.fit, *batches})
        with torch.inference_mode():
            if self._lacks(self.plan, 0):
                self._kept[: len(self.fit)] = [CachedPlan(None) for _ in self.fit]
            self._catch_up(batches)
        for batch in batches:
            self._kept[batch] = CachedPlan(self.plan)

    def count_standing(self, plan: Plan, batches: Sequence[int]) -> None:
        """Settle, and count what it takes to have that in the cache, whatever is really run."""
        self.settle(plan)
        for batch in batches:
            self._count_again(batch)
            self._counts[batch] = CachedPlan(self.plan)

    def logit_drift(self, plan: Plan, batches: Sequence[int] | None = None) -> float:
        """Mean `logit_drift` of the answers' tokens on these batches (default: all)."""
        plan, batches = normalise(plan), self.batches if batches is None else batches
        batches = batches if len(batches) > len(self.fit) else self.fit
        key = plan_key(plan)
        self._count(plan, [batch for batch in batches if f"{key}:{batch}" not in self._counted])
        self._counted.update(f"{key}:{batch}" for batch in batches)
        if unknown := [batch for batch in batches if f"{key}:{batch}" not in self.measured]:
            self._run(plan, unknown)
            self.on_measurement()
        return sum(self.measured[f"{key}:{batch}"] for batch in batches) / sum(sum(self.facts[batch].lengths) for batch in batches)

    def race(self, plan: Plan, rival: Plan, slack: float) -> float:
        """The same, batch by batch, and given up (infinite) once the plan is worse than the rival by a share `slack` of what that has."""
        for last in self.batches[max(0, len(self.fit) - 1) :]:
            so_far = self.batches[: last + 1]
            if last < len(self.batches) - 1 and self.logit_drift(plan, so_far) > self.logit_drift(rival, so_far) * (1 + slack):
                return inf
        return self.logit_drift(plan)

    def error(self, plan: Plan, rival: Plan) -> float:
        """The standard error of the difference of two plans' drifts, from how it differs between batches; both are measured on all.

        That of a ratio of sums over batches, the tokens of which differ (Cochran, Sampling Techniques, 1977, section 6.4); 0 of one batch.
        """
        keys = [plan_key(normalise(one)) for one in (plan, rival)]
        tokens = [sum(batch.lengths) for batch in self.facts]
        more = [self.measured[f"{keys[0]}:{batch}"] - self.measured[f"{keys[1]}:{batch}"] for batch in self.batches]
        mean, batches = sum(more) / sum(tokens), len(tokens)
        squares = sum((one - mean * many) ** 2 for one, many in zip(more, tokens, strict=True))
        return sqrt(squares * batches / max(1, batches - 1)) / sum(tokens)

    def _count(self, plan: Plan, batches: Iterable[int]) -> None:
        """Count a run of these batches as if nothing was known before, whatever is really run."""
        for batch in batches:
            self._count_again(batch)
            self._count_pass(batch, plan, first_difference(self.plan, plan))
            self._counts[batch] = CachedPlan(self.plan, plan)

    def _count_again(self, batch: int) -> None:
        if again := self._counts[batch].missing_for(self.plan):
            self._count_pass(batch, self.plan, first_difference(*again))

    def _count_pass(self, batch: int, plan: Plan, first: int) -> None:
        """Count a batch's way through layers `first`.. of a plan."""
        weight = len(self.facts[batch].lengths) / self.samples
        self.forwards += weight * (1 - first / len(plan.layers))
        self.dense_forwards += weight * self._flops(plan, first) / self._flops(self.dense, 0)

    def _flops(self, plan: Plan, first: int) -> float:
        """Of layers `first`.., for visual tokens and the median question's text."""
        text = median(batch.text_rows / len(batch.lengths) for batch in self.facts)
        visual = plan.visual_tokens
        of_text = dense_flops(plan.sizes, visual + round(text)) - dense_flops(plan.sizes, visual)
        return sum(layer_cost(layer, plan).total for layer in plan.layers[first:]) + of_text * (1 - first / len(plan.layers))

    @torch.inference_mode()
    def _run(self, plan: Plan, batches: list[int]) -> None:
        if not batches:
            return
        if again := self._lacks(self.plan, 0):
            self._kept[: len(self.fit)] = [CachedPlan(None) for _ in self.fit]
        if again or self._lacks(plan, first_difference(self.plan, plan)):
            batches = sorted({*self.fit, *batches})
        self._catch_up(batches)
        self._measure(plan, batches, min(first_difference(self.plan, plan), len(plan.layers) - 1))
        for batch in batches:
            self._kept[batch] = CachedPlan(self.plan, plan)

    def _catch_up(self, batches: list[int]) -> None:
        """Make the kept states those of the current plan; nothing runs where the last trial was just this change."""
        again: dict[int, list[int]] = {}
        for batch in batches:
            cached = self._kept[batch]
            if cached.plan is None:
                again.setdefault(0, []).append(batch)
            elif cached.missing_for(self.plan):
                again.setdefault(first_difference(cached.plan, self.plan), []).append(batch)
            elif cached.plan != self.plan:
                self.cache.accept([batch])
        for first, part in again.items():
            self._measure(self.plan, part, first)
            self.cache.accept(part)

    @torch.inference_mode()
    def logits(self, plan: Plan, compensations: Compensations | None = None) -> Iterator[tuple[QuestionBatch, Tensor, Tensor]]:
        """Its shares of the batches, with the pruned and the dense log-probabilities of answers, float32 [answer tokens, vocabulary].

        `compensations` are those of the layers, where the trials are not `fitting` themselves.
        """
        for _, batch, pruned, dense in self._logits(normalise(plan), self.batches, 0, keep=False, compensations=compensations):
            yield batch, pruned, dense

    def changed(self, plan: Plan, compensations: Compensations | None = None) -> float:
        """The share of questions that the pruned model answers differently: no more than that can its accuracy fall."""
        changed = 0
        for batch, pruned, dense in self.logits(plan, compensations):
            same = (pruned.argmax(-1) == dense.argmax(-1)).split(batch.lengths)
            changed += sum(not bool(answer.all()) for answer in same)
        everywhere: list[int] = self.processes.gathered(changed)
        return sum(everywhere) / self.samples

    def _measure(self, plan: Plan, batches: Sequence[int], first: int) -> None:
        """Run layers `first`.. of a plan; the states on the way become candidates, and the logit drift is noted."""
        self.cache.discard(batches)
        key = plan_key(plan)
        found = {
            number: float(logit_drift(pruned, dense).sum()) for number, _, pruned, dense in self._logits(plan, batches, first, keep=True)
        }
        shares = self.processes.gathered(found)
        self.measured.update({f"{key}:{number}": sum(share.get(number, 0.0) for share in shares) for number in batches})

    def _logits(
        self, plan: Plan, batches: Sequence[int], first: int, keep: bool, compensations: Compensations | None = None
    ) -> Iterator[tuple[int, QuestionBatch, Tensor, Tensor]]:
        for numbers in self._blocks(plan, batches, first):
            states = [self.cache.get(first, number) for number in numbers]
            done = self._through(plan, first, numbers, states, keep, compensations)
            with self.adapter.head_at_hand():
                for number, state in zip(numbers, done, strict=True):
                    batch = self.questions[number]
                    rows = self.model.get_decoder().norm(state.text[batch.predicts])
                    pruned, dense = (self.model.lm_head(values).float().log_softmax(-1) for values in (rows, batch.dense))
                    yield number, batch, pruned, dense

    def _blocks(self, plan: Plan, batches: Sequence[int], first: int) -> Iterator[Sequence[int]]:
        """Batches that go through the layers together; where compensations are lacking first, all at once, those to fit on, also where
        this process has nothing of them."""
        if self.fits is not None and self._lacks(plan, first):
            yield self.fits.own
            batches = [batch for batch in batches if batch not in self.fit]
        own = [batch for batch in batches if batch in self.questions]
        if self.fits is not None and not own:
            yield own  # so that every process uses the same compensations in the same order, and keeps the same
        yield from self.cache.blocks(own, first)

    def _lacks(self, plan: Plan, first: int) -> bool:
        """Whether the plan has to go through layers `first`.. on the batches to fit on before others."""
        if self.fits is None:
            return False
        keys = list(enumerate(visual_keys(plan, self.dense)))[first:]
        return any(key is not None and not self.fits.knows(index, key) for index, key in keys)

    def _through(
        self, plan: Plan, first: int, numbers: Sequence[int], states: list[LayerInput], keep: bool,
        compensations: Compensations | None = None, on_layer: OnLayer = lambda index, visual: None,
    ) -> list[LayerInput]:  # fmt: skip
        """The states of these batches after the last layer; a layer's weights are laid out once for all of them.

        `on_layer` is called with the visual rows that each layer is given.
        """
        calls = [self.questions[number].at(state) for number, state in zip(numbers, states, strict=True)]
        visual = [state.visual for state in states]
        keys = visual_keys(plan, self.dense)
        for index in range(first, len(plan.layers)):
            with self.adapter.layer_at_hand(index):
                on_layer(index, visual)
                compensation, key = (compensations or {}).get(index), keys[index]
                if self.fits is not None and key is not None:
                    compensation = self.fits.compensation(index, key, numbers, visual, plan.layers[index].kv_rank)
                layer = PrunedLayer(self.adapter, index, plan, compensation)
                for place, (number, call) in enumerate(zip(numbers, calls, strict=True)):
                    if keep and index > first:
                        self.cache.put(index, number, LayerInput(call.text, visual[place]))
                    if index >= plan.visual_depth:
                        call.visual = None
                    layer.run(call)
                    visual[place] = visual[place] if call.visual is None else call.visual
        return [LayerInput(call.text, rows) for call, rows in zip(calls, visual, strict=True)]


@dataclass(frozen=True)
class TrialSubset:
    """Trials on some of the batches."""

    trials: Trials
    batches: Sequence[int]

    @property
    def forwards(self) -> float:
        return self.trials.forwards

    def settle(self, plan: Plan) -> None:
        self.trials.settle(plan)

    def logit_drift(self, plan: Plan) -> float:
        return self.trials.logit_drift(plan, self.batches)
