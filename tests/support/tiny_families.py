"""Tiny models of the other families with seeded random weights, and inputs for them with their grids."""

from typing import Any

import torch
from torch.nn.functional import pad
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, InternVLConfig, InternVLForConditionalGeneration

from converters.runtime.plan import Grid

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 512,
    "initializer_range": 0.25,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
IMAGE, VIDEO = 62, 63
PATCHES = {"patch_size": 4, "temporal_patch_size": 2, "spatial_merge_size": 2}


def scattered(model: Any) -> Any:
    """Norms and biases away from ones and zeros, so that forgetting one shows."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith(".bias"):
            torch.nn.init.normal_(parameter, mean=float("norm" in name and name.endswith("weight")), std=0.2)
    return model.eval()


TOWERS = {
    "qwen2_vl": {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2},
    # Windows of two by two merged patches, but for the second block.
    "qwen2_5_vl": {
        "hidden_size": 32,
        "out_hidden_size": 64,
        "intermediate_size": 48,
        "window_size": 16,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
    },
}
# Features of the first two blocks are added after the first two layers.
TOWERS["qwen3_vl"] = {
    "hidden_size": 32,
    "out_hidden_size": 64,
    "intermediate_size": 48,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0, 1],
}
DEPTHS = {"qwen2_vl": 1, "qwen2_5_vl": 2, "qwen3_vl": 3}
INTERLEAVED = {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True, "rope_theta": 10000.0}
ROPE = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}


def tiny_qwen(*, tied: bool = False, kind: str = "qwen2_vl") -> Any:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](
        text_config=TEXT | ({"head_dim": 16, "rope_parameters": INTERLEAVED} if kind == "qwen3_vl" else {"rope_parameters": ROPE}),
        vision_config={"depth": DEPTHS[kind], "num_heads": 2, "in_channels": 3, **PATCHES, **TOWERS[kind]},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=60,
        vision_end_token_id=61,
        tie_word_embeddings=tied,
    )
    return scattered(AutoModelForImageTextToText.from_config(config))


def qwen_inputs(
    *samples: list[tuple[int, int, int]], seed: int = 0, timed: bool = False
) -> tuple[dict[str, torch.Tensor], list[list[Grid]]]:
    """A left-padded batch; each sample has text, then pictures (frames, rows, columns) with text after each. Frames > 1: a video.

    If `timed`, every frame of a video stands alone, after the word for its time.
    """
    torch.manual_seed(seed)
    rows, types, pictures = [], [], {1: [], 2: []}
    for number, sample in enumerate(samples):
        row, kind = list(range(4, 7 + number)), [0] * (3 + number)
        for frames, height, width in sample:
            modality = 2 if frames > 1 else 1
            pictures[modality].append((frames, 2 * height, 2 * width))
            runs = frames if timed else 1
            for run in range(runs):
                times = [20 + run] if runs > 1 else []
                count = frames // runs * height * width
                row += [*times, 60, *[VIDEO if frames > 1 else IMAGE] * count, 61]
                kind += [*[0] * len(times), 0, *[modality] * count, 0]
            row += [8, 9]
            kind += [0, 0]
        rows.append([*row, 10, 11, 12])
        types.append([*kind, 0, 0, 0])
    width = max(map(len, rows))
    inputs = {
        "input_ids": torch.tensor([[0] * (width - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
        "mm_token_type_ids": torch.tensor([[0] * (width - len(kind)) + kind for kind in types]),
    }
    for modality, names in ((1, ("pixel_values", "image_grid_thw")), (2, ("pixel_values_videos", "video_grid_thw"))):
        if grids := pictures[modality]:
            patches = sum(frames * height * columns for frames, height, columns in grids)
            inputs[names[0]] = torch.randn(patches, 3 * 2 * 4 * 4)
            inputs[names[1]] = torch.tensor(grids)
    if timed:
        samples = tuple([(1, *area) for frames, *area in sample for _ in range(frames)] for sample in samples)
    return inputs, [[Grid(height, columns, frames) for frames, height, columns in sample] for sample in samples]


def tiny_internvl(text: str, *, vision: dict[str, Any] | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    kv_heads = 8 if text == "phi3" else 2
    wide = {"head_dim": 16} if text == "qwen3" else {}  # heads that together are wider than the rows
    config = InternVLConfig(
        text_config={"model_type": text, **TEXT, "num_key_value_heads": kv_heads, **wide, **options},
        vision_config={
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": [32, 32], "patch_size": [4, 4], **(vision or {}),
        },
        image_token_id=IMAGE,
        image_seq_length=16,
        tie_word_embeddings=False,
    )  # fmt: skip
    return scattered(InternVLForConditionalGeneration(config))


def internvl_inputs(*tiles: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    rows = [[*range(4, 7 + number), 60, *[IMAGE] * (16 * count), 61, 7, 8, 9] for number, count in enumerate(tiles)]
    width = max(map(len, rows))
    inputs = {
        "input_ids": torch.tensor([[0] * (width - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
    }
    return inputs | ({"pixel_values": torch.randn(sum(tiles), 3, 32, 32)} if sum(tiles) else {})


# Tiles of 16 pixels are 4 x 4 tokens; by height and width: tiles, and the grid without its ends of rows.
PICTURES = {
    (32, 32): (4, (8, 8)),
    (16, 32): (2, (4, 8)),
    (48, 16): (3, (12, 4)),
    (24, 32): (4, (6, 8)),  # the picture is 4 : 3, so of 8 rows one above and one below are padding
    (16, 16): (2, (4, 4)),  # no resolution is of one tile: half of two
    (48, 48): (9, (8, 8)),  # LLaVA-OneVision alone: nine tiles, shrunk to as many tokens as four have
}
RESOLUTIONS = [[16, 32], [32, 16], [32, 32], [48, 16], [16, 48]]
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}


def tiny_next(text: str = "llama", *, tied: bool = False) -> Any:
    """LLaVA-NeXT with Llama or Mistral, or LLaVA-OneVision with Qwen2, whose large pictures shrink to four tiles."""
    torch.manual_seed(0)
    onevision = text == "qwen2"
    more = {"image_grid_pinpoints": RESOLUTIONS}
    if onevision:
        more = {"image_grid_pinpoints": [*RESOLUTIONS, [48, 48]], "vision_aspect_ratio": "anyres_max_4", "video_token_index": VIDEO}
    tower = {"model_type": "siglip_vision_model", "vision_use_head": False} if onevision else {"model_type": "clip_vision_model"}
    config = CONFIG_MAPPING["llava_onevision" if onevision else "llava_next"](
        text_config={"model_type": text, "sliding_window": None, **TEXT, "tie_word_embeddings": tied},
        vision_config=TOWER | tower,
        image_token_index=IMAGE,
        tie_word_embeddings=tied,
        **more,
    )
    return scattered(AutoModelForImageTextToText.from_config(config))


def next_inputs(
    *samples: list[tuple[int, int] | int], seed: int = 0, counted: bool = False
) -> tuple[dict[str, torch.Tensor], list[list[Grid]]]:
    """A left-padded batch; each sample has text, then pictures of PICTURES by their size, or videos of so many frames.

    Pictures stand side by side. If they are `counted`, as LLaVA-OneVision does, those that are not alone in their sample are one tile.
    """
    torch.manual_seed(seed)
    rows, grids, tiles, sizes, numbers, videos = [], [], [], [], [], []
    for number, sample in enumerate(samples):
        row, found, pictures = list(range(4, 7 + number)), [], [one for one in sample if isinstance(one, tuple)]
        numbers += [len(pictures)] if pictures else []
        for one in sample:
            if isinstance(one, int):
                videos.append(torch.randn(one, 3, 16, 16))
                found += [Grid(2, 2, one), Grid(1, 1)]
                row += [VIDEO] * (4 * one + 1)
                continue
            count, (height, width) = PICTURES[one]
            single = counted and len(pictures) > 1
            found += [Grid(4, 4), Grid(1, 1) if single else Grid(height, width + 1)]
            tiles.append(torch.randn(1 if single else 1 + count, 3, 16, 16))
            sizes.append(one)
            row += [IMAGE] * (16 + (1 if single else height * (width + 1)))
        rows.append([*row, 8, 9, 10, 11])
        grids.append(found)
    length, most = max(map(len, rows)), max(map(len, tiles), default=0)
    inputs = {
        "input_ids": torch.tensor([[0] * (length - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows]),
    }
    if tiles:
        inputs["pixel_values"] = torch.stack([pad(one, (0, 0) * 3 + (0, most - len(one))) for one in tiles])
        inputs["image_sizes"] = torch.tensor(sizes)
    if tiles and counted:
        inputs["batch_num_images"] = torch.tensor(numbers)
    if videos:
        inputs["pixel_values_videos"] = torch.stack(videos)
    return inputs, grids


def tiny_smol(kind: str = "smolvlm") -> Any:
    """Tiles of 16 pixels: 8 x 8 patches, shuffled into 4 x 4 tokens."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](
        text_config={"model_type": "llama", **TEXT},
        vision_config=TOWER | {"patch_size": 2},
        image_token_id=IMAGE,
        scale_factor=2,
        tie_word_embeddings=False,
    )
    return scattered(AutoModelForImageTextToText.from_config(config))


def smol_inputs(*tiles: int) -> dict[str, torch.Tensor]:
    """A left-padded batch; each tile stands apart, between markers. Tiles of zeros fill up the batch."""
    torch.manual_seed(0)
    rows = [[*range(4, 7 + number), *([50, 51, *[IMAGE] * 16] * count), 50, 7, 8, 9] for number, count in enumerate(tiles)]
    width, most = max(map(len, rows)), max(tiles)
    pixels = [pad(torch.randn(count, 3, 16, 16), (0, 0) * 3 + (0, most - count)) for count in tiles]
    inputs = {
        "input_ids": torch.tensor([[0] * (width - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
    }
    return inputs | ({"pixel_values": torch.stack(pixels)} if most else {})
