"""`yopo bench OUT --runtime onnx`: an export beside the dense graph of the same weights, and beside PyTorch, in turns in one process."""

import platform
from dataclasses import dataclass, replace
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

from ..checkpoint.reader import open_converted
from ..errors import YopoError
from ..export.loading import LoadedExport, load_export
from ..loading import Dtype, load, locate, physical_memory
from ..planning.cost import cost
from ..progress import Listener, Message

FLOAT32_COPIES = 6
"""Weights in float32: PyTorch's, and for each of three sessions what it is given and what it packs."""


@dataclass(frozen=True)
class ExportBenchRequest:
    """What is to be timed of an export: prompts of `text_tokens` beside one picture, `batch` at a time, and how often."""

    model: str
    text_tokens: int = 64
    batch: int = 1
    rounds: int = 5
    steps: int = 8
    threads: int | None = None
    device: str | None = None
    allow_cpu: bool = False


@dataclass(frozen=True)
class ExportBenchmark:
    """Times of every side, JSON-ready; `path` tells what ran."""

    path: str
    sides: tuple[dict[str, Any], ...]
    facts: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """All of it as a JSON object."""
        return {**self.facts, "sides": list(self.sides)}


def bench_export(request: ExportBenchRequest, progress: Listener) -> ExportBenchmark:
    """Time an export beside the dense graph, and beside PyTorch where its memory lets both be. Raises YopoError."""
    path = locate(request.model).path
    loaded = load_export(path, request.device, Dtype.AUTO, allow_cpu=request.allow_cpu, threads=request.threads)
    if not loaded.pruned:
        raise YopoError(f"{request.model} was exported without a plan: there is nothing to compare.", "Convert it first: yopo convert.")
    from ..export.onnx.manifest import parse_grid
    from ..export.onnx.timing import export_side, given, times, torch_side

    plan = open_converted(path).plan
    manifest = loaded.model.manifest
    grid = parse_grid(manifest.grids[0])
    what = given(manifest.whole(grid), request.text_tokens, request.batch, plan.sizes.hidden_size, manifest.multimodal_positions)
    sides = {"dense": export_side(loaded.model, what, dense=True), "pruned": export_side(loaded.model, what)}
    share = cost(replace(plan, grids=manifest.whole(grid)), request.text_tokens).total_share
    shares = {"dense": 1.0, "pruned": share}
    if (model := _pytorch(path, request, progress)) is not None:
        sides |= {"PyTorch dense": torch_side(model, what, dense=True), "PyTorch pruned": torch_side(model, what)}
        shares |= {"PyTorch dense": 1.0, "PyTorch pruned": share}
    progress(Message(f"Timing {', '.join(sides)} ..."))
    timings = times(sides, "dense", request.rounds, request.steps)
    timed = (_side(name, timings.prefill[name], timings.decode.get(name), shares[name]) for name in sides)
    return ExportBenchmark(loaded.path_report(), tuple(timed), _facts(request, loaded, str(grid)))


def _facts(request: ExportBenchRequest, loaded: LoadedExport, grid: str) -> dict[str, Any]:
    """What the figures were measured on."""
    setting = {name: getattr(request, name) for name in ("text_tokens", "batch", "rounds", "steps", "threads")}
    return {
        "model": request.model,
        "path": loaded.path_report(),
        "setting": {"grid": grid, **setting},
        "versions": _versions(loaded),
        "machine": platform.machine(),
    }


def _pytorch(path: Path, request: ExportBenchRequest, progress: Listener) -> Any:
    """The PyTorch runtime on the same weights, None where the machine is too small for both."""
    checkpoint = open_converted(path).open_tensors()
    weights = sum(prod(info.shape) for info in checkpoint.stored.values())
    if FLOAT32_COPIES * 4 * weights > physical_memory():
        progress(Message("Without PyTorch beside it: its weights in float32 would not fit."))
        return None
    import torch

    if request.threads:
        torch.set_num_threads(request.threads)
    return load(path, "cpu", Dtype.FLOAT32).model


def _side(name: str, prefill: Any, decode: Any, share: float) -> dict[str, Any]:
    return {
        "side": name,
        "total_share": share,
        "prefill": {"seconds": prefill.median, "ratio": prefill.ratio, "spread": prefill.spread, "efficiency": share / prefill.ratio},
        "decode": None if decode is None else {"seconds": decode.median, "ratio": decode.ratio, "spread": decode.spread},
    }


def _versions(loaded: LoadedExport) -> dict[str, str]:
    from ..export.onnx.onnxruntimes import onnxruntime

    return {"yopo": version("yopo"), "torch": version("torch"), "onnxruntime": str(onnxruntime().__version__)}
