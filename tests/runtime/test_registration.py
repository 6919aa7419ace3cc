"""`import converters` makes converted models known to transformers, in either order."""

import subprocess
import sys

import pytest

BEFORE = "import converters\nfrom transformers import AutoConfig"
AFTER = "from transformers import AutoConfig\nimport converters"
KNOWN = """
from transformers import AutoModelForImageTextToText
for name in ("yopo_llava", "yopo_qwen2_vl", "yopo_internvl"):
    config = AutoConfig.for_model(name).__class__
    assert AutoModelForImageTextToText._model_mapping[config].__module__.startswith("converters.runtime.")
"""


@pytest.mark.parametrize("order", [BEFORE, AFTER], ids=["before", "after"])
def test_auto_classes_know_converted_models(order: str) -> None:
    subprocess.run([sys.executable, "-c", f"{order}\n{KNOWN}"], check=True)
