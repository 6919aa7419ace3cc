"""Attention maps of a model that the user names, in the dense model's order of heads, also of a converted one."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ..calibration.attention_maps import AttentionMaps, attention_maps
from ..data.prompts import encode_samples
from ..data.samples import SamplesLike, batches, samples_of
from ..model import Model
from ..progress import Listener, Progress, unheard
from ..runtime.layout import layouts
from ..runtime.plan import Plan, normalise

BATCH_SIZE = 4


def attention_of(model: Model, samples: SamplesLike, count: int, seed: int = 0, progress: Listener = unheard) -> AttentionMaps:
    """What the dense model's heads look at on `count` samples, drawn with `seed`. Raises YopoError."""
    chosen = samples_of(samples, answers=False, count=count, seed=seed)

    def inputs() -> Iterator[Any]:
        for done, batch in enumerate(batches(chosen.stream(), BATCH_SIZE)):
            progress(Progress("Looking", min(chosen.count, done * BATCH_SIZE), chosen.count, "samples"))
            yield encode_samples(model.processor, batch, answers=True)

    if model.plan is None:
        return attention_maps(model.torch, inputs())
    from ..bench.models import native

    return in_dense_order(attention_maps(native(model.torch), inputs()), model.plan)


def in_dense_order(maps: AttentionMaps, plan: Plan) -> AttentionMaps:
    """The maps of a converted file's heads, each at the place that it has in the dense model."""
    read = []
    for row, layout in zip(maps.read, layouts(normalise(plan)), strict=True):
        places = {head: place for place, head in enumerate(layout.query_order)}
        read.append([row[places[head]] for head in range(len(row))])
    return replace(maps, read=read)
