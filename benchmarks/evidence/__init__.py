"""Trained models that a plan can be measured on besides the demo: other architectures, a weak vision tower, harder questions."""

from pathlib import Path

# The question sets of converters.data.demo.sets that each model learned, its main one first.
MODELS = {
    "qwen2-vl": ("sizes", "demo"),
    "weak-tower": ("demo",),
    "harder": ("harder", "demo"),
    "internvl": ("demo",),
    "llava-next": ("sizes", "demo"),
}


def folder(name: str) -> Path:
    """The checkpoint of this name."""
    return Path(__file__).parent / name


def available() -> tuple[str, ...]:
    """The names of the models whose weights are there."""
    return tuple(name for name in MODELS if (folder(name) / "model.safetensors").exists())
