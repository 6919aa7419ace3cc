"""Importing this makes transformers' Auto classes know converted models, so that they load without `trust_remote_code`."""

from transformers import AutoConfig, AutoModelForImageTextToText

from .modeling_yopo_internvl import YopoInternVLConfig, YopoInternVLForConditionalGeneration
from .modeling_yopo_llava import YopoLlavaConfig, YopoLlavaForConditionalGeneration
from .modeling_yopo_qwen2_vl import YopoQwen2VLConfig, YopoQwen2VLForConditionalGeneration

for config, model in (
    (YopoLlavaConfig, YopoLlavaForConditionalGeneration),
    (YopoQwen2VLConfig, YopoQwen2VLForConditionalGeneration),
    (YopoInternVLConfig, YopoInternVLForConditionalGeneration),
):
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModelForImageTextToText.register(config, model, exist_ok=True)
