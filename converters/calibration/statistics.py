"""What calibration measures: how much each head reads, each head adds and each neuron adds, summed over samples.

Everything is a sum or a count, so a file has the same size whatever the number of samples, and two files of disjoint samples
merge into the one that all samples together would give.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..checkpoint.header import read_header, read_metadata, read_tensor
from ..checkpoint.private import whole_file
from ..errors import YopoError
from ..families import family_of
from ..json_files import conforming, parse_json
from ..runtime.plan import Grid, PlanError, validate_grids
from .batch import Layout, TokenMasks, add_hashes, hash_of, layouts_of, on_model
from .histogram import BINS, value_exceeded_by
from .recorder import CHUNK_ELEMENTS, Recorder

SCHEMA = 1
METADATA_KEY = "yopo_statistics"
TENSORS = ("ratios", "read_sum", "self_sum", "neuron_sum")
AGAIN = "Calibrate again, or pass the file that this model's calibration wrote."

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, eq=False)
class Statistics:
    """Sums over calibration samples of one model.

    `ratios`: int32 [layers, heads, BINS], samples by their attention on visual keys over that on text keys, both summed over
    the text rows after the image (arXiv 2410.06169, section 3.3). `read_sum`: float64 [layers, heads], norms of what such a
    row gets from visual keys through the head's columns of o_proj, `read_rows` rows in all. `self_sum`: float64 [layers,
    heads], norms of what a head adds to a visual row; `neuron_sum`: float64 [layers, intermediate], squares of what a neuron
    adds to one; `visual_rows` rows in all. `layouts` counts samples by their visual grids. `model` is the checkpoint's
    fingerprint, `data` the hash of the samples, whatever their order; `questions_from` names what they were drawn from, with `seed`.
    """

    ratios: Tensor
    read_sum: Tensor
    self_sum: Tensor
    neuron_sum: Tensor
    read_rows: int
    visual_rows: int
    samples: int
    layouts: tuple[tuple[Layout, int], ...]
    model: str
    data: str
    questions_from: str = ""
    seed: int | None = None

    @property
    def layers(self) -> int:
        """Decoder layers of the model."""
        return len(self.ratios)

    @property
    def read(self) -> Tensor:
        """Mean norm of what text reads from visual keys, float64 [layers, heads]."""
        return self.read_sum / self.read_rows

    @property
    def self_(self) -> Tensor:
        """Mean norm of what a head adds to a visual row, float64 [layers, heads]."""
        return self.self_sum / self.visual_rows

    @property
    def neurons(self) -> Tensor:
        """rms(activation) * ||down_proj column|| over visual rows, float64 [layers, intermediate]."""
        return (self.neuron_sum / self.visual_rows).sqrt()

    @property
    def grids(self) -> Layout:
        """The visual grids of the median sample by visual tokens (the lower one of two): the reference of a plan's cost."""
        left = (self.samples + 1) // 2
        for layout, count in sorted(self.layouts, key=lambda item: (sum(grid.tokens for grid in item[0]), item[0])):
            left -= count
            if left <= 0:
                return layout
        raise AssertionError("no sample")

    def ratio_quantile(self, share: float = 0.4) -> Tensor:
        """The alpha that a share of the samples' ratios exceeds, float64 [layers, heads], interpolated within its bin.

        The paper keeps a head whose ratio exceeds alpha in more than 40 of 100 samples: those whose quantile exceeds alpha.
        """
        return value_exceeded_by(self.ratios, share * self.samples)

    def of_model(self, fingerprint: str) -> Self:
        """These statistics, or YopoError where they are of another model."""
        if self.model != fingerprint:
            raise YopoError(f"The statistics are of another model ({self.model[:12]}, this one is {fingerprint[:12]}).", AGAIN)
        return self

    def save(self, path: Path) -> None:
        """Write one safetensors file, whole or not at all."""
        facts = {
            "schema": SCHEMA,
            "read_rows": self.read_rows,
            "visual_rows": self.visual_rows,
            "samples": self.samples,
            "layouts": [[[list(asdict(grid).values()) for grid in layout], count] for layout, count in self.layouts],
            "model": self.model,
            "data": self.data,
            "questions_from": self.questions_from,
            "seed": self.seed,
        }
        with whole_file(path) as partial:
            save_file({name: getattr(self, name).contiguous() for name in TENSORS}, partial, {METADATA_KEY: json.dumps(facts)})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that `save` wrote. Raises YopoError for any other file, a newer schema, unknown contents, and impossible values."""
        header, text = read_header(path), read_metadata(path).get(METADATA_KEY)
        if text is None:
            raise YopoError(f"{path} is a safetensors file, but not one of statistics.", AGAIN)
        facts = _facts(parse_json(text.encode(), f"The metadata of {path}", AGAIN), path)
        if sorted(header) != sorted(TENSORS):
            raise YopoError(f"{path} does not hold the tensors {', '.join(TENSORS)}.", AGAIN)
        tensors: dict[str, Any] = {name: read_tensor(header[name]) for name in TENSORS}
        found = cls(**tensors, **facts)
        if reason := _impossible(found):
            raise YopoError(f"{path} cannot be used as statistics: {reason}.", AGAIN)
        return found


def _facts(data: Any, path: Path) -> dict[str, Any]:
    """The metadata of a statistics file as fields of `Statistics`."""
    from .statistics_schema import Facts

    if isinstance(data, dict) and (schema := data.get("schema")) != SCHEMA:
        raise YopoError(f"{path} has schema {schema!r:.40}, this version reads {SCHEMA}.", AGAIN)
    facts = conforming(Facts, data, f"The metadata of {path}", AGAIN).model_dump(exclude={"version", "layouts"})
    layouts = tuple((tuple(Grid(*grid) for grid in layout), count) for layout, count in data["layouts"])
    return {**facts, "layouts": layouts}


def _impossible(found: Statistics) -> str | None:
    """Why these cannot have been measured, None where they can."""
    if (reason := next(filter(None, map(_wrong, TENSORS, (getattr(found, name) for name in TENSORS))), None)) is not None:
        return reason
    heads = tuple(found.read_sum.shape)
    if (found.self_sum.shape, found.ratios.shape, found.neuron_sum.shape[0]) != (heads, (*heads, BINS), heads[0]):
        return "its tensors are of different layers and heads"
    if not bool((found.ratios.sum(-1) == found.samples).all()) or sum(count for _, count in found.layouts) != found.samples:
        return f"it does not count {found.samples} samples everywhere"
    try:
        for layout, _ in found.layouts:
            validate_grids(layout)
    except PlanError as error:
        return str(error)
    return None


def _wrong(name: str, tensor: Tensor) -> str | None:
    """What is wrong with one tensor."""
    dimensions, dtype = (3, torch.int32) if name == "ratios" else (2, torch.float64)
    if tensor.ndim != dimensions or not tensor.numel() or tensor.dtype != dtype:
        return f"{name} is {tensor.dtype} {list(tensor.shape)}"
    return None if bool((tensor.isfinite() & (tensor >= 0)).all()) else f"{name} has values that are negative, infinite or NaN"


def _sorted(layouts: Mapping[Layout, int]) -> tuple[tuple[Layout, int], ...]:
    return tuple(sorted(layouts.items()))


def merge(first: Statistics, second: Statistics) -> Statistics:
    """The statistics of both sets of samples together; they must not share a sample. Raises YopoError for different models."""
    second.of_model(first.model)
    layouts = Counter(dict(first.layouts))
    layouts.update(dict(second.layouts))
    sums: dict[str, Any] = {
        name: getattr(first, name) + getattr(second, name) for name in (*TENSORS, "read_rows", "visual_rows", "samples")
    }
    return replace(first, **sums, layouts=_sorted(layouts), data=add_hashes((first.data, second.data)))


def calibrate(
    model: Any,
    inputs: Iterable[Any],
    *,
    fingerprint: str,
    total: int | None = None,
    progress: Progress = lambda done, total: None,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> Statistics:
    """Run a dense transformers model over processor outputs, one sample or a left-padded batch each, and return the statistics.

    `fingerprint` names the model's checkpoint; `progress` is called with samples done and `total` after every batch;
    `chunk_elements` bounds the attention probabilities held at a time. Memory does not depend on the number of samples.
    Raises YopoError for a sample without an image or without text after it, for no samples, and for NaN or infinite sums.
    """
    config = model.config.to_dict()
    family = family_of(config)
    visuals = family.visuals(config)
    language_model = model.get_decoder()
    recorder = Recorder(language_model.layers, family.layer, family.sizes(config), chunk_elements)
    layouts: Counter[Layout] = Counter()
    data, read_rows, visual_rows = "0", 0, 0
    with torch.inference_mode(), recorder.attached(language_model):
        for batch in inputs:
            rows = TokenMasks.of(batch, visuals)
            layouts.update(layouts_of(batch, rows, visuals, layouts.total()))
            data = add_hashes((data, hash_of(batch, visuals)))
            recorder.rows = rows.to(model.device)
            model.model(**on_model(batch, model), use_cache=False)
            read_rows += int(rows.reading.sum())
            visual_rows += int(rows.visual.sum())
            progress(layouts.total(), total)
    if not layouts:
        raise YopoError("There is no calibration sample.", "Pass at least one image with a question.")
    sums = {name: getattr(recorder, name) for name in TENSORS}
    _check_finite(sums)
    return Statistics(
        **sums,
        read_rows=read_rows,
        visual_rows=visual_rows,
        samples=layouts.total(),
        layouts=_sorted(layouts),
        model=fingerprint,
        data=data,
    )


def _check_finite(sums: Mapping[str, Tensor]) -> None:
    for name, tensor in sums.items():
        if not (good := tensor.isfinite().flatten(1).all(-1)).all():
            raise YopoError(
                f"Calibration met NaN or infinite values in layer {int((~good).nonzero()[0])} ({name}).",
                "Try --dtype float32; if that does not help, the checkpoint's weights are damaged.",
            )
