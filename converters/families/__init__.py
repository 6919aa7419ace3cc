"""The families that can be converted: every one that a module of this folder defines."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pkgutil import iter_modules

from ..errors import YopoError
from ..runtime.plan import Grid, Sizes, validate_grids, validate_sizes
from .family import Config, Family, Folders, Layer, Visual

__all__ = ["FAMILIES", "Config", "Family", "Folders", "Layer", "Visual", "converted_family", "described", "family_of", "sizes_and_grids"]


REASONS = {
    "gemma3": "tokens of a picture see each other in both directions, most layers see a window of text alone, norms stand behind products",
    "qwen3_5": "three of four layers are linear attention, and text reads visual tokens through their state",
}
"""Why models that many people have cannot be pruned."""


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
    text = config.get("llm_config") or config.get("text_config") or {}
    inside = text.get("model_type")
    what = config.get("model_type") or ", ".join(config.get("architectures") or []) or "without a model_type"
    if not any(key in config for key in ("vision_config", "visual", "mm_vision_tower")):
        raise YopoError(f"This model ({what}) has no vision part.", "yopo prunes vision-language models, such as llava-1.5-7b.")
    if text.get("num_experts") or text.get("num_local_experts") or str(inside).endswith("_moe"):
        raise YopoError(f"The language model {inside} is a mixture of experts.", "yopo prunes dense models: use one of the same family.")
    supported = ", ".join(dict.fromkeys(family.name for family in FAMILIES))
    language_model = f" (language model: {inside})" if inside else ""
    reason = f": {REASONS[what]}" if what in REASONS else ""
    raise YopoError(f"The architecture {what} is not supported{language_model}{reason}.", f"Supported: {supported}.")


@contextmanager
def described(family: Family) -> Iterator[None]:
    """Tell what is raised for a config that makes no sense: transformers, which parses it, may raise anything."""
    try:
        yield
    except YopoError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise YopoError(f"config.json does not describe a {family.name} model: {reason:.300}", "Is it complete and unchanged?") from error


def sizes_and_grids(family: Family, config: Config) -> tuple[Sizes, tuple[Grid, ...]]:
    """What the language model is, and the visual grids of one picture. Raises YopoError for a config that does not tell, or nonsense."""
    with described(family):
        sizes, grids = family.sizes(config), family.grids(config)
        validate_sizes(sizes)
        validate_grids(grids)
        return sizes, grids


def converted_family(config: Config) -> Family | None:
    """The family of a converted checkpoint's config.json, None if it is none of this version's."""
    natives = {family.yopo_model_type: family.model_type for family in FAMILIES}
    native = dict(config) | {"model_type": natives.get(config.get("model_type", ""))}
    return next((family for family in FAMILIES if family.recognises(native)), None)
