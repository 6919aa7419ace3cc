"""The entry point that vLLM calls in every process: converted models become known to transformers and to vLLM."""

SERVED = {
    "YopoLlavaForConditionalGeneration": "ServedLlava",
    "YopoQwen2VLForConditionalGeneration": "ServedQwen2VL",
    "YopoQwen25VLForConditionalGeneration": "ServedQwen25VL",
    "YopoQwen3VLForConditionalGeneration": "ServedQwen3VL",
    "YopoInternVLForConditionalGeneration": "ServedInternVL",
}
"""The architectures of converted models, and the classes of `models` that serve them."""


def register() -> None:
    """Register the served models."""
    from vllm import ModelRegistry

    from ..runtime import registration
    from . import cache

    registration.register()
    cache.register()
    for architecture, served in SERVED.items():
        ModelRegistry.register_model(architecture, f"converters.serving.models:{served}")
