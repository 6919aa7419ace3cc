"""Linear layers whose weights are quantised: what visual rows go through is a quantised weight of its own.

A part has the whole's own numbers: outputs are views of it where the format lays them one after the other, inputs that visual tokens
keep are copied once, when they are first asked for. Text alone goes through the whole weight, as in the dense model. Libraries are
imported where a layer of theirs was found.
"""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from importlib import import_module
from math import gcd, lcm
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

Product = Callable[[Tensor], Tensor]
UNIT = 32
"""Parts begin and end at multiples, as kernels ask for: outputs beyond what is wanted are left out, inputs beyond it are zeros."""


class Format(Protocol):
    """How a kind of layer is cut at multiples of `units` outputs and inputs. `mark` changes where the layer's numbers do."""

    @staticmethod
    def mark(module: Any) -> Any: ...

    @staticmethod
    def units(module: Any) -> tuple[int, int]: ...

    @staticmethod
    def outputs(module: Any, first: int, last: int) -> Product: ...

    @staticmethod
    def inputs(module: Any, first: int, last: int) -> Product:
        """Without the bias."""


@dataclass
class Parts:
    """What was cut out of a layer, by what it is of, and the layer's mark then."""

    mark: Any
    products: dict[tuple[str, int, int], Product] = field(default_factory=dict)


CUT: "WeakKeyDictionary[Any, Parts]" = WeakKeyDictionary()


@dataclass(frozen=True)
class Quantised:
    """A linear layer with a quantised weight."""

    module: Any
    format: type[Format]

    def outputs(self, rows: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """Outputs `first` to `last` of `rows` `[rows, in]`."""
        width = self.module.out_features
        last = width if last is None else last
        if (first, last) == (0, width):
            return self._whole(rows)
        low, high = _around(first, last, self.format.units(self.module)[0], width)
        made: Tensor = self._part("outputs", low, high)(rows)
        return made if (low, high) == (first, last) else made[..., first - low : last - low]

    def inputs(self, rows: Tensor, first: int = 0, last: int | None = None, biased: bool = True) -> Tensor:
        """What `rows` `[rows, last - first]` add as inputs `first` to `last` to all outputs; with the bias, or without."""
        width = self.module.in_features
        last = width if last is None else last
        if (first, last) == (0, width):
            return self._whole(rows) if biased else self.rest(rows, first, last)
        low, high = _around(first, last, self.format.units(self.module)[1], width)
        result: Tensor = self._part("inputs", low, high)(_padded(rows, first - low, high - last))
        bias = _bias(self.module) if biased else None
        return result if bias is None else result + bias.to(result.dtype)

    def rest(self, rows: Tensor, first: int, last: int | None) -> Tensor:
        """The same of text alone, without the bias: through the whole weight, of which nothing is copied."""
        whole = self._whole(_padded(rows, first, 0 if last is None else self.module.in_features - last))
        bias = _bias(self.module)
        return whole if bias is None else whole - bias.to(whole.dtype)

    def add_inputs(self, total: Tensor, rows: Tensor, first: int, last: int | None, biased: bool) -> None:
        """`inputs`, added to `total` in place."""
        total.add_(self.inputs(rows, first, last, biased))

    def _whole(self, rows: Tensor) -> Tensor:
        whole: Tensor = self.module(rows)
        return whole

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _part(self, which: str, first: int, last: int) -> Product:
        """A part, cut now or before."""
        mark = self.format.mark(self.module)
        held = CUT.get(self.module)
        if held is None or held.mark != mark:
            held = CUT[self.module] = Parts(mark)
        if (which, first, last) not in held.products:
            with torch.inference_mode(False), torch.no_grad():
                held.products[which, first, last] = getattr(self.format, which)(self.module, first, last)
        return held.products[which, first, last]


def quantised(module: Any) -> Quantised | None:
    """A layer whose quantised weight can be cut, None for any other."""
    kind, place = type(module).__name__, type(module).__module__
    if place == "bitsandbytes.nn.modules":
        if kind in ("Linear4bit", "LinearNF4", "LinearFP4") and getattr(module.weight, "quant_state", None) is not None:
            return Quantised(module, FourBit)
        if kind == "Linear8bitLt" and not module.state.has_fp16_weights:
            return Quantised(module, EightBit)
    if place == "torch.ao.nn.quantized.dynamic.modules.linear" and kind == "Linear":
        dynamic: type[Format] = Dynamic if module._packed_params.dtype == torch.qint8 else AsItComputes
        return Quantised(module, dynamic)
    if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward and _of_torchao(module.weight):
        return Quantised(module, Blocks if _lies_plain(module.weight) else AsItComputes)
    return None


class AsItComputes:
    """Any format: what a layer makes of single inputs are its weight's columns, kept in the type that it computes in."""

    @staticmethod
    def mark(module: Any) -> Any:
        weight = module.weight
        return (id(weight), weight.device) if isinstance(weight, Tensor) else id(module._packed_params._packed_params)

    @staticmethod
    def units(module: Any) -> tuple[int, int]:
        return UNIT, UNIT

    @staticmethod
    def outputs(module: Any, first: int, last: int) -> Product:
        return _plain(_columns(module, 0, module.in_features)[first:last].contiguous(), _bias(module, first, last))

    @staticmethod
    def inputs(module: Any, first: int, last: int) -> Product:
        return _plain(_columns(module, first, last), None)


class Blocks:
    """torchao's formats that have a number for each weight, and scales for blocks of them."""

    @staticmethod
    def mark(module: Any) -> Any:
        return id(module.weight), module.weight.qdata.data_ptr()

    @staticmethod
    def units(module: Any) -> tuple[int, int]:
        weight = module.weight
        outputs, inputs = (1 if block in (size, -1) else block for block, size in zip(_blocks(weight), weight.shape, strict=True))
        return lcm(UNIT, outputs), lcm(UNIT, inputs)

    @staticmethod
    def outputs(module: Any, first: int, last: int) -> Product:
        return _plain(_cut_blocks(module.weight, 0, first, last), _bias(module, first, last))

    @staticmethod
    def inputs(module: Any, first: int, last: int) -> Product:
        return _plain(_cut_blocks(module.weight, 1, first, last), None)


class FourBit:
    """bitsandbytes' 4 bits: blocks of neighbours share a scale, row after row, or in the order of its kernel for some processors."""

    @staticmethod
    def mark(module: Any) -> Any:
        packs = module.weight.device.type == "cpu" and module.support_avx512bf16_for_cpu and not module.training
        if packs and not _packed(module.weight.quant_state):
            with torch.no_grad():
                module(torch.zeros(1, module.in_features))  # from its first call on a layer is in that order
        return id(module.weight), module.weight.data_ptr(), module.compute_dtype

    @staticmethod
    def units(module: Any) -> tuple[int, int]:
        size, inner = module.weight.quant_state.blocksize, module.in_features
        return lcm(UNIT, size // gcd(size, inner)), lcm(UNIT, gcd(size, inner))

    @staticmethod
    def outputs(module: Any, first: int, last: int) -> Product:
        (data, state), inner = _four_bits(module), module.in_features
        if _packed(state):
            return _four_bit(module, data[first:last], _with(state, state.absmax[:, first:last].contiguous(), (last - first, inner)), first)
        scales = state.absmax[first * inner // state.blocksize : last * inner // state.blocksize]
        part = data.view(-1)[first * inner // 2 : last * inner // 2, None]
        return _four_bit(module, part, _with(state, scales, (last - first, inner)), first)

    @staticmethod
    def inputs(module: Any, first: int, last: int) -> Product:
        (data, state), (outer, inner) = _four_bits(module), (module.out_features, module.in_features)
        shape, block = (outer, last - first), gcd(state.blocksize, inner)
        if _packed(state):
            part = data.view(outer // 32, inner // 2, 32)[:, first // 2 : last // 2].reshape(outer, -1)
            scales = state.absmax[first // state.blocksize : last // state.blocksize].contiguous()
            return _four_bit(module, part, _with(state, scales, shape), None)
        if block < 32:  # smaller than its kernels take
            return AsItComputes.inputs(module, first, last)
        scales = state.absmax.repeat_interleave(state.blocksize // block)[: outer * inner // block].view(outer, -1)
        part = data.view(outer, inner // 2)[:, first // 2 : last // 2].reshape(-1, 1)
        state = _with(state, scales[:, first // block : last // block].flatten(), shape)
        state.blocksize = block
        return _four_bit(module, part, state, None)


class EightBit:
    """bitsandbytes' 8 bits: a scale for each output."""

    @staticmethod
    def mark(module: Any) -> Any:
        return id(module.weight), _integers(module)[0].data_ptr(), module.training

    @staticmethod
    def units(module: Any) -> tuple[int, int]:
        return UNIT, UNIT

    @staticmethod
    def outputs(module: Any, first: int, last: int) -> Product:
        integers, scales = _integers(module)
        return _eight_bit(module, integers[first:last], scales[first:last], _bias(module, first, last))

    @staticmethod
    def inputs(module: Any, first: int, last: int) -> Product:
        integers, scales = _integers(module)
        return _eight_bit(module, integers[:, first:last].contiguous(), scales, None)


class Dynamic:
    """PyTorch's own 8 bits, with rows rounded as they come."""

    @staticmethod
    def mark(module: Any) -> Any:
        return AsItComputes.mark(module)

    @staticmethod
    def units(module: Any) -> tuple[int, int]:
        return UNIT, UNIT

    @staticmethod
    def outputs(module: Any, first: int, last: int) -> Product:
        weight, bias = module._weight_bias()
        return _dynamic(weight, weight.int_repr()[first:last], slice(first, last), None if bias is None else bias[first:last])

    @staticmethod
    def inputs(module: Any, first: int, last: int) -> Product:
        weight, _ = module._weight_bias()
        return _dynamic(weight, weight.int_repr()[:, first:last], slice(None), None)


def _around(first: int, last: int, unit: int, width: int) -> tuple[int, int]:
    """The least part between multiples of a unit, or up to the end, that has another in it."""
    return first // unit * unit, min(-(-last // unit) * unit, width)


def _padded(rows: Tensor, before: int, after: int) -> Tensor:
    return functional.pad(rows, (before, after)) if before or after else rows


def _bias(module: Any, first: int = 0, last: int | None = None) -> Tensor | None:
    bias = module.bias() if callable(module.bias) else module.bias
    return None if bias is None else bias.detach()[first:last]


def _plain(weight: Tensor, bias: Tensor | None) -> Product:
    def product(rows: Tensor) -> Tensor:
        same = weight if _of_torchao(weight) else weight.to(rows.dtype)
        return functional.linear(rows, same, None if bias is None else bias.to(rows.dtype))

    return product


def _columns(module: Any, first: int, last: int) -> Tensor:
    """Columns `first` to `last` of a layer's weight, `[out, last - first]`."""
    weight = module.weight
    real = isinstance(weight, Tensor) and weight.is_floating_point()
    dtype, device = (weight.dtype, weight.device) if real else (torch.float32, getattr(weight, "device", None))
    nothing = torch.zeros(1, module.in_features, dtype=dtype, device=device)
    single = torch.eye(module.in_features, dtype=dtype, device=device)[first:last]
    columns: Tensor = (module(single) - module(nothing)).t().contiguous()
    return columns


def _of_torchao(weight: Any) -> bool:
    return isinstance(weight, Tensor) and type(weight).__module__.startswith("torchao")


def _lies_plain(weight: Any) -> bool:
    """Whether a tensor of torchao has one number for each weight, in its place, and nothing that goes with inputs besides."""
    numbers = getattr(weight, "qdata", None)
    plain = isinstance(numbers, Tensor) and numbers.shape == weight.shape and getattr(weight, "block_size", None) is not None
    return plain and getattr(weight, "act_pre_scale", None) is None


def _blocks(weight: Any) -> tuple[int, ...]:
    return tuple(weight.block_size) or tuple(weight.shape)


def _cut_blocks(weight: Any, dim: int, first: int, last: int) -> Tensor:
    """Rows or columns of a tensor of torchao: its numbers, and the scales of the blocks that they are in."""
    size, (names, context), parts = weight.shape[dim], weight.__tensor_flatten__(), {}
    for name in names:
        tensor = getattr(weight, name)
        if tensor.dim() == 2 and tensor.shape[dim] > 1:
            block = size // tensor.shape[dim]
            tensor = tensor.narrow(dim, first // block, -(-last // block) - first // block)
        parts[name] = tensor.contiguous()
    if context.get("block_size"):
        block = min(context["block_size"][dim], last - first)
        context = {**context, "block_size": [block if place == dim else one for place, one in enumerate(context["block_size"])]}
    cut: Tensor = type(weight).__tensor_unflatten__(parts, context, None, None)
    return cut


def _packed(state: Any) -> bool:
    return bool(getattr(state, "packing_format_for_cpu", False))


def _four_bits(module: Any) -> tuple[Tensor, Any]:
    """The bytes of a layer, and its state with scales that are no longer quantised themselves."""
    data, state = module.weight.data.as_subclass(Tensor), module.weight.quant_state
    if not state.nested:
        return data.contiguous().view(torch.uint8), state
    scales = import_module("bitsandbytes").functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    return data.contiguous().view(torch.uint8), _with(state, scales.float(), state.shape)


def _with(state: Any, scales: Tensor, shape: Any) -> Any:
    """A copy of a state with other scales, for a weight of this shape."""
    other = copy(state)
    other.absmax, other.shape, other.nested, other.state2, other.offset = scales, torch.Size(shape), False, None, None
    return other


def _four_bit(module: Any, data: Tensor, state: Any, first: int | None) -> Product:
    """Rows through 4 bits; with the bias of the outputs from `first` on, or without one."""
    matmul, asked = import_module("bitsandbytes").matmul_4bit, module.compute_dtype
    bias = None if first is None else _bias(module, first, first + state.shape[0])

    def product(rows: Tensor) -> Tensor:
        dtype = asked or rows.dtype
        made: Tensor = matmul(rows.to(dtype), data, bias=None if bias is None else bias.to(dtype), quant_state=state)
        return made.to(rows.dtype)

    return product


def _integers(module: Any) -> tuple[Tensor, Tensor]:
    """The integers of a layer of bitsandbytes and their scales, before and after its first call."""
    held = module.weight if module.weight.CB is not None else module.state
    return held.CB.as_subclass(Tensor), held.SCB


def _eight_bit(module: Any, integers: Tensor, scales: Tensor, bias: Tensor | None) -> Product:
    library, whole = import_module("bitsandbytes"), module.state
    state = library.MatmulLtState()
    state.CB, state.SCB, state.has_fp16_weights = integers, scales, False
    state.threshold, state.use_pool, state.is_training = whole.threshold, whole.use_pool, module.training

    def product(rows: Tensor) -> Tensor:
        made: Tensor = library.matmul(rows, integers, bias=None if bias is None else bias.to(rows.dtype), state=state)
        return made

    return product


def _dynamic(weight: Tensor, integers: Tensor, outputs: slice, bias: Tensor | None) -> Product:
    """A product with part of the integers of a quantised tensor, all of these outputs'."""
    if weight.qscheme() == torch.per_channel_affine:
        scales, zeros = weight.q_per_channel_scales()[outputs], weight.q_per_channel_zero_points()[outputs]
        part = torch._make_per_channel_quantized_tensor(integers.contiguous(), scales, zeros, 0)
    else:
        part = torch._make_per_tensor_quantized_tensor(integers.contiguous(), weight.q_scale(), weight.q_zero_point())
    packed = torch.ops.quantized.linear_prepack(part, bias)

    def product(rows: Tensor) -> Tensor:
        made: Tensor = torch.ops.quantized.linear_dynamic(rows, packed, reduce_range=True)
        return made.to(rows.dtype)

    return product
