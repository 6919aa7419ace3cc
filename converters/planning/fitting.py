"""The linear compensation of a plan that is to be written: layer after layer, beside the dense model, on calibration samples."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from ..calibration.batch import on_model
from ..processes import ALONE, Processes
from ..runtime.call import Call
from ..runtime.plan import Plan, dense_plan, normalise
from .compensation import LeastSquares, LinearCompensation, visual_keys
from .measure.activation_cache import LayerInput
from .measure.answers import Answered, isin, language_model_pass, placeholders_of, videos_of
from .measure.batches import QuestionBatch, open_batch
from .measure.dense_adapter import DenseAdapter
from .measure.pruned_layer import PrunedLayer

MOST_ROWS = 32  # visual rows that are fitted on, times the hidden size, or
ENOUGH_ROWS = 1 << 16  # where that is more: memory is bounded


@torch.inference_mode()
def fit_compensations(
    model: Any, batches: Iterable[Any], plan: Plan, processes: Processes = ALONE
) -> dict[int, LinearCompensation]:  # fmt: skip
    """The compensations of a plan by layer; `batches` are processor outputs of questions, with or without answers.

    Where visual rows are still the dense model's there is none. Of several `processes` each is given its share of every
    batch (None: nothing of it), and gets all.
    """
    plan, dense = normalise(plan), normalise(dense_plan(plan.sizes, plan.grids))
    keys = visual_keys(plan, dense)
    if not any(keys):
        return {}
    adapter = DenseAdapter.of(model)
    pairs = _calls(model, adapter, batches, processes)
    compensations = {}
    for index, key in enumerate(keys[: plan.visual_depth]):
        with adapter.layer_at_hand(index):
            if key is not None:
                compensations[index] = _fit(adapter, index, pairs, processes, plan.layers[index].kv_rank)
            layers = PrunedLayer(adapter, index, plan, compensations.get(index)), PrunedLayer(adapter, index, dense)
            for calls in pairs:
                for layer, call in zip(layers, calls, strict=True):
                    layer.run(call)
    return compensations


def _calls(model: Any, adapter: DenseAdapter, batches: Iterable[Any], processes: Processes) -> list[tuple[Call, Call]]:
    """Each batch twice at the input of the first layer, for the plan and for the dense model; as many as are enough together."""
    placeholders = placeholders_of(model)
    pairs: list[tuple[Call, Call]] = []
    rows = 0
    for batch in batches:
        more = 0
        if batch is not None:
            (questions, state), more = _opened(model, adapter, batch, placeholders)
            pairs.append((questions.at(state), questions.at(state)))
        rows += sum(processes.gathered(more))
        if rows >= max(MOST_ROWS * adapter.plan.sizes.hidden_size, ENOUGH_ROWS):
            break
    return pairs


def _opened(
    model: Any, adapter: DenseAdapter, batch: Any, placeholders: Sequence[int]
) -> tuple[tuple[QuestionBatch, LayerInput], int]:  # fmt: skip
    """A batch at the input of the first layer, and its visual rows."""
    given = on_model(batch, model)
    given.setdefault("attention_mask", torch.ones_like(given["input_ids"]))
    _, inputs = language_model_pass(model, given)
    mask, visual = given["attention_mask"].bool(), isin(given["input_ids"], placeholders)
    embeds = inputs["inputs_embeds"]
    nothing = torch.zeros_like(mask)
    more = tuple(inputs.get("deepstack_visual_embeds") or ()), videos_of(model, given["input_ids"])
    answered = Answered(embeds, inputs.get("position_ids"), mask, mask & visual, nothing, embeds[nothing], *more)
    return open_batch(answered, adapter), int((mask & visual).sum())


def _fit(
    adapter: DenseAdapter, index: int, pairs: list[tuple[Call, Call]], processes: Processes, rank: int | None
) -> LinearCompensation:  # fmt: skip
    norm = adapter.model.get_decoder().layers[index].input_layernorm
    fitting = LeastSquares()
    for pruned, dense in pairs:
        assert pruned.split is not None
        assert pruned.visual is not None
        assert dense.visual is not None
        there = pruned.split.visual_slots.flatten() >= 0
        fitting.add(norm(pruned.visual[there]), norm(dense.visual[there]))
    return fitting.summed(processes, norm.weight).solve(rank, adapter.kv_weights(index))
