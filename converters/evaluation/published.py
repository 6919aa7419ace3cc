"""Published figures of dense models (LLaVA's MODEL_ZOO.md), for the dense row of a table: does the set-up reproduce them?"""

import re

FIGURES: dict[str, dict[str, float]] = {
    "gqa": {"7b": 62.0, "13b": 63.3},
    "scienceqa": {"7b": 66.8, "13b": 71.6},
    "textvqa-ocr": {"7b": 58.2, "13b": 61.3},
    "pope": {"7b": 85.9, "13b": 85.9},
    "mme": {"7b": 1510.7, "13b": 1531.3},
    "mmbench": {"7b": 64.3, "13b": 67.7},
    "mmbench-cn": {"7b": 58.3, "13b": 63.6},
}
"""VQAv2's 78.5 and 80.0 are of test-dev, SEED's 58.6 and 61.6 of another selection: they are not the tasks' figures here."""
LLAVA = re.compile(r"(?:^|/)llava-(?:v)?1\.5-(7b|13b)(?:-hf)?$")


def published(task: str, model: str | None) -> float | None:
    """The figure of this task for a model by its Hub or short name; None where there is none."""
    match = LLAVA.search(model or "")
    return FIGURES.get(task, {}).get(match[1]) if match else None
