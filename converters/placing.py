"""Models larger than a device: what does not fit on it waits in the machine's memory, and the rest on disk, placed by accelerate."""

import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

from .errors import YopoError

AUTO = "auto"
MEMORY_SHARE = 0.8  # of the machine's free bytes
DEVICE_SHARE = 0.7  # of a device's; the rest is for what is computed there


@dataclass(frozen=True, eq=False)
class DeviceMap:
    """Layers fill the device where the model runs, then the machine's memory, then the disk.

    `max_memory` are bounds, bytes or text such as 20GB, by device (cuda:0, cpu), in the place of what is free now.
    """

    max_memory: Mapping[str, int | str] | None = None

    @classmethod
    def of(cls, asked: str | None, max_memory: Mapping[str, int | str] | None = None) -> "DeviceMap | None":
        """What was asked for; None: the whole model on one device. Raises YopoError for anything else, and without accelerate."""
        if asked is None:
            if max_memory:
                raise YopoError("max_memory bounds what a device map uses, and there is none.", 'Add device_map="auto".')
            return None
        if asked != AUTO:
            raise YopoError(f"There is no device map {asked!r}.", f"There is: {AUTO}.")
        if find_spec("accelerate") is None:
            raise YopoError("A device map needs accelerate.", "Install it: pip install 'yopo[heal]'")
        return cls(max_memory)

    @cached_property
    def folder(self) -> str:
        """A temporary folder for what is not on disk as it is; it goes with this map, which its model keeps."""
        folder = mkdtemp(prefix="yopo-offloaded-")
        weakref.finalize(self, rmtree, folder, ignore_errors=True)
        return folder

    def limits(self, device: str) -> dict[int | str, int | str]:
        """Bounds in accelerate's words: of the one device where all is computed, and of the machine's memory, which processes share."""
        import torch

        given, where = dict(self.max_memory or {}), torch.device(device)
        from .healing.memory import available

        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        limits: dict[int | str, int | str] = {"cpu": given.pop("cpu", int((available("cpu") or 0) * MEMORY_SHARE) // processes)}
        if where.type != "cpu":
            free = available(device)
            bound = given.pop(device, None) or given.pop(f"{where.type}:{where.index or 0}", None)
            bound = bound or (None if free is None else int(free * DEVICE_SHARE))
            if bound is None:
                raise YopoError(f"Nothing tells how much memory {device} has.", f'Say it: max_memory={{"{device}": "8GB"}}.')
            limits = {where.index or 0 if where.type == "cuda" else where.type: bound, **limits}
        if given:
            raise YopoError(f"max_memory names {', '.join(given)}, where nothing is placed.", f"There are: {device}, cpu.")
        return limits

    def options(self, device: str) -> dict[str, Any]:
        """What `from_pretrained` is told."""
        return {"device_map": "sequential", "max_memory": self.limits(device), "offload_folder": self.folder}

    def dispatched(self, model: Any, device: str) -> Any:
        """A model that is in the machine's memory, placed."""
        from accelerate import dispatch_model, infer_auto_device_map

        limits = self.limits(device)
        places = infer_auto_device_map(model, limits, no_split_module_classes=list(model._no_split_modules or ()))
        return dispatch_model(model, places, main_device=next(iter(limits)), offload_dir=self.folder)
