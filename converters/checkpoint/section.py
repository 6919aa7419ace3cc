"""What config.json of a converted model says: the base model's config, and the `yopo` section."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from ..families import Family
from ..planning.cost import cost
from ..runtime.layout import LayerLayout, layouts
from ..runtime.plan import Plan, to_json
from ..runtime.stride import skew
from .skeleton import native_config
from .source import Source


@dataclass(frozen=True)
class Provenance:
    """How a plan came about: the command as typed, the budget asked for, the recipe, and the calibration's facts (JSON-ready).

    `refit_samples` is how many samples the refits were fitted on, None without refits.
    """

    source: Source
    command: str
    budget: float | None = None
    recipe: str | None = None
    calibration: Mapping[str, Any] | None = None
    refit_samples: int | None = None


@dataclass(frozen=True)
class Refitted:
    """The layers whose visual tokens take K and V from projections of their own, and the bytes of these."""

    layers: tuple[int, ...]
    bytes: int


def converted_config(
    family: Family,
    config: Mapping[str, Any],
    plan: Plan,
    provenance: Provenance,
    fingerprint: str,
    refitted: Refitted | None = None,
) -> dict[str, Any]:
    """config.json of a converted model. The plan must be normalised."""
    compensation = refitted and {"method": "refit", "samples": provenance.refit_samples, "bytes": refitted.bytes}
    module = f"modeling_{family.yopo_model_type}"
    classes = {"AutoConfig": family.yopo_config, "AutoModelForImageTextToText": family.yopo_architecture}
    return native_config(family, config) | {
        "model_type": family.yopo_model_type,
        "architectures": [family.yopo_architecture],
        "auto_map": {auto: f"{module}.{name}" for auto, name in classes.items()},
        "yopo": {
            "version": version(),
            "plan": to_json(plan),
            "attention": attention(plan),
            "budget": {"asked": provenance.budget, "reached": cost(plan).share},
            "recipe": provenance.recipe,
            "calibration": None if provenance.calibration is None else dict(provenance.calibration),
            "base": {
                "name": provenance.source.name,
                "repository": provenance.source.repository,
                "revision": provenance.source.revision,
                "fingerprint": fingerprint,
            },
            "compensation": compensation,
            "refitted": list(refitted.layers) if refitted else [],
            "base_projector": False,
            "healing": [],
        },
    }


def attention(plan: Plan) -> dict[str, Any]:
    """The sparse attention in plain numbers, for readers without this project. Derived from the plan, which alone is obeyed."""
    used = sorted({layer.read_stride for layer in plan.layers} - {1})
    return {
        "visual_depth": plan.visual_depth,
        "locality": plan.locality,
        "grid": {
            "order": "row-major, rows and columns counted anew in every image and tile",
            "shown": "(row + skew * column + frame) mod stride == 0",
            "skew": {str(stride): skew(stride) for stride in used},
        },
        "layers": [_layer(layout) for layout in layouts(plan)],
    }


def _layer(layout: LayerLayout) -> dict[str, Any]:
    return {
        "window": layout.window,
        "read_stride": layout.read_stride,
        "kv_rank": layout.kv_rank,
        "ranked_queries": layout.ranked_queries,
        "read_heads": sum(layout.reads),
        "self_heads": sum(layout.computes),
        "kv_heads": {
            "self_and_read": layout.self_and_read_kv_heads,
            "self_only": layout.self_kv_heads - layout.self_and_read_kv_heads,
            "read_only": layout.read_only_kv_heads,
        },
        "neurons": layout.neurons,
    }


def version() -> str:
    try:
        return metadata.version("yopo")
    except metadata.PackageNotFoundError:
        return "unknown"
