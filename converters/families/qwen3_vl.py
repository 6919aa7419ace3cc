"""Qwen3-VL (dense): norms of query and key heads, interleaved multimodal RoPE, deepstack; one visual token for 32 x 32 pixels.

Features of several depths of the tower are added to visual tokens after the first layers of the language model. Frames of a video are
pictures of their own, between which the time is written out.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..runtime.plan import Grid
from .family import Config, Visual
from .qwen2_vl import QWEN2_VL


def _kinds(config: Config) -> tuple[Visual, ...]:
    pictures, videos = QWEN2_VL.visuals(config)

    def frames(batch: Mapping[str, Any]) -> Iterator[Grid]:
        return (replace(grid, frames=1) for grid in videos.grids(batch) for _ in range(grid.frames))

    return pictures, replace(videos, grids=frames)


QWEN3_VL = replace(
    QWEN2_VL,
    name="Qwen3-VL",
    model_type="qwen3_vl",
    architecture="Qwen3VLForConditionalGeneration",
    yopo_model_type="yopo_qwen3_vl",
    yopo_architecture="YopoQwen3VLForConditionalGeneration",
    yopo_config="YopoQwen3VLConfig",
    recognises=lambda config: config.get("model_type") == "qwen3_vl",
    projector="model.visual.merger.",
    kinds=_kinds,
)
