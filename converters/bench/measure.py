"""From models and plans to figures: time to first token, prefill, decoding, memory, each beside the least it could be."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..baselines.schedule import Schedule
from ..planning.cost import Cost, cost, kv_cache_bytes
from ..runtime.plan import Grid, Plan, Sizes, dense_plan
from .bounds import decode_bytes, dense_work, pruned_work, refitted_bytes, working_bytes
from .ceiling import Ceiling
from .clock import Timing, in_turns
from .models import Prompt, random_prompt, with_plan
from .peak import peak_bytes
from .sides import BenchmarkSide, model_side, pruner_side

DENSE = "dense"


@dataclass(frozen=True)
class Setting:
    """One row of the benchmark: the prompt's sizes, and how often each thing is timed.

    `tower` times the vision tower too, `compiled` compiles the prefills of models.
    """

    grids: tuple[Grid, ...]
    text_tokens: int
    batch: int
    rounds: int
    steps: int
    tower: bool
    compiled: bool = False

    @property
    def visual_tokens(self) -> int:
        return sum(grid.tokens for grid in self.grids)


@dataclass(frozen=True)
class Contender:
    """What is compared with the dense model: a plan or a token pruner's schedule, under a name, at a budget.

    `refitted` are the plan's layers whose visual tokens have projections of their own.
    """

    name: str
    budget: float | None
    plan: Plan | None = None
    schedule: Schedule | None = None
    refitted: tuple[int, ...] = ()


@dataclass(frozen=True)
class Time:
    """Seconds: median, distance between the quartiles over the median, ratio to dense (median over rounds), and the least possible."""

    seconds: float
    spread: float
    ratio: float
    least: float | None


@dataclass(frozen=True)
class Figures:
    """One side of one setting. Shares are of the dense model; `efficiency` is the FLOPs ratio over the time ratio of the prefill.

    `visual_share` counts visual FLOPs, `total_share` those of visual and text tokens without the head. `ttft` includes the vision
    tower, `prefill` does not; `decode` is one token. KV bytes are the predicted and the
    measured ones of the whole batch, peak bytes those of a prefill, weights included.
    """

    name: str
    kind: str
    budget: float | None
    note: str
    visual_share: float
    total_share: float
    flops: int
    efficiency: float
    tokens_per_second: float
    prefill: Time
    ttft: Time | None
    decode: Time | None
    kv_bytes_predicted: int
    kv_bytes: int
    kv_share: float
    peak_bytes: int | None
    peak_predicted: int | None


def measure(dense: Any, contenders: Sequence[Contender], setting: Setting, ceiling: Ceiling, pruned: Any = None) -> list[Figures]:
    """Figures of the dense model and of every contender, all in turns. `pruned` is a model that is there already."""
    given = random_prompt(dense, setting.grids, setting.text_tokens, setting.batch)
    whole = Contender(DENSE, None, plan=dense_plan(_sizes(contenders[0]), setting.grids))
    everyone = [whole, *contenders]
    with torch.inference_mode():
        sides = {_key(one): _side(dense, one, given, pruned, setting.compiled) for one in everyone}
        looks = {key: _first_look(side, dense.device, setting) for key, side in sides.items()}
        prefills = in_turns({key: side.prefill for key, side in sides.items()}, DENSE, setting.rounds, dense.device, warmup=0)
        firsts = in_turns({key: side.answer for key, side in sides.items()}, DENSE, setting.rounds, dense.device) if setting.tower else {}
        steps = _decoding(dense, sides, looks, setting) if setting.steps else {}
    return [
        _figures(one, whole, setting, ceiling, dense, prefills[_key(one)], firsts.get(_key(one)), steps.get(_key(one)), looks)
        for one in everyone
    ]


@dataclass(frozen=True)
class Look:
    """What a prefill shows once its ways are chosen: bytes of K and V, the memory it took, and a state to go on decoding."""

    kv_bytes: int
    peak_bytes: int | None
    state: Any


def _first_look(side: BenchmarkSide, device: torch.device, setting: Setting) -> Look:
    side.prefill()  # which chooses ways by measurement, with memory of its own
    states: list[Any] = []
    peak = peak_bytes(lambda: states.append(side.prefill()), device)
    return Look(side.kv_bytes(states[0]), peak, states[0] if setting.steps else None)


def _sizes(one: Contender) -> Sizes:
    either = one.plan or one.schedule
    assert either is not None
    return either.sizes


def _key(one: Contender) -> str:
    return one.name if one.budget is None else f"{one.name} {one.budget:g}"


def _side(dense: Any, one: Contender, given: Prompt, pruned: Any, compiled: bool) -> BenchmarkSide:
    if one.schedule is not None:
        return pruner_side(dense, one.schedule, given)
    if one.name == DENSE:
        return model_side(DENSE, dense, given, compiled)
    assert one.plan is not None
    return model_side(one.name, with_plan(dense, one.plan) if pruned is None else pruned, given, compiled)


def _decoding(dense: Any, sides: dict[str, BenchmarkSide], looks: dict[str, Look], setting: Setting) -> dict[str, Timing]:
    """Time of one more token, in turns on caches that grow alike."""
    token = torch.full((setting.batch, 1), 5, device=dense.device)
    steps: dict[str, Callable[[], object]] = {key: _stepping(side, looks[key].state, token) for key, side in sides.items()}
    return in_turns(steps, DENSE, setting.steps, dense.device, warmup=2)


def _stepping(side: BenchmarkSide, state: Any, token: Tensor) -> Callable[[], object]:
    return lambda: side.step(state, token)


def _figures(
    one: Contender, whole: Contender, setting: Setting, ceiling: Ceiling, dense: Any, prefill: Timing, first: Timing | None,
    step: Timing | None, looks: dict[str, Look],
) -> Figures:  # fmt: skip
    assert whole.plan is not None
    vocabulary, element = dense.config.text_config.vocab_size, dense.dtype.itemsize
    text, batch = setting.text_tokens, setting.batch
    prefill_cost, predicted = _prefill_cost(one, whole.plan, text), batch * _predicted_kv(one, text, element)
    least = step_least = working = None
    weights = sum(parameter.nbytes for parameter in dense.parameters())
    look = looks[_key(one)]
    if one.plan is not None:
        weights += refitted_bytes(one.plan, one.refitted, element)
        shape = one.plan, text, batch, vocabulary, element
        least = (dense_work(*shape) if one is whole else pruned_work(*shape, one.refitted)).seconds(ceiling)
        step_least = decode_bytes(one.plan, text, batch, vocabulary, element) / ceiling.bytes_per_second
        working = working_bytes(one.plan, text, batch, element, pruned=one is not whole)
    return Figures(
        name=one.name,
        kind="dense" if one is whole else "plan" if one.plan else "tokens",
        budget=one.budget,
        note=one.schedule.note if one.schedule else "",
        visual_share=prefill_cost.share,
        total_share=prefill_cost.total_share,
        flops=batch * prefill_cost.total,
        efficiency=prefill_cost.total_share / prefill.ratio,
        tokens_per_second=batch * (setting.visual_tokens + text) / prefill.median,
        prefill=_time(prefill, least),
        ttft=None if first is None else _time(first, None),
        decode=None if step is None else _time(step, step_least),
        kv_bytes_predicted=predicted,
        kv_bytes=look.kv_bytes,
        kv_share=look.kv_bytes / looks[DENSE].kv_bytes,
        peak_bytes=None if look.peak_bytes is None else weights + look.peak_bytes,
        peak_predicted=None if working is None else weights + predicted + working,
    )


def _time(timing: Timing, least: float | None) -> Time:
    return Time(timing.median, timing.spread, timing.ratio, least)


def _prefill_cost(one: Contender, whole: Plan, text: int) -> Cost:
    """Visual and total FLOPs of one prompt; the dense model counts with its last layer's visual rows."""
    if one.plan is not None and one.name != DENSE:
        return cost(one.plan, text)
    full = cost(whole, text)
    visual = full.visual_dense if one.schedule is None else one.schedule.flops
    return Cost(visual, full.visual_dense, full.total_dense - full.visual_dense + visual, full.total_dense, text)


def _predicted_kv(one: Contender, text: int, element: int) -> int:
    """Bytes of K and V after one prompt. Layers before a drop hold what they were given."""
    if one.schedule is None:
        assert one.plan is not None
        if one.name == DENSE:
            sizes = one.plan.sizes
            tokens = one.plan.visual_tokens + text
            return 2 * element * sizes.num_hidden_layers * sizes.num_key_value_heads * sizes.head_dim * tokens
        return kv_cache_bytes(one.plan, one.plan.grids, text, element)
    sizes = one.schedule.sizes
    tokens = sum(one.schedule.by_layer) + sizes.num_hidden_layers * text
    return 2 * element * sizes.num_key_value_heads * sizes.head_dim * tokens
