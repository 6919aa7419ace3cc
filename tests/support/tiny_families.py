"""Tiny models of the other families with seeded random weights, and inputs for them with their grids."""

from typing import Any

import torch
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
