"""What pruning could gain where most layers are gated linear attention (Qwen3.5): the arithmetic, and what frozen rows need not compute.

python benchmarks/linear_attention.py
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import Qwen3_5TextConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5TextModel

CHUNK = 64
VISUAL, LENGTH = slice(4, 24), 32


@dataclass(frozen=True)
class Linear:
    """A language model of which every fourth layer is full attention. Key and value widths are those of all heads."""

    name: str
    hidden: int
    layers: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    key_heads: int
    value_heads: int
    size: int = 128

    def full(self, frozen: bool) -> int:
        """FLOPs of one visual row in a layer of full attention; its attention itself, which is quadratic, is left out."""
        kv = 4 * self.hidden * self.kv_heads * self.head_dim
        return kv if frozen else kv + 6 * self.hidden * self.heads * self.head_dim + 6 * self.hidden * self.ffn

    def linear(self, frozen: bool, rank: int | None = None) -> int:
        """FLOPs of one visual row in a layer of linear attention; frozen, with k and v through `rank` dimensions."""
        key, value, heads = self.key_heads * self.size, self.value_heads * self.size, self.value_heads
        entering = key + value if frozen else 2 * key + value
        projected = 2 * self.hidden * entering if rank is None else 2 * rank * (self.hidden + entering)
        state = heads * (4 * self.size**2 + 2 * CHUNK * self.size + 2 * CHUNK * self.size)
        written = projected + 4 * self.hidden * heads + 8 * entering + state
        if frozen:
            return written
        read = heads * (2 * self.size**2 + 2 * CHUNK * self.size + 2 * CHUNK * self.size)
        return written + read + 4 * self.hidden * value + 6 * self.hidden * self.ffn

    def share(self, frozen: int, rank: int | None = None, leaving: float = 1.0) -> float:
        """Of the dense FLOPs, with the last `frozen` of every four layers frozen, and visual tokens there for a part of the depth."""
        kinds = [False, False, False, True]
        rows = [(self.full if full else self.linear)(index >= 4 - frozen) for index, full in enumerate(kinds)]
        if rank is not None and frozen == 4:
            rows = [self.full(True) if full else self.linear(True, rank) for full in kinds]
        return leaving * sum(rows) / sum((self.full if full else self.linear)(False) for full in kinds)


MODELS = (
    Linear("Qwen3.5-9B", 4096, 32, 12288, 16, 4, 256, 16, 32),
    Linear("Qwen3.5-27B", 5120, 64, 17408, 24, 4, 256, 16, 48),
)


def tiny() -> Qwen3_5TextModel:
    torch.manual_seed(0)
    config = Qwen3_5TextConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8, vocab_size=64,
        initializer_range=0.25,
    )  # fmt: skip
    return Qwen3_5TextModel(config).eval()


def frozen_text(model: Qwen3_5TextModel, rows: torch.Tensor, kept: int | None) -> torch.Tensor:
    """Text rows with visual ones frozen; of these, what they need not compute is zero: z, and q but of the `kept` last ones (None: all
    is computed)."""
    hooks = []
    for layer in model.layers:
        hooks.append(layer.register_forward_hook(lambda module, inputs, output: _frozen(inputs[0], output)))
        if kept is not None and hasattr(layer, "linear_attn"):
            hooks.append(layer.linear_attn.in_proj_z.register_forward_hook(lambda module, inputs, output: _without(output, 0, None)))
            queries = partial(_without, kept=kept, width=layer.linear_attn.key_dim)
            hooks.append(layer.linear_attn.in_proj_qkv.register_forward_hook(lambda module, inputs, output, part=queries: part(output)))
    with torch.inference_mode():
        found = model(inputs_embeds=rows, use_cache=False).last_hidden_state
    for hook in hooks:
        hook.remove()
    return torch.cat([found[:, : VISUAL.start], found[:, VISUAL.stop :]], 1)


def _frozen(before: torch.Tensor, output: Any) -> torch.Tensor:
    output = output.clone()
    output[:, VISUAL] = before[:, VISUAL]
    return output


def _without(output: torch.Tensor, kept: int, width: int | None) -> torch.Tensor:
    output = output.clone()
    output[:, VISUAL.start : VISUAL.stop - kept, :width] = 0
    return output


def main() -> None:
    print("| share of the dense visual FLOPs | " + " | ".join(model.name for model in MODELS) + " |\n|---|" + "---|" * len(MODELS))
    lines = {
        "one row of a linear layer, frozen": lambda model: model.linear(True) / model.linear(False),
        "one row of a full layer, frozen": lambda model: model.full(True) / model.full(False),
        "all layers frozen, all read": lambda model: model.share(4),
        "the same, K and V of linear layers through 512 dimensions": lambda model: model.share(4, 512),
        "the same, through 256": lambda model: model.share(4, 256),
        "all frozen, visual tokens leave after half of the layers": lambda model: model.share(4, leaving=0.5),
        "three of four layers frozen, one linear layer whole": lambda model: model.share(3),
    }
    for name, value in lines.items():
        print(f"| {name} | " + " | ".join(f"{100 * value(model):.1f} %" for model in MODELS) + " |")
    model, rows = tiny(), torch.randn(1, LENGTH, 32)
    whole = frozen_text(model, rows, None)
    reach = model.config.linear_conv_kernel_dim - 1
    for kept in (reach, reach - 1):
        difference = float((frozen_text(model, rows, kept) - whole).abs().max())
        print(f"z of no visual row, q of the last {kept}: text rows differ by at most {difference:g}")


if __name__ == "__main__":
    main()
