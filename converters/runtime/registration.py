"""Making converted models known to transformers' Auto classes, so that they load without `trust_remote_code`."""

from functools import cache
from importlib import import_module

from ..families import FAMILIES


@cache
def register() -> None:
    """Let `AutoConfig`, `AutoModelForImageTextToText` and `AutoProcessor` know the converted models of all families."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    for kind, config_name, model_name in dict.fromkeys((one.yopo_model_type, one.yopo_config, one.yopo_architecture) for one in FAMILIES):
        module = import_module(f".modeling_{kind}", __package__)
        config, model = getattr(module, config_name), getattr(module, model_name)
        AutoConfig.register(kind, config, exist_ok=True)
        AutoModelForImageTextToText.register(config, model, exist_ok=True)
