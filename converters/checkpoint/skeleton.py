"""What a checkpoint must hold: the native model's parameters, built from its config on the `meta` device without weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from ..errors import YopoError
from ..families import Config, Family
from .header import DTYPES, TensorInfo

SHOWN = 3
SAME_MODEL = "Are config.json and the weights from the same model and revision?"


@dataclass(frozen=True)
class Skeleton:
    """Shapes by v5 name; `tied` ones may be absent from a file."""

    shapes: Mapping[str, tuple[int, ...]]
    tied: frozenset[str]


def skeleton(family: Family, config: Config) -> Skeleton:
    """The native model of this config. Raises YopoError if transformers cannot build it."""
    native = {key: value for key, value in native_config(family, config).items() if key != "quantization_config"}
    model_class: Any = getattr(transformers, family.architecture)
    try:
        with torch.device("meta"):
            model = model_class._from_config(model_class.config_class.from_dict(native))
    except Exception as error:
        reason = " ".join(str(error).split())
        raise YopoError(f"config.json does not describe a {family.name} model: {reason}", "Is it complete and unchanged?") from None
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return Skeleton(shapes, frozenset(model.all_tied_weights_keys))


def native_config(family: Family, config: Config) -> dict[str, Any]:
    """The config of the same model in plain transformers, with the current names of class and dtype."""
    native = {key: value for key, value in config.items() if key not in ("yopo", "auto_map")}
    if "torch_dtype" in native:
        native.setdefault("dtype", native.pop("torch_dtype"))
    return native | {"model_type": family.model_type, "architectures": [family.architecture]}


def check_tensors(tensors: Mapping[str, TensorInfo], expected: Skeleton, family: Family) -> None:
    """Raise YopoError for the first tensor that is unknown, missing, of the wrong shape or not of a floating dtype."""
    for name, info in tensors.items():
        _check_tensor(name, info, expected, family)
    missing = sorted(expected.shapes.keys() - tensors.keys() - expected.tied)
    if missing:
        listed = ", ".join(missing[:SHOWN]) + (", ..." if len(missing) > SHOWN else "")
        raise YopoError(f"The checkpoint lacks {len(missing)} of {len(expected.shapes)} tensors: {listed}", SAME_MODEL)


def _check_tensor(name: str, info: TensorInfo, expected: Skeleton, family: Family) -> None:
    where = f"The tensor {info.name_on_disk!r} in {info.file.name}"
    if name not in expected.shapes:
        raise YopoError(f"{where} does not belong to a {family.name} model of this config.", SAME_MODEL)
    if not DTYPES[info.read_dtype].is_floating_point or DTYPES[info.read_dtype].itemsize < 2:
        raise YopoError(f"{where} has dtype {info.dtype}: it is quantised.", "Use the unquantised checkpoint.")
    if info.shape != expected.shapes[name]:
        wanted = list(expected.shapes[name])
        raise YopoError(f"{where} has shape {list(info.shape)}, but config.json asks for {wanted}.", SAME_MODEL)
