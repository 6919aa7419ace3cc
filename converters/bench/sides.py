"""What is timed against each other: the dense model, plans, and token pruners, behind one shape."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..baselines.forward import advance, prefill, prompt, whole
from ..baselines.pictures import BY_CLASS_TOKEN, Tower, entered
from ..baselines.schedule import Schedule
from ..runtime.outputs import CACHE
from .models import Prompt


@dataclass(frozen=True)
class BenchmarkSide:
    """`prefill()` reads the prompt with the picture's features given, `answer()` with the vision tower; both give a state.

    `step(state, token)` reads one more token `[batch, 1]` in place; `kv_bytes(state)` are those of K and V.
    """

    name: str
    prefill: Callable[[], Any]
    answer: Callable[[], Any]
    step: Callable[[Any, Tensor], None]
    kv_bytes: Callable[[Any], int]


class PerPicture(tuple[Tensor, ...]):
    """Features of each picture or tile; some models look for one tensor of all."""

    def to(self, *arguments: Any) -> Tensor:
        return torch.stack(tuple(self)).to(*arguments)


def model_side(name: str, model: Any, given: Prompt, compiled: bool = False) -> BenchmarkSide:
    """A whole model end to end through its `forward`; logits of the last token alone. Prefills run under torch.compile if `compiled`."""
    runs = model

    pictures = _per_picture(given)

    def read(**picture: Any) -> Any:
        return runs(input_ids=given.ids, use_cache=True, logits_to_keep=1, **given.places, **picture)

    def prefill() -> Any:
        encoded: Any = BaseModelOutputWithPooling(pooler_output=pictures)
        if deepstack := getattr(model.config.vision_config, "deepstack_visual_indexes", ()):
            encoded.deepstack_features = [pictures] * len(deepstack)  # any numbers of their shape
        return read(mm_encoder_outputs={"image": encoded})

    def step(state: Any, token: Tensor) -> None:
        model(input_ids=token, use_cache=True, logits_to_keep=1, **{CACHE: state[CACHE]})

    def kv_bytes(state: Any) -> int:
        return sum(_layer_bytes(layer) for layer in state[CACHE].layers)

    if compiled:
        prefill()  # what is chosen by measurement is chosen before a compiler looks
        runs = torch.compile(model, dynamic=False)
        prefill()
    return BenchmarkSide(name, prefill, lambda: read(pixel_values=given.pixels), step, kv_bytes)


def _per_picture(given: Prompt) -> PerPicture:
    return PerPicture(given.features.unflatten(1, (given.pictures, -1)).flatten(0, 1))


def _layer_bytes(layer: Any) -> int:
    return int(layer.nbytes) if hasattr(layer, "rectangles") else layer.keys.nbytes + layer.values.nbytes


def pruner_side(dense: Any, schedule: Schedule, given: Prompt, seed: int = 0) -> BenchmarkSide:
    """A token pruner over the dense model, its choice of tokens included. What goes by the vision tower sees a random one."""
    tower = _random_tower(dense, given, seed) if schedule.method in BY_CLASS_TOKEN else None
    asked = {"input_ids": given.ids, **given.places}

    def read() -> Any:
        encoded = {"image": BaseModelOutputWithPooling(pooler_output=_per_picture(given))}
        return prefill(dense, entered(dense, whole(dense, asked, mm_encoder_outputs=encoded), schedule, seed, tower), schedule)

    def answer() -> Any:
        return prefill(dense, prompt(dense, asked | {"pixel_values": given.pixels}, schedule, seed), schedule)

    return BenchmarkSide(
        schedule.method, read, answer, lambda state, token: advance(dense, state, token[:, 0]), lambda state: int(state.nbytes)
    )


def _random_tower(dense: Any, given: Prompt, seed: int) -> Tower:
    config = dense.config.vision_config
    batch, tokens = len(given.features) * len(given.grids), given.grids[0].tokens
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(batch, 1 + tokens, config.hidden_size, generator=generator)
    attention = torch.rand(batch, config.num_attention_heads, tokens, generator=generator)
    keys = torch.randn(batch, 1 + tokens, config.hidden_size // config.num_attention_heads, generator=generator)
    return Tower(hidden.to(dense.device, dense.dtype), attention.to(dense.device), keys.to(dense.device, dense.dtype))
