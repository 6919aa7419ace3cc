"""Refits: what a layer's frozen visual rows have to become so that its K and V are nearly those of the dense model."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Refit:
    """A layer's map of normalised visual rows to what the dense model's would be: `rows @ matrix.T + offset`.

    `matrix` `[hidden, hidden]` and `offset` `[hidden]` are float32.
    """

    matrix: Tensor
    offset: Tensor
