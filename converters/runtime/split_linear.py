"""A linear layer in two contiguous parts: what visual tokens use, and the rest.

Row slices of a matrix are contiguous as they are. Column slices are not, and neither are the kept query heads of grouped KV
heads: these matrices are split once, when the model is first run. Outside the layer is what it was: `forward` and the state dict
speak the file's order, so a split model runs densely and saves like any other.
"""

from typing import Any

import torch
from torch import Tensor, nn

from .matmul import product


class SplitLinear(nn.Module):
    """`kept` and `rest` are the parts of `linear.weight` `[out, in]` along `dim` (0 rows, 1 columns) in the order `order`."""

    def __init__(self, linear: nn.Linear, order: tuple[int, ...], kept: int, dim: int) -> None:
        super().__init__()
        weight, bias = linear.weight, linear.bias
        self.dim, self.count, self.order = dim, kept, order
        trains = weight.requires_grad
        self.kept = nn.Parameter(self._take(weight, order[:kept]), requires_grad=trains)
        self.rest = nn.Parameter(self._take(weight, order[kept:]), requires_grad=trains)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=trains)
        self.register_state_dict_post_hook(_merge)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_split)  # type: ignore[no-untyped-call]

    def _take(self, weight: Tensor, places: tuple[int, ...]) -> Tensor:
        return weight.detach().index_select(self.dim, torch.tensor(places, dtype=torch.long, device=weight.device))

    @property
    def weight(self) -> Tensor:
        """The whole matrix in the file's order: a copy."""
        return self._merged(self.kept, self.rest)

    def _merged(self, kept: Tensor, rest: Tensor) -> Tensor:
        return torch.cat([kept, rest], self.dim).index_select(self.dim, self.places(kept.device))

    def places(self, device: torch.device) -> Tensor:
        """Where each of the file's rows or columns stands in kept | rest."""
        return torch.tensor(self.order, device=device).argsort()

    def biases(self) -> tuple[Tensor | None, Tensor | None]:
        """The bias of the kept and of the other rows; a matrix split by columns has one bias, which goes with the kept part."""
        if self.bias is None or self.dim == 1:
            return self.bias, None
        order = torch.tensor(self.order, device=self.bias.device)
        return self.bias[order[: self.count]], self.bias[order[self.count :]]

    def forward(self, rows: Tensor) -> Tensor:
        kept_bias, rest_bias = self.biases()
        if self.dim == 0:
            parts = [product(rows, self.kept, kept_bias), product(rows, self.rest, rest_bias)]
            return torch.cat(parts, -1)[..., self.places(rows.device)]
        kept, rest = self.parts(rows)
        return product(kept, self.kept, kept_bias) + product(rest, self.rest)

    def parts(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The columns of rows that go with the kept and with the other columns of the matrix."""
        if self.order != tuple(range(len(self.order))):
            rows = rows[..., torch.tensor(self.order, device=rows.device)]
        return rows[..., : self.count], rows[..., self.count :]


def _merge(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    assert isinstance(module, SplitLinear)
    state[prefix + "weight"] = module._merged(state.pop(prefix + "kept"), state.pop(prefix + "rest"))


def _split(module: nn.Module, state: dict[str, Any], prefix: str, *others: Any) -> None:
    assert isinstance(module, SplitLinear)
    if (weight := state.pop(prefix + "weight", None)) is not None:
        state[prefix + "kept"] = module._take(weight, module.order[: module.count])
        state[prefix + "rest"] = module._take(weight, module.order[module.count :])
