"""Linear compensation: K and V of visual tokens from a linear map of what the pruned model has, closed form, forward only.

Under a plan visual tokens are hardly updated, so what a layer's K and V are made from is not what the dense model has there. Much of the
difference is predictable: by least squares of the dense model's normalised visual rows on the pruned model's, with an offset, shrunk
towards no change at all. Merged into copies of the K and V projections that visual rows alone use, it costs bytes and no FLOPs.

What visual rows are is of few dimensions, and what K and V take from them of fewer: where a plan has a rank, both come through so many
dimensions, those that carry the most of K and V over the samples, and cost less.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..processes import Processes
from ..runtime.plan import LayerPlan, Plan, ranges

RIDGE = 1e-3
"""Added to the pruned rows' correlations: directions in which they hardly vary, next to the others, stay as they are."""


ITERATIONS = 8
UPDATES = ("self_heads", "neurons", "window", "kv_rank")


@dataclass(frozen=True)
class LinearCompensation:
    """A layer's map of normalised visual rows to what the dense model's would be: `rows @ matrix.T + offset`.

    `matrix` `[hidden, hidden]` and `offset` `[hidden]`. With `inner`, weight `[rank, hidden]` and bias `[rank]` of a product that rows go
    through first, `matrix` is `[hidden, rank]`.
    """

    matrix: Tensor
    offset: Tensor
    inner: tuple[Tensor, Tensor] | None = None

    def __call__(self, rows: Tensor) -> Tensor:
        """Rows `[..., hidden]` after the map."""
        rows = rows if self.inner is None else rows @ self.inner[0].T + self.inner[1]
        return rows @ self.matrix.T + self.offset

    def weight(self, weight: Tensor) -> Tensor:
        """Of a projection `[out, hidden]` of refitted rows, as one of rows as they are, `W M`; in the same dtype."""
        return (weight.float() @ self.matrix.to(weight.device)).to(weight.dtype)

    def bias(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The bias `[out]` that goes with it: `W b`, and the projection's bias."""
        offset = weight.float() @ self.offset.to(weight.device)
        return (offset if bias is None else offset + bias.float()).to(weight.dtype)


class LeastSquares:
    """Sums over visual rows, pruned and dense `[rows, hidden]`, as they come; a `LinearCompensation` in the end."""

    def __init__(self) -> None:
        self.count = 0
        self.pruned: Tensor | float = 0.0
        self.missing: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0
        self.products: Tensor | float = 0.0

    def add(self, pruned: Tensor, dense: Tensor) -> None:
        """Take these rows in."""
        rows, missing = pruned.double(), dense.double() - pruned.double()
        self.count += len(rows)
        self.pruned = self.pruned + rows.sum(0)
        self.missing = self.missing + missing.sum(0)
        self.squares = self.squares + rows.T @ rows
        self.products = self.products + missing.T @ rows

    def summed(self, processes: Processes, like: Tensor) -> "LeastSquares":
        """The sums over the rows of all processes; `like` `[..., hidden]` is on the device of the rows, of which there may be none here."""
        if processes.count == 1:
            return self
        width = like.shape[-1]
        parts = (self.pruned, (width,)), (self.missing, (width,)), (self.squares, (width, width)), (self.products, (width, width))
        flat = [like.new_full((1,), self.count, dtype=torch.float64)]
        flat += [(part if isinstance(part, Tensor) else like.new_zeros(shape, dtype=torch.float64)).flatten() for part, shape in parts]
        count, *sums = processes.summed(torch.cat(flat)).split([len(part) for part in flat])
        whole = LeastSquares()
        whole.count = int(count)
        whole.pruned, whole.missing, whole.squares, whole.products = (one.view(shape) for one, (_, shape) in zip(sums, parts, strict=True))
        return whole

    @property
    def nothing_missing(self) -> bool:
        """Whether all rows are the dense model's own."""
        return not bool(torch.as_tensor(self.products).any())

    def solve(self, rank: int | None = None, projections: Sequence[Tensor] = ()) -> LinearCompensation:
        """`matrix = 1 + P C^-1`: `C` the pruned rows' covariances with the ridge, `P` those of what they miss with them.

        Of a `rank`: for `C = L L'` the map becomes `matrix L Q Q' L^-1` around the rows' mean, `Q` the first right singular vectors of
        `W matrix L`, where `W` are the weights of the `projections` `[out, hidden]`, each over the size of its outcome. No other map of
        this rank leaves less of their outcome out (Eckart and Young).
        """
        return self.solve_all([rank], projections)[rank]

    def solve_all(self, ranks: Iterable[int | None], projections: Sequence[Tensor] = ()) -> dict[int | None, LinearCompensation]:
        """The same for several ranks, of which the lower ones take the first of the singular vectors of the highest."""
        mean, missing, matrix, root = self._solved()
        offset = missing - matrix @ mean + mean
        found: dict[int | None, LinearCompensation] = {None: LinearCompensation(matrix.float(), offset.float())}
        if not (lower := [rank for rank in ranks if rank is not None]):
            return found
        spread = matrix @ root
        outcomes = [weight.double() @ spread for weight in projections]
        widest = leading_subspace(torch.cat([outcome / outcome.norm() for outcome in outcomes]), max(lower))
        for rank in lower:
            basis = widest[:, :rank]
            inner = torch.linalg.solve_triangular(root.T, basis, upper=True).T
            outer = LinearCompensation((spread @ basis).float(), (missing + mean).float(), (inner.float(), (-inner @ mean).float()))
            found[rank] = outer
        return found

    def _solved(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The pruned rows' mean, what they miss in the mean, the whole map's matrix, and the root of their covariances."""
        assert isinstance(self.squares, Tensor)
        assert isinstance(self.pruned, Tensor)
        assert isinstance(self.missing, Tensor)
        mean, missing = self.pruned / self.count, self.missing / self.count
        covariance = self.squares / self.count - mean.outer(mean)
        products = self.products / self.count - missing.outer(mean)
        variance = covariance.diagonal().clamp(min=torch.finfo(torch.float32).eps * covariance.diagonal().mean())
        covariance = covariance + RIDGE * variance.diag()
        root = torch.linalg.cholesky(covariance)
        change = torch.cholesky_solve(products.T, root).T
        return mean, missing, change + torch.eye(len(mean), dtype=change.dtype, device=change.device), root


def leading_subspace(matrix: Tensor, rank: int) -> Tensor:
    """An orthonormal basis `[columns, rank]` of the first right singular vectors of a matrix, nearly: by subspace iteration (Halko,
    Martinsson and Tropp, arXiv 0909.4061), which takes products alone, from the same start every time."""
    square = matrix.T @ matrix
    start = torch.randn(len(square), rank, generator=torch.Generator().manual_seed(0), dtype=square.dtype)
    basis = start.to(square.device)
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(square @ basis).Q
    return basis


def visual_keys(plan: Plan, dense: Plan) -> list[str | None]:
    """By layer of a normalised plan, a name for what makes its visual rows what they are, the updates of the layers before it.

    None where the layer holds no K and V of visual rows, and where these are the dense model's and made as there. A rank is part of the
    name.
    """
    keys: list[str | None] = []
    text, same = plan.locality, True
    for index, (layer, whole) in enumerate(zip(plan.layers, dense.layers, strict=True)):
        holds = index < plan.visual_depth and (layer.read_heads or layer.self_heads)
        text = hashlib.sha256(text.encode()).hexdigest()[:32]
        keys.append(f"{text} {layer.kv_rank}" if holds and not (same and layer.kv_rank is None) else None)
        same = same and all(getattr(layer, name) == getattr(whole, name) for name in UPDATES)
        text = f"{text} {_updates(layer)}"
    return keys


@lru_cache(maxsize=4096)
def _updates(layer: LayerPlan) -> str:
    """What a layer does to visual rows, to the last bit: what is read decides in which order the heads of self attention stand."""
    how = layer.window, layer.read_stride, layer.kv_rank
    attention = (ranges(layer.self_heads), ranges(layer.read_heads), *map(str, how))
    return ";".join((ranges(layer.neurons), *(attention if layer.self_heads else ())))
