"""Projections that visual rows alone go through: those that the file has for them, and copies of what they share with text.

An engine fuses, packs and quantises the weights that text goes through, so that no part of them can be taken out later. The copies are
made while a checkpoint is read, and stay in its number format.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..checkpoint.visual_projections import INNER, PARTS
from ..errors import YopoError
from ..families import Layer
from ..runtime.plan import Sizes
from .work import LayerWork

LAYER = Layer()
"""Names of a decoder layer whose projections are not fused."""
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
EIGHT_BITS = (torch.int8, torch.float8_e4m3fn)
UNREAD = ("weight_zero_point", "weight_g_idx", "qweight")
OF_QUANTISED = ("weight_packed", "weight_scale", "weight_shape")
WHOLE = ({"weight", "weight_scale"}, {"weight_packed", "weight_scale", "weight_shape"})
"""Tensors of a quantised weight (compressed-tensors', without zero points) of which copies are made, in the model's own type."""


@dataclass(frozen=True)
class ProjectionSource:
    """A layer's module in the file, of whose weight a projection takes these rows (of the bias as well) or these columns; None: all."""

    module: str
    rows: tuple[int, ...] | None = None
    columns: tuple[int, ...] | None = None

    def weight(self, tensor: Tensor) -> Tensor:
        if self.rows is not None:
            return tensor.index_select(0, torch.tensor(self.rows, device=tensor.device))
        return tensor if self.columns is None else tensor.index_select(1, torch.tensor(self.columns, device=tensor.device))

    def bias(self, tensor: Tensor) -> Tensor:
        return tensor if self.rows is None else tensor.index_select(0, torch.tensor(self.rows, device=tensor.device))


def sources(work: LayerWork, head_dim: int, names: Layer = LAYER) -> dict[str, tuple[ProjectionSource, ...]]:
    """What each projection of a layer's visual rows is made of, its parts from top to bottom. None of what they do as text does."""
    by_name: dict[str, tuple[ProjectionSource, ...]] = {}
    if work.parts and not work.dense_attention:
        by_name |= _attention_sources(work, head_dim, names)
    if work.computing and not work.computes_all:
        by_name["output"] = (ProjectionSource(names.output, columns=_elements(work.computing, head_dim)),)
    if work.neurons and not work.all_neurons:
        kept = tuple(range(work.neurons))
        by_name |= {
            "gate_up": (ProjectionSource(names.gate, kept), ProjectionSource(names.up, kept)),
            "down": (ProjectionSource(names.down, columns=kept),),
        }
    return by_name


def _attention_sources(work: LayerWork, head_dim: int, names: Layer) -> dict[str, tuple[ProjectionSource, ...]]:
    sources: dict[str, tuple[ProjectionSource, ...]]
    if work.refitted:
        sources = {"key": (ProjectionSource(PARTS["key"]),), "value": (ProjectionSource(PARTS["value"]),)}
    else:
        rows = _elements(range(work.visual_kv_heads), head_dim)
        sources = {"key": (ProjectionSource(names.key, rows),), "value": (ProjectionSource(names.value, rows),)}
    if work.rank is not None:
        sources["inner"] = (ProjectionSource(INNER),)
    if work.computing:
        query = (
            ProjectionSource(PARTS["query"])
            if work.rank is not None
            else ProjectionSource(names.query, _elements(work.computing, head_dim))
        )
        sources["query"] = (query,)
    return sources


def _elements(heads: Iterable[int], head_dim: int) -> tuple[int, ...]:
    return tuple(head * head_dim + element for head in heads for element in range(head_dim))


def shapes(work: LayerWork, sizes: Sizes, names: Layer = LAYER) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of each of these projections."""
    inner = work.rank or sizes.hidden_size
    key, computed = work.visual_kv_heads * sizes.head_dim, len(work.computing) * sizes.head_dim
    every = {
        "inner": (inner, sizes.hidden_size),
        "key": (key, inner),
        "value": (key, inner),
        "query": (computed, inner if work.rank is not None else sizes.hidden_size),
        "output": (sizes.hidden_size, computed),
        "gate_up": (2 * work.neurons, sizes.hidden_size),
        "down": (sizes.hidden_size, work.neurons),
    }
    return {name: every[name] for name in sources(work, sizes.head_dim, names)}


class VisualProjection(nn.Linear):
    """`multiply` is how an engine computes the product of rows, weight and bias; its weight may be empty once that is another's."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.requires_grad_(False)
        self.weight.zero_()
        self.bias.zero_()
        self.multiply: Callable[[Tensor, Tensor, Tensor], Tensor] = linear

    def forward(self, rows: Tensor) -> Tensor:
        return self.multiply(rows, self.weight, self.bias) if len(rows) else rows.new_empty(0, self.out_features)

    def some(self, rows: Tensor, outputs: slice) -> Tensor:
        """Some of the outputs."""
        if outputs == slice(0, self.out_features):
            all_of_them: Tensor = self(rows)
            return all_of_them
        return linear(rows, self.weight[outputs], self.bias[outputs])


class VisualProjections(nn.Module):
    """The projections of one layer's visual rows, zeros until they are read; a bias that the file lacks stays zero."""

    inner: VisualProjection
    key: VisualProjection
    value: VisualProjection
    query: VisualProjection
    output: VisualProjection
    gate_up: VisualProjection
    down: VisualProjection

    def __init__(self, work: LayerWork, sizes: Sizes, names: Layer = LAYER) -> None:
        super().__init__()
        self.parts = work.parts
        for name, (outputs, inputs) in shapes(work, sizes, names).items():
            self.add_module(name, VisualProjection(inputs, outputs))

    def taken_whole(self) -> Iterator[VisualProjection]:
        """Those of which never some outputs alone are asked for."""
        for name, projection in self.named_children():
            assert isinstance(projection, VisualProjection)
            if name not in ("key", "value") or (len(self.parts) == 1 and self.parts[0].first == 0):
                yield projection


class Reading:
    """Fills the visual projections of all layers from a checkpoint's tensors as they go by."""

    def __init__(
        self, projections: Mapping[int, VisualProjections], works: tuple[LayerWork, ...], head_dim: int, prefix: str, names: Layer = LAYER
    ) -> None:  # fmt: skip
        self._wanted: dict[str, list[tuple[Tensor, ProjectionSource, bool]]] = {}
        self._missing: set[str] = set()
        self._pieces: dict[str, dict[str, Tensor]] = {}
        for index, layer in projections.items():
            for name, parts in sources(works[index], head_dim, names).items():
                own = layer.get_submodule(name)
                assert isinstance(own, VisualProjection)
                first = 0
                for part in parts:
                    rows = slice(first, first + len(part.rows)) if part.rows is not None else slice(None)
                    first = rows.stop or 0
                    self._want(f"{prefix}layers.{index}.{part.module}", part, own.weight.data[rows], own.bias.data[rows])

    def _want(self, module: str, part: ProjectionSource, weight: Tensor, bias: Tensor) -> None:
        self._missing.add(f"{module}.weight")
        self._wanted.setdefault(f"{module}.weight", []).append((weight, part, False))
        self._wanted.setdefault(f"{module}.bias", []).append((bias, part, True))

    def through(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The tensors of the file by name, without those that are for visual rows alone. Raises YopoError where one was not there."""
        for name, tensor in weights:
            self._read(name, tensor)
            if ".visual_" not in name:
                yield name, tensor
        if self._missing:
            raise _absent(min(self._missing), "which is not in the checkpoint")

    def _read(self, name: str, tensor: Tensor) -> None:
        module, _, kind = name.rpartition(".")
        if f"{module}.weight" in self._wanted and kind in UNREAD:
            raise _absent(f"{module}.weight", f"which has a {kind}")
        if f"{module}.weight" in self._wanted and (kind in OF_QUANTISED or (kind == "weight" and tensor.dtype not in FLOATS)):
            pieces = self._pieces.setdefault(module, {})
            pieces[kind] = tensor
            if not any(whole <= pieces.keys() for whole in WHOLE):
                return
            name, tensor = f"{module}.weight", _multiplied_out(module, self._pieces.pop(module))
        for target, part, bias in self._wanted.get(name, ()):
            target.copy_(part.bias(tensor) if bias else part.weight(tensor))
        self._missing.discard(name)


def _multiplied_out(module: str, pieces: dict[str, Tensor]) -> Tensor:
    """A weight `[out, in]` of compressed-tensors, with scales `[out, groups]` or one for all."""
    scale = pieces["weight_scale"].float()
    if "weight" in pieces:
        whole = pieces["weight"]
        if whole.dtype not in EIGHT_BITS or scale.numel() not in (1, len(whole)):
            raise _absent(f"{module}.weight", f"which is {whole.dtype} with scales {list(scale.shape)}")
        whole = whole.float() * scale.reshape(-1, 1)
        return whole
    packed, inputs = pieces["weight_packed"], int(pieces["weight_shape"][1])
    bits = next((bits for bits in (4, 8) if -(-inputs * bits // 32) == packed.shape[1]), None)
    if bits is None:
        raise _absent(f"{module}.weight", f"whose {inputs} inputs are packed into {packed.shape[1]} numbers")
    numbers: Tensor = _unpacked(packed, bits)[:, :inputs].float().unflatten(1, (scale.shape[1], -1))
    return (numbers * scale[..., None]).flatten(1)


def _unpacked(packed: Tensor, bits: int) -> Tensor:
    """Whole numbers from those of 32 bits that they are packed into, the first in the lowest bits, by 2 ** (bits - 1) too great."""
    places = torch.arange(0, 32, bits, device=packed.device)
    numbers: Tensor = ((packed[..., None] >> places) & (2**bits - 1)).flatten(1)
    signed: Tensor = numbers - 2 ** (bits - 1)
    return signed


def _absent(name: str, why: str) -> YopoError:
    return YopoError(
        f"Visual tokens need {name}, {why}.",
        "Quantise text weights to int8, fp8 or int4 as compressed-tensors has them, without zero points; leave out visual_* projections.",
    )
