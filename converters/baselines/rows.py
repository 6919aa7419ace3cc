"""A batch of sequences from which tokens can leave, and what is needed to go on decoding when layers have lost different ones."""

from dataclasses import dataclass

import torch
from torch import Tensor

PADDING, TEXT, VISUAL = 0, 1, 2


@dataclass(frozen=True)
class Rows:
    """Hidden states `[batch, length, hidden]`, positions and kinds `[batch, length]`, padded on the left.

    Multimodal positions are `[batch, length, 3]`, and tokens keep them. `seen` `[batch]` is where the next token stands while positions
    are kept: after every token that a sample was given.
    """

    hidden: Tensor
    positions: Tensor
    kinds: Tensor
    seen: Tensor

    @property
    def axes(self) -> Tensor:
        """Positions as a language model takes them: `[batch, length]`, or `[3, batch, length]`."""
        return axes(self.positions)

    @property
    def padded(self) -> bool:
        return bool((self.kinds == PADDING).any())

    def of_kind(self, sample: int, kind: int) -> Tensor:
        """Where the tokens of a kind stand in a sample."""
        return (self.kinds[sample] == kind).nonzero()[:, 0]

    def of(self, samples: list[int]) -> "Rows":
        """Those of some samples, without padding that all of them have."""
        first = int((self.kinds[samples] != PADDING).any(0).int().argmax())
        return Rows(self.hidden[samples, first:], self.positions[samples, first:], self.kinds[samples, first:], self.seen[samples])

    def mask(self) -> Tensor | None:
        """Who sees whom, `[batch, 1, length, length]`; None for plain causal order. Padding sees itself, so that no row is empty."""
        if not self.padded:
            return None
        length = self.kinds.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.kinds.device).tril()
        diagonal = torch.eye(length, dtype=torch.bool, device=self.kinds.device)
        return (causal & (self.kinds != PADDING)[:, None, None]) | diagonal

    def take(self, places: list[Tensor]) -> "Rows":
        """The tokens at `places` of each sample, padded on the left to the longest."""
        width = max(map(len, places))
        index = torch.stack([torch.cat([place.new_zeros(width - len(place)), place]) for place in places])
        lengths = torch.tensor([len(place) for place in places], device=index.device)
        present = torch.arange(width, device=index.device) >= width - lengths[:, None]
        return Rows(
            self.hidden.gather(1, index[..., None].expand(-1, -1, self.hidden.shape[2])),
            torch.stack([one[place] for one, place in zip(self.positions, index, strict=True)]).where(_as(present, self.positions), 0),
            self.kinds.gather(1, index).where(present, PADDING),
            self.seen,
        )

    def renumbered(self) -> "Rows":
        """The same tokens, as if those that left had never been there, where positions are numbers."""
        if self.positions.dim() > 2:
            return self
        present = self.kinds != PADDING
        positions = (present.cumsum(1) - 1).clamp(min=0)
        return Rows(self.hidden, positions, self.kinds, present.sum(1))


def axes(positions: Tensor) -> Tensor:
    """Positions `[batch, length]` or `[batch, length, 3]` as a language model takes them."""
    return positions if positions.dim() == 2 else positions.movedim(-1, 0)


def _as(present: Tensor, positions: Tensor) -> Tensor:
    return present if positions.dim() == 2 else present[..., None]


def insert(places: Tensor, new: int, after: int, length: int) -> Tensor:
    """`places` with `new` tokens that are appended at `length` and stand right after place `after`."""
    split = int((places <= after).sum())
    added = torch.arange(length, length + new, device=places.device)
    return torch.cat([places[:split], added, places[split:]])
