"""Qwen2-VL and InternVL through the runtime: grouped KV heads, biases, any grid, videos, tiles, fused projections."""

from typing import Any

import pytest
import torch
from random_plans import permuted, random_plan
from transformers import InternVLConfig, InternVLForConditionalGeneration, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from converters.families import Layer
from converters.reference import masked_logits
from converters.runtime.modeling_yopo_internvl import YopoInternVLConfig, YopoInternVLForConditionalGeneration
from converters.runtime.modeling_yopo_qwen2_vl import YopoQwen2VLConfig, YopoQwen2VLForConditionalGeneration
from converters.runtime.plan import Grid, Sizes

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


def tiny_qwen() -> Any:
    torch.manual_seed(0)
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
    config = Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": rope},
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2, "in_channels": 3, **PATCHES},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=60,
        vision_end_token_id=61,
    )
    return scattered(Qwen2VLForConditionalGeneration(config))


def qwen_inputs(*samples: list[tuple[int, int, int]], seed: int = 0) -> tuple[dict[str, torch.Tensor], list[list[Grid]]]:
    """A left-padded batch; each sample has text, then pictures (frames, rows, columns) with text after each. Frames > 1: a video."""
    torch.manual_seed(seed)
    rows, types, pictures = [], [], {1: [], 2: []}
    for number, sample in enumerate(samples):
        row, kind = list(range(4, 7 + number)), [0] * (3 + number)
        for frames, height, width in sample:
            modality = 2 if frames > 1 else 1
            pictures[modality].append((frames, 2 * height, 2 * width))
            count = frames * height * width
            row += [60, *[VIDEO if frames > 1 else IMAGE] * count, 61, 8, 9]
            kind += [0, *[modality] * count, 0, 0, 0]
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
    return inputs, [[Grid(height, columns, frames) for frames, height, columns in sample] for sample in samples]


QWEN_PROMPTS = {
    "one": [[(1, 3, 4)]],
    "batch of grids": [[(1, 3, 4)], [(1, 2, 2), (1, 4, 3)]],
    "video": [[(3, 2, 3)], [(1, 2, 2), (2, 3, 2)]],
    "text": [[], []],
}


def text_rows(model: Any, inputs: Any) -> torch.Tensor:
    return inputs["attention_mask"].bool() & (inputs["input_ids"] < 60)


@pytest.mark.parametrize("prompt", QWEN_PROMPTS)
@pytest.mark.parametrize("seed", range(3))
def test_qwen2_vl_is_the_masked_reference(prompt: str, seed: int) -> None:
    model = tiny_qwen()
    sizes = Sizes(64, 48, 3, 8, 2, 8)
    plan = random_plan(sizes, seed, (Grid(3, 4),))
    own = permuted(model, plan, YopoQwen2VLConfig, YopoQwen2VLForConditionalGeneration, Layer())
    inputs, grids = qwen_inputs(*QWEN_PROMPTS[prompt])
    rows = text_rows(model, inputs)
    limits = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": [60, 61, 62, 63]}
    with torch.inference_mode():
        logits = own(**inputs).logits[rows]
        torch.testing.assert_close(logits, masked_logits(model, inputs, plan, grids)[rows], atol=1e-4, rtol=0)
        assert own.generate(**inputs, **limits, eos_token_id=-1).equal(greedy(own, inputs, 5))
        with own.dense():
            torch.testing.assert_close(own(**inputs).logits[rows], model(**inputs).logits[rows], atol=1e-4, rtol=0)
            assert own.generate(**inputs, **limits).equal(model.generate(**inputs, **limits))


def greedy(model: Any, inputs: dict[str, torch.Tensor], steps: int) -> torch.Tensor:
    """Greedy tokens by whole forward calls, without a cache."""
    inputs = dict(inputs)
    for _ in range(steps):
        token = model(**inputs).logits[:, -1, :60].argmax(-1, keepdim=True)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], token], 1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(token)], 1)
        if "mm_token_type_ids" in inputs:
            inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(token)], 1)
    return inputs["input_ids"]


def tiny_internvl(text: str) -> Any:
    torch.manual_seed(0)
    kv_heads = 8 if text == "phi3" else 2
    config = InternVLConfig(
        text_config={"model_type": text, **TEXT, "num_key_value_heads": kv_heads},
        vision_config={
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": [32, 32], "patch_size": [4, 4],
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


@pytest.mark.parametrize("text", ["llama", "qwen2", "phi3"])
@pytest.mark.parametrize("tiles", [(1,), (3, 1), (0, 0)])
def test_internvl_is_the_masked_reference(text: str, tiles: tuple[int, ...]) -> None:
    model = tiny_internvl(text)
    kv_heads = 8 if text == "phi3" else 2
    fused = Layer("self_attn.qkv_proj", "self_attn.qkv_proj", "self_attn.qkv_proj", gate="mlp.gate_up_proj", up="mlp.gate_up_proj")
    inputs = internvl_inputs(*tiles)
    rows = text_rows(model, inputs)
    limits = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": [60, 61, 62, 63]}
    for seed in range(3):
        plan = random_plan(Sizes(64, 48, 3, 8, kv_heads, 8), seed + 10, (Grid(4, 4),))
        own = permuted(model, plan, YopoInternVLConfig, YopoInternVLForConditionalGeneration, fused if text == "phi3" else Layer())
        grids = [[Grid(4, 4)] * count for count in tiles]
        with torch.inference_mode():
            logits = own(**inputs).logits[rows]
            with own.dense():
                dense = own(**inputs).logits[rows]
                torch.testing.assert_close(dense, model(**inputs).logits[rows], atol=1e-4, rtol=0)
                assert own.generate(**inputs, **limits).equal(model.generate(**inputs, **limits))
            torch.testing.assert_close(logits, masked_logits(model, inputs, plan, grids)[rows], atol=1e-4, rtol=0)
            assert own.generate(**inputs, **limits, eos_token_id=-1).equal(greedy(own, inputs, 5))
