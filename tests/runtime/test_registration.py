"""`yopo.register()` makes converted models known to transformers, before or after these are imported; nothing else does."""

import subprocess
import sys

import pytest

BEFORE = "import yopo\nyopo.register()\nfrom transformers import AutoConfig"
AFTER = "from transformers import AutoConfig\nimport yopo\nyopo.register()"
KNOWN = """
from transformers import AutoModelForImageTextToText
for name in ("yopo_llava", "yopo_qwen2_vl", "yopo_internvl"):
    config = AutoConfig.for_model(name).__class__
    assert AutoModelForImageTextToText._model_mapping[config].__module__.startswith("converters.runtime.")
"""


@pytest.mark.parametrize("order", [BEFORE, AFTER], ids=["before", "after"])
def test_auto_classes_know_converted_models(order: str) -> None:
    subprocess.run([sys.executable, "-c", f"{order}\n{KNOWN}"], check=True)


def test_importing_registers_nothing() -> None:
    program = "import yopo, converters, converters.errors, sys\nassert not {'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
