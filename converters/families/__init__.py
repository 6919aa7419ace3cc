"""The families that can be converted: every one that a module of this folder defines."""

from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules

from ..errors import YopoError
from .family import Config, Family, Folders, Layer, Visual

__all__ = ["FAMILIES", "Config", "Family", "Folders", "Layer", "Visual", "converted_family", "family_of"]


def _defined() -> Iterator[Family]:
    for module in iter_modules(__path__):
        for value in vars(import_module(f".{module.name}", __name__)).values():
            if isinstance(value, Family):
                yield value


# A module may hold families of others, which it derives its own from.
FAMILIES: tuple[Family, ...] = tuple(dict.fromkeys(_defined()))


def family_of(config: Config) -> Family:
    """The family of a checkpoint's config.json. Raises YopoError for an architecture that none of them is."""
    for family in FAMILIES:
        if family.recognises(config):
            return family
    inside = (config.get("llm_config") or config.get("text_config") or {}).get("model_type")
    what = config.get("model_type") or ", ".join(config.get("architectures") or []) or "without a model_type"
    if not any(key in config for key in ("vision_config", "visual", "mm_vision_tower")):
        raise YopoError(f"This model ({what}) has no vision part.", "yopo prunes vision-language models, such as llava-1.5-7b.")
    supported = ", ".join(dict.fromkeys(family.name for family in FAMILIES))
    language_model = f" (language model: {inside})" if inside else ""
    raise YopoError(f"The architecture {what} is not supported{language_model}.", f"Supported: {supported}.")


def converted_family(config: Config) -> Family | None:
    """The family of a converted checkpoint's config.json, None if it is none of this version's."""
    natives = {family.yopo_model_type: family.model_type for family in FAMILIES}
    native = dict(config) | {"model_type": natives.get(config.get("model_type", ""))}
    return next((family for family in FAMILIES if family.recognises(native)), None)
