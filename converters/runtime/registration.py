"""Importing this makes transformers' Auto classes know converted models, so that they load without `trust_remote_code`."""

from transformers import AutoConfig, AutoModelForImageTextToText

from .modeling_yopo_llava import YopoLlavaConfig, YopoLlavaForConditionalGeneration

AutoConfig.register(YopoLlavaConfig.model_type, YopoLlavaConfig, exist_ok=True)
AutoModelForImageTextToText.register(YopoLlavaConfig, YopoLlavaForConditionalGeneration, exist_ok=True)
