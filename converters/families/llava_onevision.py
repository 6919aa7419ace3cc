"""LLaVA-OneVision: SigLIP tower, pictures of any resolution, several pictures in a sample, videos; Qwen2 as language model."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..runtime.plan import Grid
from .family import Config, Visual, parsed
from .llava_next import LLAVA_NEXT, grids_of_picture, pictures, tile


def _recognises(config: Config) -> bool:
    return config.get("model_type") == "llava_onevision" and (config.get("text_config") or {}).get("model_type", "qwen2") == "qwen2"


def _picture(config: Config) -> tuple[Grid, ...]:
    """A picture of one tile."""
    side = parsed(config).vision_config.image_size
    return grids_of_picture(config, (side, side))


def _kinds(config: Config) -> tuple[Visual, ...]:
    side = (tile(config).rows + 1) // 2

    def videos(batch: Mapping[str, Any]) -> Iterator[Grid]:
        """Frames of half a side, and the end of one row after the last."""
        found = batch.get("pixel_values_videos")
        for video in [] if found is None else found:
            yield Grid(side, side, len(video))
            yield Grid(1, 1)

    return pictures(config), Visual(int(parsed(config).video_token_id), "pixel_values_videos", videos)


LLAVA_ONEVISION = replace(
    LLAVA_NEXT,
    name="LLaVA-OneVision",
    model_type="llava_onevision",
    architecture="LlavaOnevisionForConditionalGeneration",
    yopo_model_type="yopo_llava_onevision",
    yopo_architecture="YopoLlavaOnevisionForConditionalGeneration",
    yopo_config="YopoLlavaOnevisionConfig",
    recognises=_recognises,
    picture=_picture,
    kinds=_kinds,
)
