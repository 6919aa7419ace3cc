"""Refitted projections: weights of their own for K and V of visual tokens, into which a layer's refit is merged."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from .families import Family
from .planning.refit import Refit
from .runtime.layout import layouts
from .runtime.plan import Plan

if TYPE_CHECKING:
    from .checkpoint.reader import Checkpoint

PARTS = {"key": "self_attn.visual_k_proj", "value": "self_attn.visual_v_proj"}


def refitted_layers(plan: Plan, refits: Iterable[int]) -> tuple[int, ...]:
    """Those of the layers that hold visual tokens: in the others there is nothing to refit. The plan must be normalised."""
    held = layouts(plan)
    return tuple(index for index in sorted(refits) if held[index].held)


def refitted_shapes(family: Family, plan: Plan, layers: Iterable[int]) -> dict[str, tuple[int, ...]]:
    """Shapes of the projections of refitted layers, by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for index in layers:
        rows = layouts(plan)[index].held * plan.sizes.head_dim
        for name in PARTS.values():
            prefix = f"{family.text_prefix}layers.{index}.{name}"
            shapes |= {f"{prefix}.weight": (rows, plan.sizes.hidden_size), f"{prefix}.bias": (rows,)}
    return shapes


class Merging:
    """Makes the tensors of refitted layers, one when it is asked for. `dtypes` is safetensors' name of the dtype of each."""

    def __init__(self, checkpoint: "Checkpoint", plan: Plan, refits: Mapping[int, Refit]) -> None:
        self.checkpoint, self.refits, self.layouts = checkpoint, refits, layouts(plan)
        self.layers = refitted_layers(plan, refits)
        self.shapes = refitted_shapes(checkpoint.family, plan, self.layers)
        self._places = dict(zip(self.shapes, self._tensors(), strict=True))

    def _tensors(self) -> Iterator[tuple[int, str, str]]:
        for index in self.layers:
            for part in PARTS:
                yield from ((index, part, "weight"), (index, part, "bias"))

    def dtype(self, name: str) -> str:
        """That of the layer's own projection."""
        index, part, _ = self._places[name]
        return self.checkpoint.tensors[f"{self._own(index, part)}.weight"].dtype

    def tensor(self, name: str) -> Tensor:
        """Rows of the layer's own projection, in the file's order of KV heads, behind the map: `W (M x + b) = (W M) x + W b`."""
        index, part, ending = self._places[name]
        own, refit, rows = self._own(index, part), self.refits[index], self._rows(index, part)
        weight = self.checkpoint.read(f"{own}.weight")[rows]
        made = weight.float() @ (refit.matrix if ending == "weight" else refit.offset).cpu()
        if ending == "bias" and f"{own}.bias" in self.checkpoint.tensors:
            made = made + self.checkpoint.read(f"{own}.bias")[rows].float()
        return made.to(weight.dtype)

    def _own(self, index: int, part: str) -> str:
        family = self.checkpoint.family
        return f"{family.text_prefix}layers.{index}.{getattr(family.layer, part)}"

    def _rows(self, index: int, part: str) -> list[int]:
        sizes, layout = self.checkpoint.sizes, self.layouts[index]
        first, size = self.checkpoint.family.layer.rows(part, sizes).start, sizes.head_dim
        return [first + head * size + element for head in layout.kv_order[: layout.held] for element in range(size)]
