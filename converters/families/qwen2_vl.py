"""Qwen2-VL: a vision tower of any resolution, one visual token for 28 x 28 pixels, multimodal RoPE, grouped KV heads; videos."""

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from ..runtime.plan import Grid, Sizes
from .family import Config, Family, Visual, parsed, renaming, stated_sizes, text_sizes

# The model has no resolution of its own: costs without a calibration set are those of a picture of this size.
DEFAULT_HEIGHT, DEFAULT_WIDTH = 768, 1024


def _recognises(config: Config) -> bool:
    return config.get("model_type") == "qwen2_vl"


def _sizes(config: Config) -> Sizes:
    return stated_sizes(config.get("text_config") or config) or text_sizes(parsed(config).text_config)


def _grid(config: Config) -> Grid:
    vision = config.get("vision_config") or {}
    patch, merged = vision.get("patch_size"), vision.get("spatial_merge_size")
    if not isinstance(patch, int) or not isinstance(merged, int):
        known = parsed(config).vision_config
        patch, merged = known.patch_size, known.spatial_merge_size
    side = patch * merged
    return Grid(round(DEFAULT_HEIGHT / side), round(DEFAULT_WIDTH / side))


def _image_token(config: Config) -> int:
    return int(parsed(config).image_token_id)


def _kinds(config: Config) -> tuple[Visual, ...]:
    known = parsed(config)
    merged = known.vision_config.spatial_merge_size

    def grids(batch: Mapping[str, Any], name: str) -> Iterator[Grid]:
        """The processor counts patches, of which the tower merges squares."""
        found = batch.get(name)
        return (Grid(rows // merged, columns // merged, frames) for frames, rows, columns in ([] if found is None else found.tolist()))

    return (
        Visual(int(known.image_token_id), "pixel_values", lambda batch: grids(batch, "image_grid_thw")),
        Visual(int(known.video_token_id), "pixel_values_videos", lambda batch: grids(batch, "video_grid_thw")),
    )


def _black(config: Config, grids: Sequence[Grid], count: int) -> dict[str, Any]:
    """Patches of `temporal_patch_size` frames each, and their grids."""
    import torch

    vision = parsed(config).vision_config
    merged = vision.spatial_merge_size
    patches = [[grid.frames, grid.rows * merged, grid.columns * merged] for grid in grids] * count
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return {"pixel_values": torch.zeros(sum(map(prod, patches)), values), "image_grid_thw": torch.tensor(patches)}


QWEN2_VL = Family(
    name="Qwen2-VL",
    model_type="qwen2_vl",
    architecture="Qwen2VLForConditionalGeneration",
    yopo_model_type="yopo_qwen2_vl",
    yopo_architecture="YopoQwen2VLForConditionalGeneration",
    yopo_config="YopoQwen2VLConfig",
    recognises=_recognises,
    # The module names, then the Hub's layout, which has the language model at the root.
    renamings=(
        renaming(r"(?:model\.)?visual\.rotary_pos_emb\.inv_freq$", None),
        renaming(r"model\.(?:language_model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq$", None),
        renaming(r"model\.language_model\.", "model.language_model."),
        renaming(r"(?:model\.)?visual\.", "model.visual."),
        renaming(r"model\.(?=embed_tokens\.|layers\.|norm\.)", "model.language_model."),
        renaming(r"lm_head\.", "lm_head."),
    ),
    sizes=_sizes,
    grid=_grid,
    image_token=_image_token,
    projector="model.visual.merger.mlp.",
    kinds=_kinds,
    black=_black,
)
