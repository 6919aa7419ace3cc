"""Put on the path of an environment whose torchvision was built for CUDA and whose torch was not: vLLM needs its Python parts alone.

PyPI's torchvision is for CUDA, and its operators do not load beside a CPU build of torch; that of PyTorch's own index
(https://download.pytorch.org/whl/cpu) does, and needs nothing of this.
"""

import sys
from importlib.abc import MetaPathFinder
from typing import Any

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class _Before(MetaPathFinder):
    """Defines the operators, whose meta kernels are about to be registered."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name == "torchvision._meta_registrations":
            sys.meta_path.remove(self)
            import torch

            self.library = torch.library.Library("torchvision", "DEF")
            for schema in OPERATORS:
                self.library.define(schema)
            sys.modules["torch"]._torchvision_operators = self.library  # type: ignore[attr-defined]  # kept alive


sys.meta_path.insert(0, _Before())
