"""Tiny checkpoints on disk, in every layout that people have."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from support.tiny import tiny_llava


def hub_name(name: str) -> str:
    """The layout of the llava-hf repositories."""
    for new, old in (
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    ):
        if name.startswith(new):
            return old + name.removeprefix(new)
    raise AssertionError(name)


LAYOUTS: dict[str, Callable[[str], str]] = {
    "hub": hub_name,
    "hub without vision_model": lambda name: hub_name(name).replace("vision_tower.vision_model.", "vision_tower."),
    "modules": lambda name: name,
    "modules with vision_model": lambda name: name.replace("model.vision_tower.", "model.vision_tower.vision_model."),
}


def config_of(config: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(config.to_json_string())
    return data | {"architectures": ["LlavaForConditionalGeneration"]}


def save_model(folder: Path, layout: str = "hub", shards: int = 1, binary: bool = False, **sizes: Any) -> Any:
    """Write a tiny LLaVA with a README and a licence to `folder` and return the model."""
    model, config = tiny_llava(**sizes)
    tensors = {LAYOUTS[layout](name): tensor.clone() for name, tensor in model.state_dict().items()}
    write_checkpoint(folder, config_of(config), tensors, shards, binary)
    return model


def write_checkpoint(folder: Path, config: Mapping[str, Any], tensors: dict[str, Tensor], shards: int = 1, binary: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text('{"max_new_tokens": 5}')
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 512}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: llama2\n---\n\n# A tiny model\n")
    (folder / "LICENSE.txt").write_text("Do good.\n")
    name, ending = ("pytorch_model", "bin") if binary else ("model", "safetensors")
    save = torch.save if binary else save_file
    if shards == 1:
        save(tensors, folder / f"{name}.{ending}")
        return
    places = {key: f"{name}-{index % shards + 1:05d}-of-{shards:05d}.{ending}" for index, key in enumerate(tensors)}
    for file in sorted(set(places.values())):
        save({key: tensor for key, tensor in tensors.items() if places[key] == file}, folder / file)
    (folder / f"{name}.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def native_copy(converted: Path, folder: Path) -> Path:
    """The converted folder as the dense native model that it also is: the same files, the native class in config.json."""
    shutil.copytree(converted, folder)
    config = json.loads((folder / "config.json").read_text())
    del config["yopo"], config["auto_map"]
    config |= {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, with its bytes."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
