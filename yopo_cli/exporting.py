"""From what was asked of `yopo export` to a request, and what it is compared with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from converters.data.examples import Example, bundled_examples
from converters.data.prompts import encode, prompt
from converters.errors import YopoError
from converters.loading import Dtype, _physical_memory, load, locate
from converters.runtime.plan import Grid, Plan

# PyTorch's weights in float32, and a session's: the weights and what it packs them into, for two graphs.
BYTES_PER_WEIGHT = 4 + 2 * 8


@dataclass(frozen=True)
class Asked:
    """The command's options."""

    model: str
    target: str
    output: Path | None
    grids: tuple[Grid, ...]
    opset: int
    dtype: Dtype
    bits: int | None
    parity: bool
    force: bool


def request_of(asked: Asked, say: Callable[[str], None]) -> Any:
    """The request. Raises YopoError for what cannot be exported so."""
    source = locate(asked.model)
    from converters.checkpoint.reader import is_converted, open_checkpoint, open_converted, read_config
    from converters.export.request import Request

    plan: Plan | None = None
    origin = source.repository, source.revision
    if is_converted(read_config(source.path)):
        converted = open_converted(source.path)
        checkpoint, plan, base = converted.open_tensors(), converted.plan, converted.section.get("base", {})
        origin = base.get("repository"), base.get("revision")
    else:
        checkpoint = open_checkpoint(source.path)
    if asked.output is None and not Path(asked.model).expanduser().is_dir():
        raise YopoError(f"{asked.model} is not a folder of yours to write to.", "Write to another one with -o.")
    grids = asked.grids or _grids(checkpoint, plan)
    dtype = _dtype(asked.dtype, checkpoint, asked.bits)
    if asked.parity:
        _check_memory(checkpoint)
    return Request(
        checkpoint, plan, grids, asked.output, *origin, opset=asked.opset, dtype=dtype, bits=asked.bits,
        force=asked.force, compare=_comparison(asked, source.path, grids[0]) if asked.parity else None, say=say,
    )  # fmt: skip


def _grids(checkpoint: Any, plan: Plan | None) -> tuple[Grid, ...]:
    """A tower of one resolution has one grid; for others those that the plan was made for."""
    return (checkpoint.grid,) if plan is None or checkpoint.grid in plan.grids else tuple(dict.fromkeys(plan.grids))


def _dtype(asked: Dtype, checkpoint: Any, bits: int | None) -> str:
    """What graphs compute in. `auto`: float16 for a float16 checkpoint, else float32, as with rounded weights, which are for CPUs."""
    if asked is Dtype.BFLOAT16:
        raise YopoError("onnxruntime has no bfloat16 products on a CPU.", "Use --dtype float16 for a GPU, float32 or --int4 for a CPU.")
    if asked is not Dtype.AUTO:
        return asked.value
    half = {info.dtype for info in checkpoint.tensors.values()} == {"F16"}
    return Dtype.FLOAT16.value if half and bits is None else Dtype.FLOAT32.value


def _check_memory(checkpoint: Any) -> None:
    needed = BYTES_PER_WEIGHT * sum(prod(info.shape) for info in checkpoint.stored.values())
    if needed > _physical_memory():
        raise YopoError(
            f"Comparing with PyTorch takes about {needed / 1e9:.0f} GB of memory, this machine has {_physical_memory() / 1e9:.0f} GB.",
            "Export without it: --no-parity.",
        )


def _comparison(asked: Asked, path: Path, grid: Grid) -> Callable[[Any], Mapping[str, Any]]:
    """What holds an export against the model that it was made from."""

    def compare(exported: Any) -> Mapping[str, Any]:
        from converters.export.onnx.parity import compare

        loaded = load(path, "cpu", Dtype.FLOAT32)
        return compare(exported, loaded.model, _prompts(loaded, grid))

    return compare


def _prompts(loaded: Any, grid: Grid) -> dict[str, Any]:
    """One prompt with a picture, several of different lengths, and prompts of words alone, from the bundled questions."""
    examples = list(bundled_examples(4, 0, "eval").stream())
    words = [prompt(loaded.processor, one.question, 0) for one in examples[:2]]
    return {
        "single": _encoded(loaded, examples[:1], grid),
        "batch": _encoded(loaded, examples[1:], grid),
        "text": encode(loaded.processor, words, []),
    }


def _encoded(loaded: Any, examples: list[Example], grid: Grid) -> Any:
    texts = [prompt(loaded.processor, one.question, 1) for one in examples]
    return encode(loaded.processor, texts, [_sized(loaded.model, one.picture(), grid) for one in examples])


def _sized(model: Any, picture: Any, grid: Grid) -> Any:
    """For a tower that takes any size, the picture in the size whose grid is asked for."""
    vision = model.config.vision_config
    side = getattr(vision, "spatial_merge_size", 0) * vision.patch_size if hasattr(vision, "spatial_merge_size") else 0
    return picture.resize((grid.columns * side, grid.rows * side)) if side else picture
