"""An adapter as PEFT writes it: `adapter_config.json` and `adapter_model.safetensors`, its tensors by the model's own names."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checkpoint.header import read_header, read_tensor
from ..errors import YopoError
from ..families import Config, Family
from ..families.family import ModelTensor, RowRange
from ..json_files import read_object

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
NAME = re.compile(
    r"(?P<module>.+?)\.(?P<part>lora_A\.weight|lora_B\.(?:weight|bias)|lora_magnitude_vector|(?:base_layer\.)?(?:weight|bias))"
)
DOWN, UP, UP_BIAS, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_magnitude_vector"

HARMLESS = frozenset(
    {
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_bias",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "modules_to_save",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
        "use_dora",
        "use_rslora",
    }
)
"""What a config may say; anything else that is set changes what an adapter computes in a way that is not known here."""
KEEPING = (True, False, "gaussian", "orthogonal", "eva", "lora_ga")
"""Ways to begin training that leave the base weights as they are."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter (rsLoRA, DoRA and biases included) on linear layers.

    `modules` has by v5 module name the parts that PEFT keeps of it: `lora_A.weight` `[rank, in]`, `lora_B.weight` `[out, rank]`,
    `lora_B.bias` and `lora_magnitude_vector` `[out]`; of a layer that was trained in full or in its bias, `weight` and `bias`. `alphas`
    has the `lora_alpha` of each.
    """

    path: Path
    config: Mapping[str, Any]
    modules: Mapping[str, Mapping[str, Tensor]]
    alphas: Mapping[str, float]

    def scale(self, module: str) -> float:
        """What the product of the module's two matrices is multiplied by."""
        rank = len(self.modules[module][DOWN])
        return self.alphas[module] / (rank**0.5 if self.config.get("use_rslora") else rank)

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise YopoError where this is no adapter of a model whose tensors have these names and shapes."""
        for module, parts in self.modules.items():
            weight = shapes.get(f"{module}.weight")
            if weight is None:
                raise YopoError(f"{self.path} adapts {module}, which the model does not have.", "Is it an adapter of this model's base?")
            expected = {DOWN: weight[1:], UP: weight[:1], UP_BIAS: weight[:1], MAGNITUDE: weight[:1], "weight": weight, "bias": weight[:1]}
            for part, tensor in parts.items():
                shape = tuple(tensor.shape)
                shape = shape[1:] if part == DOWN else shape[:1] if part == UP else shape
                if shape != expected[part.removeprefix("base_layer.")]:
                    raise YopoError(
                        f"{self.path}: {part} of {module} is {list(tensor.shape)}, which does not go with a weight of {list(weight)}.",
                        "Is it an adapter of this model's base?",
                    )


def open_adapter(path: Path, family: Family, config: Config) -> Adapter:
    """Read an adapter of a model of this family; `config` is the model's config.json, whose layout names may be in.

    Raises YopoError: not an adapter, of another kind than LoRA on linear layers, weights that are not whole, unknown modules.
    """
    settings = read_object(path / CONFIG, "Give the folder of an adapter, as PEFT's save_pretrained writes it.")
    _check_settings(path, settings)
    if not (path / WEIGHTS).is_file():
        raise YopoError(f"{path} has no {WEIGHTS}.", "Load the adapter with PEFT and save it again; pickled weights are not read.")
    if (beside := path / "non_lora_trainables.bin").exists():
        raise YopoError(f"{beside} holds weights that are no part of the adapter.", "Merge both with the script that wrote them.")
    modules: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    for name, info in read_header(path / WEIGHTS).items():
        tensor = read_tensor(info)
        match = NAME.fullmatch(name.removeprefix(PREFIX))
        if match is None or not name.startswith(PREFIX):
            raise YopoError(
                f"The tensor {name!r} of {path} is not LoRA on a linear layer.", "Merge the adapter into the model with PEFT first."
            )
        for piece in _pieces(path, family, config, match["module"]):
            module, part = piece.name.removesuffix(".weight"), match["part"]
            found = tensor if piece.change is None or part == DOWN else piece.change.apply(tensor)
            modules.setdefault(module, {})[part] = found
            alphas[module] = float(_of_pattern(settings.get("alpha_pattern") or {}, match["module"], settings["lora_alpha"]))
    if whole := [module for module, parts in modules.items() if (DOWN in parts) != (UP in parts)]:
        raise YopoError(f"{path} has one of two matrices of {whole[0]} alone.", "Save the adapter again.")
    return Adapter(path, settings, modules, alphas)


def _check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    hint = "Merge the adapter into the model with PEFT, and convert the merged model."
    if settings.get("peft_type") != "LORA":
        raise YopoError(f"{path} is an adapter of the kind {settings.get('peft_type')!r}, not LoRA.", hint)
    if not isinstance(settings.get("lora_alpha"), int | float) or not isinstance(settings.get("alpha_pattern") or {}, dict):
        raise YopoError(f"{path / CONFIG} has no lora_alpha that is a number, or an alpha_pattern that is no object.", "Save it again.")
    if unknown := sorted(name for name, value in settings.items() if value and name not in HARMLESS):
        raise YopoError(f"{path / CONFIG} sets {', '.join(unknown)}, which cannot be carried over.", hint)
    if settings.get("init_lora_weights", True) not in KEEPING:
        raise YopoError(
            f"The adapter {path} was begun with {settings['init_lora_weights']!r}, which changes the base weights.",
            "Save it as one of the unchanged base: save_pretrained(..., path_initial_model_for_weight_conversion=...).",
        )
    trained = settings.get("auto_mapping") or {}
    if "yopo" in trained or str(trained.get("base_model_class", "")).startswith("Yopo"):
        raise YopoError(f"{path} is an adapter of a pruned model already.", "Give one that was trained on the dense model.")


def _pieces(path: Path, family: Family, config: Config, module: str) -> tuple[ModelTensor, ...]:
    """The modules of transformers 5 that a module of the adapter is: itself, renamed, or the parts of a fused one."""
    try:
        pieces = family.pieces(f"{module}.weight", config)
    except YopoError:
        raise YopoError(f"{path} adapts {module}, which a {family.name} model does not have.", "Is it an adapter of this model?") from None
    if any(piece.change is not None and not isinstance(piece.change, RowRange) for piece in pieces):
        raise YopoError(f"{path} adapts {module}, whose matrix has another shape in transformers.", "Merge it into the model first.")
    return pieces


def _of_pattern(pattern: Mapping[str, Any], module: str, default: float) -> float:
    """The value that PEFT's patterns give a module: the first of which the end of the name matches."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", module)), default)
