"""One linear layer as rows go through it: whole, or through some of its outputs or inputs alone.

Visual rows go through parts of a layer's matrices, which are views. (Columns have gaps between them, which BLAS libraries take at no
cost; laid out column by column instead, a matrix is several times slower for the single row of a decoding step.) Parameters stay the
objects that they are: what is trained, edited or merged takes effect.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from .matmul import added, product
from .quantised import UNIT, Quantised, quantised

LORA = {
    ("peft.tuners.lora.layer", "Linear"),
    ("peft.tuners.lora.bnb", "Linear4bit"),
    ("peft.tuners.lora.bnb", "Linear8bitLt"),
    ("peft.tuners.lora.torchao", "TorchaoLoraLinear"),
}
"""The modules and names of the classes whose adapters are applied part by part."""
GROUP = 128
"""Inputs that share a scale in the widest format that is usual."""


def own_projection(inner: int, outer: int) -> nn.Linear:
    """A projection that visual tokens have for themselves.

    Of a kind that quantisers leave alone where a rank gives it a size that groups, blocks and kernels of quantised weights do not divide.
    """
    return NonDynamicallyQuantizableLinear(inner, outer) if inner % GROUP or outer % UNIT else nn.Linear(inner, outer)


@dataclass(frozen=True)
class Plain:
    """A weight `[out, in]` and a bias `[out]`, multiplied with as they are."""

    weight: Tensor
    bias: Tensor | None = None

    def outputs(self, rows: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """Outputs `first` to `last` of `rows` `[rows, in]`."""
        return product(rows, self.weight[first:last], None if self.bias is None else self.bias[first:last])

    def inputs(self, rows: Tensor, first: int = 0, last: int | None = None, biased: bool = True) -> Tensor:
        """What `rows` `[rows, last - first]` add as inputs `first` to `last` to all outputs; with the bias, or without."""
        return product(rows, self.weight[:, first:last], self.bias if biased else None)

    def rest(self, rows: Tensor, first: int, last: int | None) -> Tensor:
        """The same of text alone, without the bias: what no visual row goes through."""
        return self.inputs(rows, first, last, biased=False)

    def add_inputs(self, total: Tensor, rows: Tensor, first: int, last: int | None, biased: bool) -> None:
        """`inputs`, added to `total` in place."""
        added(total, rows, self.weight[:, first:last], self.bias if biased else None)


@dataclass(frozen=True)
class LowRankUpdate:
    """What a LoRA adapter adds to a linear layer: `down` `[rank, in]`, then `up` `[out, rank]`, times a scale."""

    down: Tensor
    up: Tensor
    scale: float
    dropout: Any

    def outputs(self, rows: Tensor, first: int, last: int | None) -> Tensor:
        return self._through(rows, self.down, self.up[first:last])

    def inputs(self, rows: Tensor, first: int, last: int | None) -> Tensor:
        return self._through(rows, self.down[:, first:last], self.up)

    def _through(self, rows: Tensor, down: Tensor, up: Tensor) -> Tensor:
        rows = self.dropout(rows.to(down.dtype))
        return functional.linear(functional.linear(rows, down), up) * self.scale


@dataclass(frozen=True)
class Adapted:
    """A layer with LoRA adapters, whose rows and columns go with those of the weight."""

    base: Plain | Quantised
    adapters: tuple[LowRankUpdate, ...]

    def outputs(self, rows: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        result = self.base.outputs(rows, first, last)
        return sum((adapter.outputs(rows, first, last) for adapter in self.adapters), result).to(result.dtype)

    def inputs(self, rows: Tensor, first: int = 0, last: int | None = None, biased: bool = True) -> Tensor:
        return self._with_adapters(self.base.inputs(rows, first, last, biased), rows, first, last)

    def rest(self, rows: Tensor, first: int, last: int | None) -> Tensor:
        return self._with_adapters(self.base.rest(rows, first, last), rows, first, last)

    def _with_adapters(self, result: Tensor, rows: Tensor, first: int, last: int | None) -> Tensor:
        return sum((adapter.inputs(rows, first, last) for adapter in self.adapters), result).to(result.dtype)

    def add_inputs(self, total: Tensor, rows: Tensor, first: int, last: int | None, biased: bool) -> None:
        total.add_(self.inputs(rows, first, last, biased))


@dataclass(frozen=True)
class Called:
    """Any other module in the place of a linear layer, or one with hooks: rows go through it in full, and what is asked for is taken.

    It has to be linear in its inputs (up to a bias), since those that a visual row lacks are zeros.
    """

    module: Any

    def outputs(self, rows: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        whole: Tensor = self.module(rows)
        return whole[..., first:last]

    def inputs(self, rows: Tensor, first: int = 0, last: int | None = None, biased: bool = True) -> Tensor:
        width = self.module.in_features
        whole: Tensor = self.module(functional.pad(rows, (first, 0 if last is None else width - last)))
        if biased:
            return whole
        biases: Tensor = self.module(rows.new_zeros(1, width))
        return whole - biases

    def rest(self, rows: Tensor, first: int, last: int | None) -> Tensor:
        return self.inputs(rows, first, last, biased=False)

    def add_inputs(self, total: Tensor, rows: Tensor, first: int, last: int | None, biased: bool) -> None:
        total.add_(self.inputs(rows, first, last, biased))


@dataclass(frozen=True)
class Part:
    """Outputs `first` to `last` of a layer that is called."""

    whole: Adapted | Called | Quantised
    first: int
    last: int

    def outputs(self, rows: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        return self.whole.outputs(rows, self.first + first, self.last if last is None else self.first + last)


Projection = Plain | Adapted | Called | Quantised


def projection(module: Any) -> Projection:
    """How rows go through a module: a linear layer, one with LoRA adapters, or anything that is called."""
    if has_hooks(module):
        return Called(module)
    if (type(module).__module__, type(module).__name__) in LORA and (base := _cuttable(module.base_layer)) is not None:
        adapters = _adapters(module)
        return Called(module) if adapters is None else Adapted(base, adapters) if adapters else base
    return _cuttable(module) or Called(module)


def part(whole: Projection, first: int, last: int) -> Plain | Part:
    """Outputs `first` to `last` of a fused layer, as a layer of their own without a copy."""
    if isinstance(whole, Plain):
        return Plain(whole.weight[first:last], None if whole.bias is None else whole.bias[first:last])
    return Part(whole, first, last)


def _cuttable(module: Any) -> Plain | Quantised | None:
    """A layer whose weight can be cut, None for any other."""
    if has_hooks(module):
        return None
    return Plain(module.weight, module.bias) if _is_plain(module) else quantised(module)


def _is_plain(module: Any) -> bool:
    """Whether a module is nothing but its weight and bias: no layer that overrides `forward`, no weight that is quantised."""
    if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward or has_hooks(module):
        return False
    return type(module.weight) in (nn.Parameter, nn.Buffer, Tensor)


def _adapters(module: Any) -> tuple[LowRankUpdate, ...] | None:
    """The active LoRA adapters of a layer of peft that are not merged into it; None where they are not of the plain kind."""
    if module.disable_adapters:
        return None
    if module.merged:
        return () if set(module.active_adapters) <= set(module.merged_adapters) else None
    adapters = []
    for name in module.active_adapters:
        if name not in module.lora_A:
            continue
        down, up = module.lora_A[name], module.lora_B[name]
        if name in getattr(module, "lora_variant", {}) or up.bias is not None or not (_is_plain(down) and _is_plain(up)):
            return None
        adapters.append(LowRankUpdate(down.weight, up.weight, module.scaling[name], module.lora_dropout[name]))
    return tuple(adapters)


def has_hooks(module: Any) -> bool:
    """Whether calling a module does more than its `forward`, or its `forward` is not its class's."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in module.__dict__
