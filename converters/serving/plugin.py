"""The entry point that vLLM calls in every process: converted models become known to transformers and to vLLM."""

from importlib import import_module

SERVED = {
    "YopoLlavaForConditionalGeneration": "ServedLlava",
    "YopoQwen2VLForConditionalGeneration": "ServedQwen2VL",
    "YopoQwen25VLForConditionalGeneration": "ServedQwen25VL",
    "YopoInternVLForConditionalGeneration": "ServedInternVL",
}
"""The architectures of converted models, and the classes of `models` that serve them."""


def register() -> None:
    """Register the served models."""
    from vllm import ModelRegistry

    import_module("converters.runtime.registration").register()
    for architecture, served in SERVED.items():
        ModelRegistry.register_model(architecture, f"converters.serving.models:{served}")
