"""LLaVA-NeXT (v1.6): CLIP tower, pictures of any resolution, Llama (Vicuna, Llama 3) or Mistral as language model.

A picture is the whole of it in one tile, then all tiles side by side without their padding: a grid whose rows each end with a learned
vector, which is a visual token like the others.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from ..errors import YopoError
from ..runtime.plan import Grid, Sizes
from .family import Config, Visual, parsed, renaming, stated_sizes, text_sizes
from .llava import LLAVA

LANGUAGE_MODELS = ("llama", "mistral")
# What config.json leaves out, as the Hub's of the Mistral model does: the defaults of transformers' MistralConfig.
DEFAULTS = {
    "mistral": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
}  # fmt: skip


def _recognises(config: Config) -> bool:
    return config.get("model_type") == "llava_next" and (config.get("text_config") or {}).get("model_type", "llama") in LANGUAGE_MODELS


def sizes(config: Config) -> Sizes:
    text = config.get("text_config") or {}
    return stated_sizes(DEFAULTS.get(str(text.get("model_type")), {}) | text) or text_sizes(parsed(config).text_config)


def tile(config: Config) -> Grid:
    """The grid of one tile, which is also the whole picture's."""
    vision = config.get("vision_config") or {}
    image, patch = vision.get("image_size"), vision.get("patch_size")
    if not isinstance(image, int) or not isinstance(patch, int):
        image, patch = parsed(config).vision_config.image_size, parsed(config).vision_config.patch_size
    side = image // patch
    return Grid(side, side)


def _picture(config: Config) -> tuple[Grid, ...]:
    """Two by two tiles, if there are such pictures: those of the papers' tables."""
    side = 2 * parsed(config).vision_config.image_size
    return grids_of_picture(config, (side, side))


@dataclass(frozen=True)
class Tiling:
    """How a picture is cut up: rows and columns of `tiles`, then those of tokens: `unpadded` ones, and what becomes of them."""

    tiles: tuple[int, int]
    unpadded: tuple[int, int]
    shown: tuple[int, int]


def tiling(config: Config, size: Sequence[int]) -> Tiling:
    """Of a picture of `size` (height, width)."""
    import torch
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

    known, base = parsed(config), tile(config)
    tiles = get_anyres_image_grid_shape(tuple(size), known.image_grid_pinpoints, known.vision_config.image_size)
    rows, columns = unpad_image(torch.empty(0, *(count * base.rows for count in tiles)), tuple(size)).shape[1:]
    return Tiling(tiles, (rows, columns), _at_most(known, base, rows, columns))


def grids_of_picture(config: Config, size: Sequence[int], alone: bool = True) -> tuple[Grid, ...]:
    """The grids of a picture of `size` (height, width); one that is not `alone` in its sample has the end of one row after its tile."""
    base = tile(config)
    if not alone:
        return base, Grid(1, 1)
    rows, columns = tiling(config, size).shown
    return (base, Grid(rows, columns + 1)) if rows else (base,)


def _at_most(known: Any, base: Grid, rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns after LLaVA-OneVision has shrunk a large picture."""
    largest = str(getattr(known, "vision_aspect_ratio", "")).removeprefix("anyres_max_")
    ratio = (rows * columns / (int(largest) * base.tokens)) ** 0.5 if largest.isdigit() else 1.0
    return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)


def _alone(batch: Mapping[str, Any]) -> list[bool]:
    """Of each picture of a batch, whether its sample has no other."""
    counts = batch.get("batch_num_images")
    if counts is None:
        return [True] * len(batch["image_sizes"])
    return [count == 1 for count in _list(counts) for _ in range(count)]


def _list(values: Any) -> list[Any]:
    return list(values.tolist() if hasattr(values, "tolist") else values)


def pictures(config: Config) -> Visual:
    """Pictures by what their processor says of them: sizes before anything was done to them, and how many a sample has."""

    def layouts(batch: Mapping[str, Any]) -> Iterator[tuple[Grid, ...]]:
        if batch.get("image_sizes") is not None:
            for size, alone in zip(_list(batch["image_sizes"]), _alone(batch), strict=True):
                yield grids_of_picture(config, size, alone)

    def shares(pixels: Any, batch: Mapping[str, Any], counts: Sequence[int]) -> list[Any]:
        """Tiles without those that fill up a batch."""
        tiles = [pixels[place, : _tiles(config, size, alone)] for place, (size, alone) in
                 enumerate(zip(_list(batch["image_sizes"]), _alone(batch), strict=True))]  # fmt: skip
        return _by_samples(tiles, [sum(grid.tokens for grid in layout) for layout in layouts(batch)], counts)

    return Visual(
        int(parsed(config).image_token_id), "pixel_values", lambda batch: (grid for grids in layouts(batch) for grid in grids), shares
    )


def _tiles(config: Config, size: Sequence[int], alone: bool) -> int:
    """Tiles of one picture, the whole among them."""
    return 1 + prod(tiling(config, size).tiles) if alone else 1


def _by_samples(tiles: Sequence[Any], lengths: Sequence[int], counts: Sequence[int]) -> list[Any]:
    """The tiles of the pictures whose visual tokens fill up each sample's."""
    import torch

    found, place = [], 0
    for count in counts:
        first = place
        while count > 0:
            count -= lengths[place]
            place += 1
        found.append(torch.cat([part.flatten() for part in tiles[first:place]]) if place > first else torch.zeros(0))
    return found


def _black(config: Config, grids: Sequence[Grid], count: int) -> dict[str, Any]:
    """One picture a sample, in the size that has these grids."""
    import torch

    vision = parsed(config).vision_config
    size = size_of(config, grids)
    pixels = torch.zeros(count, _tiles(config, size, True), 3, vision.image_size, vision.image_size)
    return {"pixel_values": pixels, "image_sizes": torch.tensor([size] * count)}


def size_of(config: Config, grids: Sequence[Grid]) -> tuple[int, int]:
    """Height and width of a picture with these grids. Raises YopoError if there is none: its tiles cannot be laid out so."""
    patch, large = parsed(config).vision_config.patch_size, grids[-1]
    size = large.rows * patch, (large.columns - 1) * patch
    if min(size) < 1 or grids_of_picture(config, size) != tuple(grids):
        raise YopoError(f"No picture of this model has the grids {' + '.join(map(str, grids))}.", "Its resolutions are in config.json.")
    return size


LLAVA_NEXT = replace(
    LLAVA,
    name="LLaVA-NeXT",
    model_type="llava_next",
    architecture="LlavaNextForConditionalGeneration",
    yopo_model_type="yopo_llava_next",
    yopo_architecture="YopoLlavaNextForConditionalGeneration",
    yopo_config="YopoLlavaNextConfig",
    recognises=_recognises,
    renamings=(renaming(r"(?:model\.)?image_newline$", "model.image_newline"), *LLAVA.renamings),
    sizes=sizes,
    grid=tile,
    image_token=lambda config: int(parsed(config).image_token_id),
    picture=_picture,
    kinds=lambda config: (pictures(config),),
    black=_black,
    packages=(),
)
