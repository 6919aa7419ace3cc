"""Exported graphs: a converted model (or a dense one) for runtimes without PyTorch."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from ..errors import YopoError

if TYPE_CHECKING:
    from .request import ExportReport, ExportRequest

TARGETS: Mapping[str, str] = {"onnxruntime": "onnx.target", "genai": "packages.genai", "transformers-js": "packages.transformers_js"}
"""Modules of this package by target; each has `export(request) -> report`."""


def exporter(target: str) -> "Callable[[ExportRequest], ExportReport]":
    """The function that exports for a target. Raises YopoError where the packages that it needs are missing."""
    try:
        function: Callable[[ExportRequest], ExportReport] = import_module(f".{TARGETS[target]}", __name__).export
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] not in ("onnx", "onnx_ir", "onnxscript"):
            raise
        raise YopoError(f"Exports need {error.name}, which is not installed.", "pip install 'yopo[onnx-cpu]', or onnx-gpu.") from None
    return function
