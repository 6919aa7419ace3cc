"""The cache of an exported decoder: one pair of tensors for each kind of KV heads of each layer."""

from collections.abc import Iterator
from dataclasses import dataclass

from ...runtime.attention import HeadKind
from .text import TextModel

PAST, PRESENT = "past_key_values", "present"
PAST_CODES, PRESENT_CODES = "past_key_codes", "present_key_codes"


@dataclass(frozen=True)
class Slot:
    """K and V `[batch, heads, keys, head_dim]` of one kind of KV heads of a layer; `number` counts slots over all layers."""

    number: int
    layer: int
    kind: HeadKind

    @property
    def heads(self) -> int:
        return len(self.kind.kv_heads)


def slots(model: TextModel) -> tuple[Slot, ...]:
    """All slots: by layer, kinds that hold most first."""
    return tuple(Slot(number, layer, kind) for number, (layer, kind) in enumerate(_kinds(model)))


def strides(model: TextModel) -> tuple[int, ...]:
    """What the slots hold of the visual tokens (`HeadKind.stride`), each once, ascending."""
    return tuple(sorted({slot.kind.stride for slot in slots(model)}))


def _kinds(model: TextModel) -> Iterator[tuple[int, HeadKind]]:
    for layer in range(model.sizes.num_hidden_layers):
        for kind in model.kinds(layer):
            yield layer, kind
