"""Tiny models with seeded random weights, built in memory: real architectures at sizes that can be checked by hand."""

from typing import Any

import torch
from transformers import BatchFeature, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

IMAGE_TOKEN = 63
PAD_TOKEN = 0
PATCH = 4


def tiny_llava(
    *,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int | None = None,
    hidden: int = 32,
    intermediate: int = 48,
    side: int = 4,
    attention_bias: bool = False,
    seed: int = 0,
    **text: Any,
) -> tuple[Any, LlavaConfig]:
    """A LLaVA in float32 with `side` x `side` visual tokens and a vocabulary of 64, in evaluation mode, and its config.

    Weights are large enough that attention is far from uniform.
    """
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=side * PATCH,
            patch_size=PATCH,
            projection_dim=16,
        ),
        text_config=LlamaConfig(
            vocab_size=64,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads or heads,
            max_position_embeddings=512,
            initializer_range=0.25,
            attention_bias=attention_bias,
            pad_token_id=PAD_TOKEN,
            bos_token_id=1,
            eos_token_id=2,
            **text,
        ),
        image_token_id=IMAGE_TOKEN,
        image_seq_length=side * side,
        vision_feature_layer=-2,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith(".bias"):  # not all ones and zeros, so that forgetting one shows
            torch.nn.init.normal_(parameter, mean=float("norm" in name and name.endswith("weight")), std=0.2)
    return model, config


def tiny_inputs(config: LlavaConfig, *prompts: tuple[int, int], images: int = 1, seed: int = 0) -> BatchFeature:
    """A left-padded batch: for each prompt, text tokens before, `images` images back to back, and text tokens after."""
    generator = torch.Generator().manual_seed(seed)
    side = config.vision_config.image_size
    rows = [_prompt(before, after, images * config.image_seq_length, generator) for before, after in prompts]
    width = max(map(len, rows))
    input_ids = torch.stack([torch.cat([torch.full((width - len(row),), PAD_TOKEN), row]) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    attention_mask = (torch.arange(width) >= width - lengths[:, None]).long()
    batch = {"input_ids": input_ids, "attention_mask": attention_mask}
    if images:
        batch["pixel_values"] = torch.randn(len(prompts) * images, 3, side, side, generator=generator)
    return BatchFeature(batch)


def _prompt(before: int, after: int, visual: int, generator: torch.Generator) -> torch.Tensor:
    text = torch.randint(3, IMAGE_TOKEN, (before + after,), generator=generator)
    return torch.cat([text[:before], torch.full((visual,), IMAGE_TOKEN), text[before:]])
