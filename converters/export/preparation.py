"""From what was asked of `yopo export` to a request, and what it is compared with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ..checkpoint.reader import Checkpoint
from ..data.prompts import encode, prompt
from ..data.sample import Sample
from ..data.samples import bundled_samples
from ..errors import YopoError
from ..families import converted_family, family_of
from ..loading import Dtype, Loaded, load, physical_memory
from ..model import Model
from ..progress import Listener, Message
from ..runtime.plan import Grid, Plan
from .onnx.onnxruntimes import onnxruntime
from .request import ExportRequest

# PyTorch's weights in float32, and a session's: the weights and what it packs them into, for two graphs.
BYTES_PER_WEIGHT = 4 + 2 * 8


@dataclass(frozen=True)
class Wanted:
    """What is asked of an export; `grids` () takes those that the model has or was planned for."""

    output: Path | None
    grids: tuple[Grid, ...]
    opset: int
    dtype: Dtype
    bits: int | None
    parity: bool
    force: bool


def request_of(model: Model, wanted: Wanted, progress: Listener) -> ExportRequest:
    """The request of one export. Raises YopoError for what cannot be exported so."""
    checkpoint = model.checkpoint
    if checkpoint.beside:
        raise YopoError(
            f"{model.name} is quantised, and graphs round weights themselves.", "Export an unquantised model with --int8 or --int4."
        )
    base = model.converted.section.get("base", {}) if model.pruned else {}
    origin = (base.get("repository"), base.get("revision")) if model.pruned else (model.source.repository, model.source.revision)
    if wanted.output is None and not model.own_folder:
        raise YopoError(f"{model.name} is not a folder of yours to write to.", "Write to another one with -o.")
    grids = wanted.grids or _grids(checkpoint, model.plan)
    dtype = _dtype(wanted.dtype, checkpoint, wanted.bits)
    if wanted.parity:
        onnxruntime()  # is told before the work, not after it
        _check_memory(checkpoint)
    return ExportRequest(
        checkpoint, model.plan, grids, wanted.output, origin[0], origin[1], opset=wanted.opset, dtype=dtype, bits=wanted.bits,
        force=wanted.force, compare=_comparison(model.path, grids[0]) if wanted.parity else None, say=lambda text: progress(Message(text)),
    )  # fmt: skip


def _grids(checkpoint: Checkpoint, plan: Plan | None) -> tuple[Grid, ...]:
    """A tower of one resolution has one grid; for others those that the plan was made for, of pictures with several grids the last."""
    grids = checkpoint.grids if plan is None or set(checkpoint.grids) <= set(plan.grids) else plan.grids
    return tuple(dict.fromkeys(grids[len(checkpoint.grids) - 1 :: len(checkpoint.grids)]))


def _dtype(asked: Dtype, checkpoint: Checkpoint, bits: int | None) -> str:
    """What graphs compute in. `auto`: float16 for a float16 checkpoint, else float32, as with rounded weights, which are for CPUs."""
    if asked is Dtype.BFLOAT16:
        raise YopoError("onnxruntime has no bfloat16 products on a CPU.", "Use --dtype float16 for a GPU, float32 or --int4 for a CPU.")
    if asked is not Dtype.AUTO:
        return asked.value
    half = {info.dtype for info in checkpoint.tensors.values()} == {"F16"}
    return Dtype.FLOAT16.value if half and bits is None else Dtype.FLOAT32.value


def _check_memory(checkpoint: Checkpoint) -> None:
    needed = BYTES_PER_WEIGHT * sum(prod(info.shape) for info in checkpoint.stored.values())
    if needed > physical_memory():
        raise YopoError(
            f"Comparing with PyTorch takes about {needed / 1e9:.0f} GB of memory, this machine has {physical_memory() / 1e9:.0f} GB.",
            "Export without it: --no-parity.",
        )


def _comparison(path: Path, grid: Grid) -> Callable[[Any], Mapping[str, Any]]:
    """What holds an export against the model that it was made from."""

    def compare(exported: Any) -> Mapping[str, Any]:
        from .onnx.parity import compare

        loaded = load(path, "cpu", Dtype.FLOAT32)
        return compare(exported, loaded.model, _prompts(loaded, grid))

    return compare


def _prompts(loaded: Loaded, grid: Grid) -> dict[str, Any]:
    """One prompt with a picture, several of different lengths, and prompts of words alone, from the bundled questions."""
    samples = list(bundled_samples(4, 0, "eval").stream())
    words = [prompt(loaded.processor, one.question, 0) for one in samples[:2]]
    return {
        "single": _encoded(loaded, samples[:1], grid),
        "batch": _encoded(loaded, samples[1:], grid),
        "text": encode(loaded.processor, words, []),
    }


def _encoded(loaded: Loaded, samples: list[Sample], grid: Grid) -> Any:
    texts = [prompt(loaded.processor, one.question, 1) for one in samples]
    return encode(loaded.processor, texts, [_sized(loaded.model, one.picture(), grid) for one in samples])


def _sized(model: Any, picture: Any, grid: Grid) -> Any:
    """For a tower that takes any size, the picture in the size whose grid is asked for."""
    config = model.config.to_dict()
    family = converted_family(config) or family_of(config)
    if family.picture is not None:
        plain = config | {"model_type": family.model_type}
        height, width = family.black(plain, family.whole(plain, grid), 1)["image_sizes"][0].tolist()
        return picture.resize((width, height))
    vision = model.config.vision_config
    side = getattr(vision, "spatial_merge_size", 0) * vision.patch_size if hasattr(vision, "spatial_merge_size") else 0
    return picture.resize((grid.columns * side, grid.rows * side)) if side else picture
