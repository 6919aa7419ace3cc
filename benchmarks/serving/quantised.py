"""A converted model with its text weights quantised, as llm-compressor writes them, and the same arithmetic in the transformers runtime.

Linear layers of the language model are in compressed-tensors' format, those of visual tokens alone, the vision tower and the head stay as
they are. `W8A8`: eight bits with a scale for each output, rows that come in as well, each with a scale of its own. `W4A16`: four bits
with a scale for every 32 inputs.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GROUP = 32
TEXT = re.compile(r"(.*language_model\.layers\.\d+\.(?:self_attn|mlp)\.(?:q|k|v|o|gate|up|down)_proj)\.weight")
KINDS = ("W8A8", "W4A16")
IGNORED = ["re:.*vision.*", "re:.*projector.*", "re:.*lm_head.*", "re:.*visual_.*"]


def rounded(weight: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Whole numbers `[out, in]`, and the scales `[out, groups]`."""
    most, group = (127, weight.shape[1]) if kind == "W8A8" else (7, GROUP)
    groups = weight.unflatten(1, (-1, group))
    scale = groups.abs().amax(-1, keepdim=True).clamp_min(1e-9) / most
    return (groups / scale).round().flatten(1).to(torch.int8), scale[..., 0]


def restored(weight: Tensor, kind: str) -> Tensor:
    """A weight as it is after quantisation."""
    whole, scale = rounded(weight, kind)
    return (whole.float().unflatten(1, (scale.shape[1], -1)) * scale[..., None]).flatten(1)


def stored(module: str, weight: Tensor, kind: str) -> dict[str, Tensor]:
    whole, scale = rounded(weight, kind)
    if kind == "W8A8":
        return {f"{module}.weight": whole, f"{module}.weight_scale": scale}
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    packed = {"weight_packed": pack_to_int32(whole, 4), "weight_scale": scale, "weight_shape": torch.tensor(weight.shape)}
    return {f"{module}.{name}": tensor for name, tensor in packed.items()}


def section(kind: str) -> dict[str, Any]:
    """`quantization_config`."""
    weights = {"num_bits": int(kind[1]), "type": "int", "symmetric": True, "dynamic": False}
    rows = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": True, "strategy": "token"}
    weights |= {"strategy": "channel"} if kind == "W8A8" else {"strategy": "group", "group_size": GROUP}
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized" if kind == "W8A8" else "pack-quantized",
        "quantization_status": "compressed",
        "ignore": IGNORED,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": rows if kind == "W8A8" else None}},
    }


def write(folder: Path, out: Path, kind: str) -> None:
    """A converted model of one file, quantised."""
    shutil.copytree(folder, out, dirs_exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        found = TEXT.fullmatch(name)
        tensors |= stored(found[1], tensor, kind) if found else {name: tensor}
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (out / "config.json").write_text(json.dumps(config | {"quantization_config": section(kind)}, indent=1), encoding="utf-8")


def quantise(model: Any, kind: str) -> None:
    """Round the weights of a model of the transformers runtime, and what comes into its layers, in place."""
    for name, module in model.named_modules():
        if TEXT.fullmatch(f"{name}.weight"):
            module.weight.data = restored(module.weight.data, kind)
            if kind == "W8A8":
                module.register_forward_pre_hook(lambda _, given: (rounded_rows(given[0]), *given[1:]))


def rounded_rows(rows: Tensor) -> Tensor:
    scale = rows.abs().amax(-1, keepdim=True).clamp_min(1e-9) / 127
    return (rows / scale).round() * scale
