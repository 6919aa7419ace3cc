"""The memory that healing takes, told before a weight is loaded."""

from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from ..checkpoint.reader import Checkpoint
from ..errors import YopoError
from ..planning.cost import REFERENCE_TEXT_TOKENS, kv_cache_bytes
from ..runtime.layout import LayerLayout, layouts
from ..runtime.plan import Plan

FLOAT32 = 4
TRAINED_COPIES = 4  # of a tuned weight, in float32: itself, its gradient, Adam's two moments
LIBRARIES = 700_000_000  # torch, transformers and the process itself


@dataclass(frozen=True)
class Memory:
    """Bytes that one process takes: the frozen weights, what is tuned, and what a backward pass needs of the forward pass."""

    weights: int
    tuned: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.tuned + self.activations + LIBRARIES


def needed(checkpoint: Checkpoint, plan: Plan, element: int, micro: int, recomputing: bool, rank: int = 0) -> Memory:
    """An estimate for prompts of the plan's grids with the reference text; `element` bytes a number, `micro` samples at a time.

    `rank` is that of what is added to the language model's matrices, 0 where the projector alone learns.
    """
    tensors = checkpoint.stored
    sizes = {name: prod(info.shape) for name, info in tensors.items()}
    projector = sum(size for name, size in sizes.items() if name.startswith(checkpoint.family.projector))
    matrices = [
        info.shape for name, info in tensors.items() if name.startswith(f"{checkpoint.family.text_prefix}layers.") and len(info.shape) == 2
    ]
    tuned = projector + rank * sum(map(sum, matrices))
    by_layer = [micro * element * _values(layout, plan, index < plan.visual_depth) for index, layout in enumerate(layouts(plan))]
    entering = micro * element * plan.sizes.hidden_size * (REFERENCE_TEXT_TOKENS + plan.visual_tokens)
    activations = max(by_layer) + entering * len(by_layer) if recomputing else sum(by_layer) + entering
    dense = micro * kv_cache_bytes(plan, plan.grids, REFERENCE_TEXT_TOKENS, element)
    return Memory((sum(sizes.values()) - projector) * element, tuned * FLOAT32 * TRAINED_COPIES, activations + dense)


def _values(layout: LayerLayout, plan: Plan, seen: bool) -> int:
    """Numbers that one layer keeps of one sample: its norms' and products' inputs and outputs, as they are met in the forward pass.

    `seen`: visual tokens are still there.
    """
    sizes = plan.sizes
    heads, kv_heads = sizes.num_attention_heads * sizes.head_dim, sizes.num_key_value_heads * sizes.head_dim
    text = 12 * sizes.hidden_size + 4 * heads + 6 * kv_heads + 4 * sizes.intermediate_size
    projected = 4 * (layout.self_kv_heads + sum(layout.computes)) * sizes.head_dim + 4 * layout.neurons
    updated = 8 * sizes.hidden_size if layout.updates else 2 * sizes.hidden_size
    read = 6 * layout.read_only_kv_heads * sizes.head_dim // layout.read_stride + (layout.kv_rank or 0)
    visual = projected + updated + read if seen else 0
    return REFERENCE_TEXT_TOKENS * text + plan.visual_tokens * visual


def available(device: str) -> int | None:
    """Bytes that are free on a device: of this machine's memory, or of the GPU's; None where nothing tells."""
    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(device)
        return free
    if device.startswith("cpu"):
        import psutil

        return int(psutil.virtual_memory().available)
    return None


def check(memory: Memory, free: int | None, processes: int, where: str) -> None:
    """Raise YopoError where `processes` of these do not fit."""
    if free is not None and memory.total * processes > free:
        times = f"{processes} x " if processes > 1 else ""
        raise YopoError(
            f"Healing needs about {times}{memory.total / 1e9:.1f} GB ({text(memory)}); {where} has {free / 1e9:.1f} GB free.",
            "Try --dtype bfloat16, a smaller --micro-batch, --recompute, or a machine with more memory.",
        )


def text(memory: Memory) -> str:
    """The parts in words."""
    parts: dict[str, Any] = {"weights": memory.weights, "what is tuned": memory.tuned, "activations": memory.activations}
    return ", ".join(f"{name} {value / 1e9:.2f} GB" for name, value in parts.items())
