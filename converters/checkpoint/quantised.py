"""Checkpoints whose weights are quantised: the numbers that they stand for, and whether they can be put in another order as they are.

Eight bits with a scale for each output, or one for all (compressed-tensors), keep their integers: rows of a weight and their scales move
together. bitsandbytes shares a scale among neighbours in memory, so its numbers are read, and made anew by whoever loads the result.
Formats that share one among inputs are refused: neurons in another order would tear such groups apart.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import YopoError
from ..json_files import conforming, parse_json
from .config import method_of
from .config_schema import BlockState
from .header import DTYPE_NAMES, DTYPES, TensorInfo, read_tensor

COMPANION = re.compile(
    r"(?P<module>.+)\.(?P<ending>weight_scale|weight_zero_point|input_scale|input_zero_point|SCB|weight_format"
    r"|weight\.(?:absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.bitsandbytes__(?:nf4|fp4)))"
)
"""Names of what stands beside a quantised weight."""
FORMATS = ("int-quantized", "float-quantized", "naive-quantized")
INSTEAD = "Use the unquantised checkpoint, and quantise what yopo writes when you load it: docs/guide.md, Quantised weights."
GROUPED = "pruning puts neurons in another order, which tears such groups apart"
REFUSED = {
    "gptq": f"GPTQ shares a scale among neighbouring inputs: {GROUPED}",
    "awq": f"AWQ shares a scale among neighbouring inputs: {GROUPED}",
    "fp8": f"its scales are of blocks of inputs and outputs: {GROUPED}",
}
OWN_PROJECTIONS = r"re:.*visual_(q|k|v|kv)_proj$"
"""What yopo adds to a language model, which is not quantised."""

Parts = Mapping[str, TensorInfo]


@dataclass(frozen=True)
class Scaled:
    """A weight of 8 bits times its scales, one for each output or one for all, in `dtype`."""

    scale: TensorInfo
    zero: TensorInfo | None
    dtype: str
    unit: float = 1.0

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape

    def apply(self, tensor: Tensor) -> Tensor:
        numbers = tensor.float()
        if self.zero is not None:
            numbers = numbers - _column(self.zero)
        return (numbers * (_column(self.scale) * self.unit)).to(DTYPES[self.dtype])


@dataclass(frozen=True)
class ByTable:
    """bitsandbytes' 4 bits: a weight's bytes, two numbers each, by a table, and a scale for every block of neighbours."""

    parts: Parts
    state: BlockState
    dtype: str

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(self.state.shape)

    def apply(self, tensor: Tensor) -> Tensor:
        scales = read_tensor(self.parts["weight.absmax"])
        if "weight.nested_absmax" in self.parts:
            outer = read_tensor(self.parts["weight.nested_absmax"]).repeat_interleave(self.state.nested_blocksize)[: len(scales)]
            scales = read_tensor(self.parts["weight.nested_quant_map"])[scales.int()] * outer + self.state.nested_offset
        return self.of(tensor, read_tensor(self.parts["weight.quant_map"]), scales.float())

    def of(self, tensor: Tensor, table: Tensor, scales: Tensor) -> Tensor:
        """The numbers: the higher half of a byte comes first."""
        pairs = tensor.contiguous().view(torch.uint8).flatten()
        codes = torch.stack([pairs >> 4, pairs & 15], 1).flatten()[: prod(self.state.shape)].int()
        wide = scales.repeat_interleave(self.state.blocksize)[: len(codes)]
        return (table[codes] * wide).view(self.state.shape).to(DTYPES[self.dtype])


def check_method(config: Mapping[str, Any], path: Path) -> None:
    """Raise YopoError for weights that are quantised so that they cannot be read, or not be put in another order."""
    method = method_of(config)
    if method in (None, "bitsandbytes"):
        return
    if method != "compressed-tensors":
        why = f": {REFUSED[method]}" if method in REFUSED else ""
        raise YopoError(f"{path} is quantised ({method}){why}.", INSTEAD)
    quantisation = config["quantization_config"]
    groups = list((quantisation.get("config_groups") or {}).values())
    for group in groups:
        weights, rows = group.get("weights") or {}, group.get("input_activations") or {}
        what = f"{weights.get('num_bits')} bits {weights.get('type')}, a scale for each {weights.get('strategy')}"
        if weights.get("num_bits") != 8 or weights.get("strategy") not in ("channel", "tensor"):
            raise YopoError(f"{path} is quantised (compressed-tensors, {what}): {GROUPED}.", INSTEAD)
        if rows.get("strategy") not in (None, "token", "tensor"):
            raise YopoError(f"{path} is quantised (compressed-tensors), with scales for parts of a row: {GROUPED}.", INSTEAD)
    format_ = quantisation.get("format")
    others = [name for name in ("kv_cache_scheme", "sparsity_config", "transform_config") if quantisation.get(name)]
    if format_ not in FORMATS or not groups or others:
        raise YopoError(f"{path} is quantised (compressed-tensors, {', '.join([str(format_), *others])}), which is not read.", INSTEAD)


def companion(name: str) -> tuple[str, str] | None:
    """The weight that a tensor on disk stands beside, and what it is to it; None for a tensor of the model."""
    match = COMPANION.fullmatch(name)
    return None if match is None else (f"{match['module']}.weight", match["ending"])


def readable(tensors: Parts, beside: Mapping[str, Parts], config: Mapping[str, Any]) -> dict[str, TensorInfo]:
    """The tensors of a model; weights that others stand `beside` are read as the numbers that they stand for.

    Raises YopoError for a weight that is not whole.
    """
    read, dtype = dict(tensors), str(config.get("dtype") or config.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    kind = DTYPE_NAMES.get(getattr(torch, dtype, torch.bfloat16), "BF16")
    for name, parts in beside.items():
        if name not in tensors:
            raise YopoError(f"There are scales of {name!r}, but not the weight.", INSTEAD)
        info = tensors[name]
        if info.change is not None:
            raise YopoError(f"{name!r} is quantised, and another part of a tensor on disk.", INSTEAD)
        change = _change(info, parts, kind)
        if change is not None:
            read[name] = replace(info, shape=change.shape(info.shape), change=change)
    return read


def _change(info: TensorInfo, parts: Parts, dtype: str) -> Scaled | ByTable | None:
    """What makes numbers of a weight; None where there are scales of its inputs alone."""
    for ending, unit in (("weight_scale", 1.0), ("SCB", 1 / 127)):
        if ending in parts:
            zero = parts.get("weight_zero_point")
            for one in (parts[ending], *([] if zero is None else [zero])):
                if len(info.shape) != 2 or prod(one.shape) not in (1, info.shape[0]):
                    raise YopoError(f"{one.name_on_disk!r} has shape {list(one.shape)}, its weight {list(info.shape)}.", INSTEAD)
            return Scaled(parts[ending], zero, dtype, unit)
    states = [one for ending, one in parts.items() if "quant_state" in ending]
    if states and "weight.absmax" in parts and "weight.quant_map" in parts:
        return ByTable(parts, _state(info, parts, states[0]), dtype)
    if parts.keys() <= {"input_scale", "input_zero_point"}:
        return None
    found = ", ".join(sorted(parts))
    raise YopoError(f"The weight {info.name_on_disk!r} is quantised, but what stands beside it is not whole: {found}.", INSTEAD)


def _state(info: TensorInfo, parts: Parts, told: TensorInfo) -> BlockState:
    """What is told of a weight of four bits. Raises YopoError where it does not go with the sizes of what is there."""
    place = f"The tensor {told.name_on_disk!r}"
    state = conforming(
        BlockState, parse_json(read_tensor(told).contiguous().view(torch.uint8).numpy().tobytes(), place, INSTEAD), place, INSTEAD
    )
    scales, nested = -(-prod(state.shape) // state.blocksize), "weight.nested_absmax" in parts
    sizes = {"weight.absmax": scales, "weight.quant_map": 16}
    if nested:
        if not {"nested_blocksize", "nested_offset"} <= state.model_fields_set or "weight.nested_quant_map" not in parts:
            raise YopoError(f"{place} does not tell how its scales are quantised.", INSTEAD)
        sizes |= {"weight.nested_absmax": -(-scales // state.nested_blocksize), "weight.nested_quant_map": 256}
    counts = [(info, -(-prod(state.shape) // 2)), *((parts[ending], count) for ending, count in sizes.items())]
    for one, count in counts:
        if prod(one.shape) * (DTYPES[one.dtype].itemsize if one is info else 1) != count:
            raise YopoError(f"{one.name_on_disk!r} has shape {list(one.shape)}, which does not go with {place[4:]}.", INSTEAD)
    return state


def without_changes(config: Mapping[str, Any], tensors: Parts, beside: Mapping[str, Parts]) -> dict[str, Any]:
    """The config of a model in the order of pruning: which of its linear layers are not quantised stands there by their names here."""
    if method_of(config) == "bitsandbytes":
        return {key: value for key, value in config.items() if key != "quantization_config"}
    plain = sorted(
        name.removesuffix(".weight")
        for name, info in tensors.items()
        if name.endswith(".weight") and len(info.shape) == 2 and name not in beside
    )
    return {**config, "quantization_config": {**config["quantization_config"], "ignore": [*plain, OWN_PROJECTIONS]}}


def _column(info: TensorInfo) -> Tensor:
    return read_tensor(info).float().reshape(-1, 1)
