"""The entry point that vLLM calls in every process: converted models become known to transformers and to vLLM."""

from .checks import SERVED


def register() -> None:
    """Register the served models."""
    from vllm import ModelRegistry

    from ..runtime import registration
    from . import cache

    registration.register()
    cache.register()
    for architecture, served in SERVED.items():
        ModelRegistry.register_model(architecture, f"converters.serving.models:{served}")
