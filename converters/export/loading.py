"""Exports in the place of PyTorch's models: the same questions, the same answers, through ONNX Runtime."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from converters.errors import YopoError

from ..loading import Dtype, Loaded, load, load_processor, pick_device, quiet
from ..placing import DeviceMap


class Runtime(StrEnum):
    """What runs a model."""

    TORCH = "torch"
    ONNX = "onnx"


@dataclass(frozen=True)
class LoadedExport(Loaded):
    """An export ready to answer; `model` is a `converters.export.onnx.session.Exported`."""

    @property
    def pruned(self) -> bool:
        return bool(self.model.has_plan)

    def path_report(self) -> str:
        return str(self.model.path_report())

    def new_tokens(self, inputs: Any, max_new_tokens: int) -> Any:
        """Greedy tokens that follow a batch of processor outputs, `[batch, new]`."""
        return self.model.generate(inputs, max_new_tokens)


def load_with(
    runtime: Runtime, path: Path, device: str | None, dtype: Dtype, allow_cpu: bool, device_map: DeviceMap | None = None
) -> Loaded:  # fmt: skip
    """The model in a folder, in PyTorch or in ONNX Runtime. Raises YopoError."""
    if runtime is Runtime.ONNX:
        if device_map is not None:
            raise YopoError("--device-map is about PyTorch.", "ONNX Runtime has a whole model on its device: leave it out.")
        return load_export(path, device, dtype, allow_cpu=allow_cpu)
    if allow_cpu:
        raise YopoError("--allow-cpu is about ONNX Runtime's devices.", "Add --runtime onnx, or leave it out.")
    return load(path, device, dtype, device_map)


def load_export(path: Path, device: str | None, dtype: Dtype, *, allow_cpu: bool, threads: int | None = None) -> LoadedExport:
    """Open the export in a folder, with its processor. Raises YopoError."""
    quiet()
    if dtype is not Dtype.AUTO:
        raise YopoError(f"An export has a number format; --dtype {dtype.value} would do nothing.", "Leave it out, or export anew.")
    from converters.export.onnx.session import open_export
    from converters.runtime.registration import register

    register()  # the processors of converted models are found through their configs
    where = pick_device(None) if device is None else device
    opened = open_export(path, where, allow_cpu=allow_cpu, threads=threads)
    return LoadedExport(opened, load_processor(path), where, opened.manifest.dtype)
