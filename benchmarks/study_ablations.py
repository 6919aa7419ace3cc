"""Ablations for the study: recipes and the search with one thing different. None of them is in the product."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from converters.calibration.statistics import Statistics
from converters.planning.importance import importance_order
from converters.planning.measure.answers import continued
from converters.planning.recipes import Target, yopo
from converters.planning.search.search import Effort
from converters.runtime.plan import Grid, Plan, Sizes, normalise, validate

BatchesOf = Callable[[], Iterable[Any]]
Scores = Callable[[Any, BatchesOf, Statistics], Tensor]


@dataclass(frozen=True)
class Ablation:
    """A recipe, with heads ranked by other `scores` `[layers, heads]` than the paper's ratios, or asked `during` something."""

    make: Callable[[Target], Plan]
    scores: Scores | None = None
    during: Callable[[Any, Plan], AbstractContextManager[Any]] = lambda model, plan: nullcontext()

    def plan(self, model: Any, batches: BatchesOf, statistics: Statistics, sizes: Sizes, grids: tuple[Grid, ...], budget: float) -> Plan:
        """The plan of a budget; `batches` are calibration questions."""
        order = importance_order(statistics, sizes)
        if self.scores is not None:
            order = replace(order, ratios=tuple(map(tuple, self.scores(model, batches, statistics).tolist())))
        return validate(normalise(self.make(Target(order, sizes, grids, budget))))


def contributions(model: Any, batches: BatchesOf, statistics: Statistics) -> Tensor:
    """What text reads from visual keys through a head's columns of o_proj."""
    return statistics.read


def gradients(model: Any, batches: BatchesOf, statistics: Statistics) -> Tensor:
    """Fisher scores: over samples, the mean square of the derivative of the dense answer's log-likelihood by a gate on the values that
    visual tokens offer in a head. Query heads of a group share them."""
    total, samples = torch.zeros(statistics.read.shape, dtype=torch.float64), 0
    for batch in batches():
        found = continued(model, batch)
        inputs = {name: value.clone() for name, value in found.inputs.items()}  # those of inference cannot be derived through
        with torch.enable_grad(), _gated(model, found.visual.clone()) as gates:
            rows = model.model(**inputs, use_cache=False).last_hidden_state[:, :-1]
            likely = model.lm_head(rows).log_softmax(-1).gather(-1, inputs["input_ids"][:, 1:, None])[..., 0]
            derivatives = torch.autograd.grad((likely * found.predicts[:, :-1]).sum(), gates)
        squares = torch.stack(derivatives).double().square().sum(1)
        total += squares.repeat_interleave(total.shape[1] // squares.shape[1], 1)
        samples += len(found.new)
    return total / samples


@contextmanager
def _gated(model: Any, visual: Tensor) -> Iterator[list[Tensor]]:
    """The dense model with a gate `[batch, KV heads]` of ones, by layer, on the values of visual tokens."""
    with ExitStack() as hooks:
        gates = []
        for layer in model.model.language_model.layers:
            attention = layer.self_attn
            gate = torch.ones(len(visual), attention.v_proj.out_features // attention.head_dim, requires_grad=True)

            def hook(_: Any, __: Any, values: Tensor, gate: Tensor = gate, width: int = attention.head_dim) -> Tensor:
                return torch.where(visual[..., None], values * gate.repeat_interleave(width, 1)[:, None], values)

            handle = attention.v_proj.register_forward_hook(hook)
            hooks.callback(handle.remove)
            gates.append(gate)
        yield gates


@contextmanager
def text_too(model: Any, plan: Plan) -> Iterator[None]:
    """The dense model without the heads, for text as well, that visual tokens of the same layer lack: where any are left at all."""
    with torch.no_grad(), ExitStack() as whole:
        for layer, kept in zip(model.model.language_model.layers[: plan.visual_depth], plan.layers, strict=False):
            weight = layer.self_attn.o_proj.weight
            whole.callback(weight.copy_, weight.clone())
            heads = weight.unflatten(1, (plan.sizes.num_attention_heads, -1))
            heads[:, [head for head in range(heads.shape[1]) if head not in kept.read_heads]] = 0
        yield


ABLATIONS = {
    "yopo: causal window": Ablation(partial(yopo, locality="causal")),
    "yopo: no window": Ablation(partial(yopo, window=None)),
    "yopo: by contribution": Ablation(yopo, contributions),
    "yopo: by gradient": Ablation(yopo, gradients),
    "yopo: heads of text too": Ablation(yopo, during=text_too),
}


def searches(usual: Effort, samples: int) -> dict[str, tuple[Effort, int]]:
    """Searches with one thing different, and their calibration samples; some of plans without ranks."""
    whole = replace(usual, without=("rank",))
    once = {"slack": 1e9, "fading": 1.0}  # the cheapest by its first price is taken, whatever it is found to cost
    found = {
        "auto": (usual, samples),
        "auto: not refined": (replace(usual, refines=False), samples),
        "auto: prices taken once, not refined": (replace(usual, **once, refines=False), samples),
        "auto: no windows": (replace(usual, without=("window",)), samples),
        "auto: not refitted": (replace(usual, compensated=False), samples),
        "auto: no ranks": (whole, samples),
        "auto: no ranks, prices taken once": (replace(whole, **once), samples),
        "auto: no ranks, not interlaced": (replace(whole, without=("rank", "stride")), samples),
    }
    counts = (8, 16, 32, 64, 256)
    return found | {f"auto: no ranks, {count} samples": (whole, count) for count in counts}


def priced_searches(usual: Effort, samples: int) -> dict[str, tuple[Effort, int]]:
    """The search by price tables, which is the product's usual one, and that for what vLLM serves."""
    return {
        "auto: usual effort": (usual, samples),
        "auto: usual effort, no windows": (replace(usual, without=("window",)), samples),
    }
