"""Imports change nothing; `register()` makes converted models known to transformers."""

import subprocess
import sys

IMPORTS = """
import sys
import yopo, converters, converters.errors
assert "torch" not in sys.modules
"""
KNOWN = """
import transformers
import converters.runtime.text_model
from transformers import AutoConfig, AutoModelForImageTextToText
names = ("yopo_llava", "yopo_qwen2_vl", "yopo_qwen2_5_vl", "yopo_qwen3_vl", "yopo_internvl", "yopo_llava_next", "yopo_llava_onevision",
    "yopo_smolvlm", "yopo_idefics3")
assert not set(names) & set(transformers.models.auto.configuration_auto.CONFIG_MAPPING)
from converters.runtime.registration import register
register()
register()
for name in names:
    config = AutoConfig.for_model(name).__class__
    assert AutoModelForImageTextToText._model_mapping[config].__module__.startswith("converters.runtime.")
"""


def test_imports_have_no_side_effect() -> None:
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)


def test_auto_classes_know_converted_models_once_registered() -> None:
    subprocess.run([sys.executable, "-c", KNOWN], check=True)
