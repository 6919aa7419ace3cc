"""config.json of a checkpoint, without its weights and without torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import YopoError
from ..families import FAMILIES
from ..json_files import conforming, read_object
from ..runtime.plan import Plan, PlanError, from_json
from .config_schema import Config, Section

CONFIG = "config.json"
NEWER = "A newer version of yopo may have written it."
FORMAT = "Give the folder of a checkpoint in the Hugging Face format."


def section_plan(config: Mapping[str, Any], path: Path) -> Plan:
    """The plan in the `yopo` section of config.json, all of which is checked. Raises YopoError."""
    conforming(Section, config.get("yopo"), f"The yopo section of {path / CONFIG}", NEWER)
    try:
        return from_json(config["yopo"]["plan"])
    except PlanError as error:
        raise YopoError(f"{path} has a plan that cannot be read: {error}", NEWER) from None


def method_of(config: Mapping[str, Any]) -> str | None:
    """How the weights of a checkpoint with this config are quantised, None where they are not."""
    quantisation = config.get("quantization_config")
    return None if not quantisation else str(quantisation.get("quant_method", "an unnamed method"))


def has_dense_side(section: Mapping[str, Any]) -> bool:
    """Whether a model with this `yopo` section still holds its base model: not where the language model was healed."""
    return not any(healing["tune"] == "language" and healing["kept"] for healing in section.get("healing", []))


def is_converted(config: Mapping[str, Any]) -> bool:
    return "yopo" in config or config.get("model_type") in {family.yopo_model_type for family in FAMILIES}


def read_config(path: Path) -> dict[str, Any]:
    """config.json as an object. Raises YopoError if there is none."""
    if (path / "adapter_config.json").exists():
        raise YopoError(f"{path} is an adapter, or holds one beside a model.", "Merge it into its base model first.")
    data = read_object(path / CONFIG, FORMAT)
    check_config(data, str(path / CONFIG))
    return data


def check_config(data: Mapping[str, Any], place: str) -> None:
    """Raise YopoError, which begins with `place`, for a value of another type than config.json has, or out of all bounds."""
    conforming(Config, data, place, FORMAT)
