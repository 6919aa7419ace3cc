"""The families that can be converted."""

from ..errors import YopoError
from .family import Config, Family, Layer
from .llava import LLAVA

FAMILIES: tuple[Family, ...] = (LLAVA,)

__all__ = ["FAMILIES", "Config", "Family", "Layer", "family_of"]


def family_of(config: Config) -> Family:
    """The family of a checkpoint's config.json. Raises YopoError for an architecture that none of them is."""
    for family in FAMILIES:
        if family.recognises(config):
            return family
    what = config.get("model_type") or ", ".join(config.get("architectures") or []) or "without a model_type"
    if not any(key in config for key in ("vision_config", "visual", "mm_vision_tower")):
        raise YopoError(f"This model ({what}) has no vision part.", "yopo prunes vision-language models, such as llava-1.5-7b.")
    raise YopoError(f"The architecture {what} is not supported.", f"Supported: {', '.join(family.name for family in FAMILIES)}.")
