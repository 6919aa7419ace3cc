"""Which onnxruntime there is, and where its sessions run: asked for a GPU, nothing runs on the CPU unseen."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...errors import YopoError

DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-qnn", "onnxruntime-rocm")
PROVIDERS: Mapping[str, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def installed() -> dict[str, str]:
    """Versions of the installed distributions of onnxruntime; all of them bring the same module."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def onnxruntime() -> Any:
    """The module. Raises YopoError where there is none, or where two distributions overwrote each other's files."""
    found = installed()
    if len(found) > 1:
        raise YopoError(
            f"{' and '.join(f'{name} {number}' for name, number in found.items())} are both installed: they are the same module, "
            "and the last one installed has overwritten the other's files.",
            f"Keep one: pip uninstall {' '.join(found)}, then pip install either onnxruntime or onnxruntime-gpu.",
        )
    try:
        import onnxruntime as module
    except ImportError as error:
        raise YopoError(f"onnxruntime cannot be imported: {error}.", "Install it: pip install 'yopo[onnx-cpu]', or onnx-gpu.") from None
    if not hasattr(module, "InferenceSession"):
        raise YopoError(
            "onnxruntime's module is empty: another distribution of it was uninstalled.", "pip install --force-reinstall onnxruntime"
        )
    return module


def session(file: Path, device: str = "cpu", *, allow_cpu: bool = False, threads: int | None = None) -> Any:
    """A session of a graph on a device, `cpu`, `cuda` or `cuda:1`. Raises YopoError if it would run elsewhere and that is not allowed."""
    module = onnxruntime()
    kind, _, number = device.partition(":")
    if kind not in PROVIDERS:
        raise YopoError(f"onnxruntime is not run on {device!r} here.", f"Choose from {', '.join(PROVIDERS)}.")
    provider: Any = (PROVIDERS[kind], {"device_id": number}) if number else PROVIDERS[kind]
    options = module.SessionOptions()
    options.log_severity_level = 3
    # Pools that spin while they wait take the processor from the other sessions of this process, and from PyTorch.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads:
        options.intra_op_num_threads = threads
    opened = module.InferenceSession(str(file), options, providers=[provider, *(["CPUExecutionProvider"] if kind != "cpu" else [])])
    got = opened.get_providers()[0]
    if got != PROVIDERS[kind] and not allow_cpu:
        raise YopoError(
            f"{device} was asked for, but onnxruntime runs {file.name} with {got}.",
            "Install onnxruntime-gpu with its CUDA libraries, or allow the CPU: --allow-cpu, or ask for it: --device cpu.",
        )
    return opened
