"""`yopo bench OUT --runtime onnx`: an export beside the dense graph of the same weights, and beside PyTorch, in turns in one process."""

import json
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

from converters.errors import YopoError
from converters.export.loading import LoadedExport, load_export
from converters.loading import Dtype, _physical_memory, load, locate

FLOAT32_COPIES = 6
"""Weights in float32: PyTorch's, and for each of three sessions what it is given and what it packs."""
COLUMNS = ("prefill", "total", "seconds", "of dense", "FLOPs/time", "spread", "decoding ms", "of dense")


@dataclass(frozen=True)
class Asked:
    """The command's options that are about exports."""

    model: str
    text_tokens: int
    batch: int
    rounds: int
    steps: int
    threads: int | None
    device: str | None
    allow_cpu: bool


def bench_export(asked: Asked, say: Callable[[str], None]) -> dict[str, Any]:
    """Times of every side as a JSON-ready record. Raises YopoError."""
    path = locate(asked.model).path
    loaded = load_export(path, asked.device, Dtype.AUTO, allow_cpu=asked.allow_cpu, threads=asked.threads)
    if not loaded.pruned:
        raise YopoError(f"{asked.model} was exported without a plan: there is nothing to compare.", "Convert it first: yopo convert.")
    from converters.checkpoint.reader import open_converted
    from converters.export.onnx.manifest import parse_grid
    from converters.export.onnx.timing import export_side, given, times, torch_side
    from converters.planning.cost import cost

    plan = open_converted(path).plan
    facts = loaded.model.manifest
    grid = parse_grid(facts.grids[0])
    what = given(grid, asked.text_tokens, asked.batch, plan.sizes.hidden_size, facts.multimodal_positions)
    sides = {"dense": export_side(loaded.model, what, dense=True), "pruned": export_side(loaded.model, what)}
    share = cost(replace(plan, grids=(grid,)), asked.text_tokens).total_share
    shares = {"dense": 1.0, "pruned": share}
    if (model := _pytorch(path, asked, say)) is not None:
        sides |= {"PyTorch dense": torch_side(model, what, dense=True), "PyTorch pruned": torch_side(model, what)}
        shares |= {"PyTorch dense": 1.0, "PyTorch pruned": share}
    say(f"Timing {', '.join(sides)} ...")
    found = times(sides, "dense", asked.rounds, asked.steps)
    setting = {"grid": str(grid), "text_tokens": asked.text_tokens, "batch": asked.batch, "rounds": asked.rounds, "steps": asked.steps}
    return {
        "model": asked.model,
        "path": loaded.path_report(),
        "setting": setting | {"threads": asked.threads},
        "versions": _versions(loaded),
        "machine": platform.machine(),
        "sides": [_side(name, found.prefill[name], found.decode.get(name), shares[name]) for name in sides],
    }


def _pytorch(path: Path, asked: Asked, say: Callable[[str], None]) -> Any:
    """The PyTorch runtime on the same weights, None where the machine is too small for both."""
    from converters.checkpoint.reader import open_converted

    checkpoint = open_converted(path).open_tensors()
    weights = sum(prod(info.shape) for info in checkpoint.stored.values())
    if FLOAT32_COPIES * 4 * weights > _physical_memory():
        say("Without PyTorch beside it: its weights in float32 would not fit.")
        return None
    import torch

    if asked.threads:
        torch.set_num_threads(asked.threads)
    return load(path, "cpu", Dtype.FLOAT32).model


def _side(name: str, prefill: Any, decode: Any, share: float) -> dict[str, Any]:
    return {
        "side": name,
        "total_share": share,
        "prefill": {"seconds": prefill.median, "ratio": prefill.ratio, "spread": prefill.spread, "efficiency": share / prefill.ratio},
        "decode": None if decode is None else {"seconds": decode.median, "ratio": decode.ratio, "spread": decode.spread},
    }


def _versions(loaded: LoadedExport) -> dict[str, str]:
    from converters.export.onnx.onnxruntimes import onnxruntime

    return {"yopo": version("yopo"), "torch": version("torch"), "onnxruntime": str(onnxruntime().__version__)}


def export_rows(record: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """The record's sides as rows under COLUMNS."""
    for one in record["sides"]:
        prefill, decode = one["prefill"], one["decode"]
        yield (
            one["side"],
            f"{one['total_share']:.4f}",
            f"{prefill['seconds']:.3f}",
            f"{prefill['ratio']:.4f}",
            f"{prefill['efficiency']:.3f}",
            f"{prefill['spread']:.1%}",
            f"{1000 * decode['seconds']:.2f}" if decode else "-",
            f"{decode['ratio']:.3f}" if decode else "-",
        )


def bench_text(record: dict[str, Any]) -> str:
    """The last line: one JSON object."""
    return json.dumps(record)
