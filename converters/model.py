"""A model as the user names it: its files are checked at once, its weights are loaded when something needs them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from gc import collect
from pathlib import Path
from typing import Any

from .checkpoint.config import has_dense_side, is_converted, read_config
from .checkpoint.reader import Checkpoint, Converted, open_checkpoint, open_converted
from .checkpoint.source import Source
from .errors import YopoError
from .export.loading import Runtime, load_with
from .loading import Dtype, Loaded, demo_folder, locate, quiet
from .placing import DeviceMap
from .runtime.plan import Plan


@dataclass(frozen=True)
class Model:
    """A dense or a converted model. Make one with `yopo.load`.

    `device` and `dtype` are as they were asked for; `loaded` says what they came to. `runtime` is what runs it: PyTorch, or ONNX Runtime
    for what `yopo.export` wrote, which may take the CPU for another device with `allow_cpu`. `device_map` is for what is larger than the
    device.
    """

    source: Source
    device: str | None = None
    dtype: Dtype = Dtype.AUTO
    runtime: Runtime = Runtime.TORCH
    allow_cpu: bool = False
    device_map: DeviceMap | None = None

    @property
    def name(self) -> str:
        """A short name, as output folders are called after it."""
        return self.source.name

    @property
    def path(self) -> Path:
        """The folder of its files."""
        return self.source.path

    @property
    def own_folder(self) -> bool:
        """Whether it is a folder of the user's, not the package's or the Hub's cache."""
        return self.source.repository is None and self.path != demo_folder()

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json."""
        return read_config(self.path)

    @property
    def pruned(self) -> bool:
        """Whether it was converted, and has a plan."""
        return is_converted(self.config)

    @cached_property
    def converted(self) -> Converted:
        """A converted model's files. Raises YopoError for a dense one."""
        return open_converted(self.path)

    @property
    def plan(self) -> Plan | None:
        """What is pruned; None for a dense model."""
        return self.converted.plan if self.pruned else None

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Its tensors by name, none of them read yet. Raises YopoError for files that are not a whole model."""
        quiet()
        return self.converted.open_tensors() if self.pruned else open_checkpoint(self.path)

    @cached_property
    def fingerprint(self) -> str:
        """A sha256 that tells this model's weights from others'."""
        return self.checkpoint.fingerprint()

    @cached_property
    def loaded(self) -> Loaded:
        """The model with its weights and its processor, loaded at the first use. Raises YopoError."""
        return load_with(self.runtime, self.path, self.device, self.dtype, self.allow_cpu, self.device_map)

    @property
    def torch(self) -> Any:
        """The transformers model itself, a `torch.nn.Module`."""
        return self.loaded.model

    @property
    def processor(self) -> Any:
        """The processor of transformers that goes with it, padding on the left."""
        return self.loaded.processor

    def unload(self) -> None:
        """Give the memory of the weights back; the next use loads them again."""
        self.__dict__.pop("loaded", None)
        collect()  # models have cycles

    def dense(self) -> "Model":
        """This model, which must be a dense one. Raises YopoError for a converted one."""
        if self.pruned:
            open_checkpoint(self.path)  # which says what to do instead
        return self

    def on_one_device(self, who: str) -> "Model":
        """This model, which must have no device map. Raises YopoError."""
        if self.device_map is not None:
            raise YopoError(f"{who} has the whole model on its device.", "Leave the device map out.")
        return self

    def missing_dense_side(self) -> str | None:
        """Why the dense model cannot answer in a converted one's place, in a sentence; None where it can."""
        section = self.config.get("yopo", {})
        if not has_dense_side(section):
            return f"The language model of {self.name} was healed: the dense model is not in it any more."
        if self.runtime is Runtime.ONNX and section.get("base_projector"):
            return f"{self.name} was healed, and an export has the healed projector alone: the dense model is not in it."
        return None


def load(
    model: str | Path,
    *,
    device: str | None = None,
    dtype: Dtype | str = Dtype.AUTO,
    runtime: Runtime | str = Runtime.TORCH,
    allow_cpu: bool = False,
    device_map: str | None = None,
    max_memory: Mapping[str, int | str] | None = None,
) -> Model:
    """Open a model: `demo`, a short name (`llava-1.5-7b`), a Hub id, a Hub id@revision, or a folder; dense or converted.

    It is fetched if need be, and all is checked that can be without reading weights, which are loaded when something needs them.
    `device`: cpu, cuda, cuda:1 or mps (default: a GPU if there is one). `dtype`: float32, bfloat16, float16, or auto: the checkpoint's
    own on a GPU, float32 on a CPU if that fits, else bfloat16. `runtime`: torch, or onnx for an export.
    `device_map`: "auto" for what is larger than the device: layers that do not fit wait in memory, then on disk, within `max_memory`
    ({"cuda:0": "60GB", "cpu": "100GB"}; by default most of what is free). Raises YopoError.
    """
    placed = DeviceMap.of(device_map, max_memory)
    kinds = _member(Dtype, dtype, "number format"), _member(Runtime, runtime, "runtime")
    found = Model(locate(str(model)), device, *kinds, allow_cpu, placed)
    if found.runtime is Runtime.TORCH:
        found.checkpoint  # noqa: B018  (what is wrong with the files is told here)
    return found


def opened(model: Model | str | Path) -> Model:
    """The model itself, or the one of this name or in this folder."""
    return model if isinstance(model, Model) else load(model)


def _member(kind: Any, value: str, what: str) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise YopoError(f"There is no {what} {value!r}.", f"There are: {', '.join(kind)}.") from None
