"""Qwen2.5-VL: Qwen2-VL's language model and names; a vision tower with windows of its own, which stay as they are."""

from dataclasses import replace

from .qwen2_vl import QWEN2_VL

QWEN2_5_VL = replace(
    QWEN2_VL,
    name="Qwen2.5-VL",
    model_type="qwen2_5_vl",
    architecture="Qwen2_5_VLForConditionalGeneration",
    yopo_model_type="yopo_qwen2_5_vl",
    yopo_architecture="YopoQwen25VLForConditionalGeneration",
    yopo_config="YopoQwen25VLConfig",
    recognises=lambda config: config.get("model_type") == "qwen2_5_vl",
)
