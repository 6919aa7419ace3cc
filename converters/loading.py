"""Loading models and processors for the commands, quietly; which device and dtype they run on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from converters.errors import YopoError

from .placing import DeviceMap
from .processes import own_device

DEMO = "demo"


class Dtype(StrEnum):
    """Number formats a model can run in; `auto` is chosen by `place`."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


@dataclass(frozen=True)
class Loaded:
    """A model ready to answer, its processor, and where it runs."""

    model: Any
    processor: Any
    device: str
    dtype: str

    @property
    def pruned(self) -> bool:
        return hasattr(self.model, "path_report")

    def path_report(self) -> str:
        """Which path runs and where, in one line."""
        from .threads import threads

        path = self.model.path_report() if self.pruned else "dense: the model has no plan"
        return ", ".join([f"{path} ({self.device}", self.dtype, *([threads()] if self.device.startswith("cpu") else [])]) + ")"


def demo_folder() -> Path:
    """The checkpoint that ships with the package."""
    return Path(str(files("converters.data.demo") / "model"))


def quiet() -> None:
    """Keep transformers' bars and warnings off the terminal."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def locate(model: str, weights: bool = True) -> Any:
    """What MODEL means: `demo`, a short name, a Hub id or a folder; without `weights` its config is enough. Raises YopoError."""
    from .checkpoint.source import Source, resolve

    return Source(DEMO, demo_folder()) if model == DEMO else resolve(model, weights)


def locate_config(model: str) -> tuple[str, dict[str, Any]]:
    """The name and config.json of MODEL. Raises YopoError."""
    from .checkpoint.config import read_config

    source = locate(model, weights=False)
    return source.name, read_config(source.path)


def load(path: Path, device: str | None, dtype: Dtype, device_map: DeviceMap | None = None) -> Loaded:
    """Load a dense or converted checkpoint and its processor. Raises YopoError."""
    quiet()
    import torch
    from transformers import AutoModelForImageTextToText

    from .checkpoint.config import method_of, read_config
    from .runtime.registration import register
    from .threads import limit_threads

    register()
    limit_threads()
    checkpoint = _checked(path)
    where = pick_device(device)
    kind = pick_dtype(dtype, where, path)
    if checkpoint.foreign or method_of(read_config(path)) is not None:
        model = _read_by_us(path, checkpoint, getattr(torch, kind))
        model = model.to(where) if device_map is None else _kept(device_map.dispatched(model, where), device_map)
        if not checkpoint.foreign:
            return Loaded(model, load_processor(path), where, kind)
        with TemporaryDirectory() as folder:
            checkpoint.write_processor(Path(folder))
            return Loaded(model, load_processor(Path(folder)), where, kind)
    options: dict[str, Any] = {"dtype": getattr(torch, kind), "local_files_only": True, "output_loading_info": True}
    options |= {} if device_map is None else device_map.options(where)
    with _explained(path, "model"):
        model, info = AutoModelForImageTextToText.from_pretrained(path, **options)
    if missing := info["missing_keys"]:
        raise RuntimeError(f"transformers found no weights for {', '.join(sorted(missing))}")
    model = model.to(where) if device_map is None else _kept(model, device_map)
    return Loaded(model.eval(), load_processor(path), where, kind)


def _kept(model: Any, device_map: DeviceMap) -> Any:
    """The model, which has the map's folder kept for as long as it is there."""
    model.yopo_device_map = device_map
    return model


def _read_by_us(path: Path, checkpoint: Any, dtype: Any) -> Any:
    """A model whose files transformers does not read as they are."""
    from converters.checkpoint.config import is_converted, read_config
    from converters.checkpoint.native import converted_model, native_model
    from converters.checkpoint.reader import open_converted

    return converted_model(open_converted(path), dtype) if is_converted(read_config(path)) else native_model(checkpoint, dtype)


def _checked(path: Path) -> Any:
    """The opened checkpoint. Raises YopoError for what is neither a dense one nor a whole converted one; reads no weights."""
    from converters.checkpoint.config import is_converted, read_config
    from converters.checkpoint.reader import open_checkpoint, open_converted

    if is_converted(read_config(path)):
        return open_converted(path).open_tensors()
    return open_checkpoint(path)


def load_processor(path: Path) -> Any:
    """The checkpoint's processor, padding on the left. Raises YopoError if it has none."""
    from transformers import AutoProcessor

    from .data.processors import without_torchvision

    with _explained(path, "processor"):
        try:
            processor: Any = AutoProcessor.from_pretrained(path, local_files_only=True)
        except (ImportError, OSError):  # torchvision, which transformers' video processors need, or no such processor in the files
            processor = without_torchvision(path)
        processor.tokenizer.padding_side = "left"
        if processor.tokenizer.pad_token is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token
        return processor


@contextmanager
def _explained(path: Path, what: str) -> Iterator[None]:
    """Tell what is raised for a folder whose files make no sense: transformers, which reads them, may raise anything."""
    try:
        yield
    except (YopoError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # the device's
            raise
        if isinstance(error, ImportError):
            raise YopoError(
                f"The {what} of {path} needs a package that is not installed: {' '.join(str(error).split()):.400}",
                "Install it, and try again.",
            ) from error
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise YopoError(
            f"{path} has no {what} that can be loaded: {reason:.400}", "Are its files complete and unchanged? Fetch it again."
        ) from error


def pick_device(asked: str | None) -> str:
    """The device that was asked for, else this process's own of several, else a GPU if there is one. Raises YopoError."""
    import torch

    asked = asked or own_device()
    if asked is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=asked)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise YopoError(f"The device {asked!r} cannot be used: {reason}.", "Try --device cpu.") from None
    return asked


def pick_dtype(asked: Dtype, device: str, path: Path) -> str:
    """The dtype that was asked for. `auto`: the checkpoint's own on a GPU; on a CPU float32 if that fits, else bfloat16."""
    if asked is not Dtype.AUTO:
        return asked.value
    if not device.startswith("cpu"):
        return _saved_dtype(path)
    # Weights on disk have two bytes a number, or four; float32 is the fastest and the exact one on most CPUs.
    needed = 2 * sum(file.stat().st_size for pattern in ("*.safetensors", "*.bin") for file in path.glob(pattern))
    return Dtype.FLOAT32.value if needed < physical_memory() / 2 else Dtype.BFLOAT16.value


def _saved_dtype(path: Path) -> str:
    from converters.checkpoint.config import read_config

    config = read_config(path)
    saved = str(config.get("dtype", config.get("torch_dtype"))).removeprefix("torch.")
    return saved if saved in set(Dtype) else Dtype.BFLOAT16.value


def physical_memory() -> int:
    """Bytes of memory of this machine; where the system does not say, 16 GB."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 16 * 10**9
