"""SmolVLM, SmolVLM2 and Idefics3: SigLIP tower, tiles whose patches are shuffled into fewer tokens, Llama as language model.

Tiles, and the whole picture after them, stand apart in the text, each behind a marker; frames of videos are tiles too. The markers
are text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import repeat
from typing import Any

from ..runtime.plan import Grid, Sizes
from .family import Config, Family, Visual, parsed, renaming, stated_sizes, text_sizes


def _recognises(model_type: str, config: Config) -> bool:
    return config.get("model_type") == model_type and (config.get("text_config") or {}).get("model_type", "llama") == "llama"


def _sizes(config: Config) -> Sizes:
    return stated_sizes(config.get("text_config") or {}) or text_sizes(parsed(config).text_config)


def _grid(config: Config) -> Grid:
    """One tile's grid."""
    known = parsed(config)
    side = known.vision_config.image_size // known.vision_config.patch_size // known.scale_factor
    return Grid(side, side)


def _kinds(config: Config) -> tuple[Visual, ...]:
    grid = _grid(config)

    def shares(pixels: Any, batch: Mapping[str, Any], counts: Sequence[int]) -> list[Any]:
        """Tiles without those that fill up a batch."""
        return [tiles[: count // grid.tokens] for tiles, count in zip(pixels, counts, strict=True)]

    return (Visual(int(parsed(config).image_token_id), "pixel_values", lambda batch: repeat(grid), shares),)


def _black(config: Config, grids: Sequence[Grid], count: int) -> dict[str, Any]:
    """Zeros would be taken for tiles that fill up a batch: black is -1."""
    import torch

    side = parsed(config).vision_config.image_size
    return {"pixel_values": torch.full((count, len(grids), 3, side, side), -1.0)}


SMOLVLM = Family(
    name="SmolVLM",
    model_type="smolvlm",
    architecture="SmolVLMForConditionalGeneration",
    yopo_model_type="yopo_smolvlm",
    yopo_architecture="YopoSmolVLMForConditionalGeneration",
    yopo_config="YopoSmolVLMConfig",
    recognises=lambda config: _recognises("smolvlm", config),
    # The Hub's names are the modules'.
    renamings=(
        renaming(r"model\.text_model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq$", None),
        renaming(r"model\.vision_model\.embeddings\.position_ids$", None),
        *(
            renaming(name.replace(".", r"\."), name)
            for name in ("model.text_model.", "model.vision_model.", "model.connector.", "lm_head.")
        ),
    ),
    sizes=_sizes,
    grid=_grid,
    image_token=lambda config: int(parsed(config).image_token_id),
    kinds=_kinds,
    black=_black,
    text_prefix="model.text_model.",
    projector="model.connector.modality_projection.",
)

IDEFICS3 = replace(
    SMOLVLM,
    name="Idefics3",
    model_type="idefics3",
    architecture="Idefics3ForConditionalGeneration",
    yopo_model_type="yopo_idefics3",
    yopo_architecture="YopoIdefics3ForConditionalGeneration",
    yopo_config="YopoIdefics3Config",
    recognises=lambda config: _recognises("idefics3", config),
)
