"""An adapter of the dense model in a pruned model's order of heads and neurons."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ..checkpoint.folder import appearing, check_apart, json_text, synchronise, write_text
from ..checkpoint.permutation import Permutation, permutations
from ..checkpoint.reader import Converted
from ..model import Model, opened
from ..runtime.adapter_check import order_sha256
from .adapter import CONFIG, DOWN, PREFIX, WEIGHTS, Adapter, open_adapter


@dataclass(frozen=True)
class Adaptation:
    """What `adapt` did: the adapter, the pruned model that it is for now, how many modules it has and how many were reordered.

    `unreached` are layers where visual tokens have K and V of their own, which the adapter's K and V do not change.
    """

    adapter: Path
    model: Path
    modules: int
    reordered: int
    unreached: tuple[int, ...]
    output: Path

    def to_json(self) -> dict[str, Any]:
        """All of it as a JSON object."""
        paths = {"adapter": str(self.adapter), "model": str(self.model), "output": str(self.output)}
        return paths | {"modules": self.modules, "reordered": self.reordered, "unreached": list(self.unreached)}


def adapt(adapter: Path | str, model: Model | str | Path, output: Path | str, *, force: bool = False) -> Adaptation:
    """Put a LoRA adapter of the dense model in the order of heads and neurons of a pruned one, and write it to the folder `output`.

    Rows of B, biases and magnitudes (DoRA) go with the outputs of a projection, columns of A with its inputs. `force` replaces an existing
    adapter that this wrote. Raises YopoError: no adapter, of another kind, of another model, or converted already; a dense model.
    """
    path, output, pruned = Path(adapter), Path(output), opened(model)
    converted, source = pruned.converted, pruned.source
    check_apart(path, output)
    check_apart(converted.path, output)
    checkpoint = converted.open_tensors()
    given = open_adapter(path, converted.family, checkpoint.config)
    given.check({name: info.shape for name, info in checkpoint.tensors.items()})
    moved = permutations(converted.family, converted.plan)
    modules = {module: reordered(module, parts, moved) for module, parts in given.modules.items()}
    with appearing(output, force) as folder:
        tensors = {f"{PREFIX}{module}.{part}": tensor.contiguous() for module, parts in modules.items() for part, tensor in parts.items()}
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})
        synchronise(folder / WEIGHTS)
        name = source.repository or str(source.path.resolve())
        write_text(folder / CONFIG, json_text(settings(given, converted, name)))
    changed = sum(any(part is not given.modules[module][key] for key, part in parts.items()) for module, parts in modules.items())
    return Adaptation(path, converted.path, len(modules), changed, _unreached(converted, modules), output)


def reordered(module: str, parts: Mapping[str, Tensor], moved: Mapping[str, Permutation]) -> dict[str, Tensor]:
    """The parts of a module's adapter in the order of its permuted weight; those that do not move are the same objects."""
    permutation = moved.get(f"{module}.weight")
    if permutation is None:
        return dict(parts)
    if permutation.dimension == 1:  # inputs move: of a weight and of A the columns
        return {part: permutation.apply(tensor) if part in (DOWN, "weight") else tensor for part, tensor in parts.items()}
    return {part: tensor if part == DOWN else permutation.apply(tensor) for part, tensor in parts.items()}


def settings(adapter: Adapter, converted: Converted, name: str) -> dict[str, Any]:
    """adapter_config.json: modules by their full names, so that no pattern takes in others, and which model and order it is for."""
    adapted = {module: parts for module, parts in adapter.modules.items() if DOWN in parts}
    ranks = {module: len(parts[DOWN]) for module, parts in adapted.items()}
    rank, alpha = adapter.config.get("r", 8), adapter.config["lora_alpha"]
    architecture = converted.family.yopo_architecture
    library = f"converters.runtime.modeling_{converted.family.yopo_model_type}"
    order = {"base": converted.section.get("base", {}).get("fingerprint"), "order": order_sha256(converted.plan)}
    return dict(adapter.config) | {
        "base_model_name_or_path": name,
        "revision": None,
        "target_modules": sorted(adapted),
        "modules_to_save": sorted(module for module, parts in adapter.modules.items() if "weight" in parts) or None,
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {module: found for module, found in ranks.items() if found != rank},
        "alpha_pattern": {module: found for module, found in adapter.alphas.items() if module in adapted and found != alpha},
        "auto_mapping": {"base_model_class": architecture, "parent_library": library, "yopo": order},
    }


def _unreached(converted: Converted, modules: Collection[str]) -> tuple[int, ...]:
    """Refitted layers of whose K or V there is an adapter."""
    prefix, names = f"{converted.family.text_prefix}layers.", (converted.family.layer.key, converted.family.layer.value)
    return tuple(index for index in converted.refitted if any(f"{prefix}{index}.{name}" in modules for name in names))
