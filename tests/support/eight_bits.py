"""Tiny checkpoints with weights of eight bits, as compressed-tensors writes them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoints import config_of, hub_name, write_checkpoint
from .tiny import tiny_llava

INT8 = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True, "dynamic": False}
FP8 = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}
ROWS = {"num_bits": 8, "type": "int", "strategy": "token", "symmetric": True, "dynamic": True}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": True, "dynamic": False}


def scheme(weights: Mapping[str, Any], **others: Any) -> dict[str, Any]:
    """The section of config.json that compressed-tensors writes."""
    group = {
        "targets": ["Linear"],
        "weights": dict(weights),
        "input_activations": dict(ROWS, type=weights["type"]),
        "output_activations": None,
    }
    kind = "int-quantized" if weights["type"] == "int" else "float-quantized"
    facts = {"quant_method": "compressed-tensors", "format": kind, "quantization_status": "compressed", "ignore": ["lm_head"]}
    return {**facts, "config_groups": {"group_0": group}, "kv_cache_scheme": None, **others}


def in_eight_bits(weight: Tensor, kind: str) -> dict[str, Tensor]:
    """A weight and its scales: integers with one for each output, or floats with one for all."""
    if kind == "int8":
        scale = weight.abs().amax(1, keepdim=True) / 127
        return {"weight": (weight / scale).round().to(torch.int8), "weight_scale": scale}
    scale = weight.abs().max()[None] / 448
    return {"weight": (weight / scale).to(torch.float8_e4m3fn), "weight_scale": scale}


def quantised(folder: Path, kind: str) -> Path:
    """A tiny LLaVA whose language model has weights of eight bits, in the layout of the llava-hf repositories."""
    model, config = tiny_llava()
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        module, _, ending = hub_name(name).rpartition(".")
        if "language_model.layers" in name and ending == "weight" and tensor.dim() == 2:
            tensors |= {f"{module}.{part}": value.contiguous() for part, value in in_eight_bits(tensor, kind).items()}
        else:
            tensors[hub_name(name)] = tensor.clone()
    facts = config_of(config) | {"dtype": "float32", "quantization_config": scheme(INT8 if kind == "int8" else FP8)}
    write_checkpoint(folder, facts, tensors)
    return folder
