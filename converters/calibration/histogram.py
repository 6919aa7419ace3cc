"""Histograms of ratios that span many orders of magnitude: counts in log-spaced bins, and quantiles of them."""

import torch
from torch import Tensor

# 1/16 octave from 2^-24 to 2^8; the first and the last bin take what lies beyond.
FIRST_OCTAVE, LAST_OCTAVE, BINS_PER_OCTAVE = -24, 8, 16
BINS = (LAST_OCTAVE - FIRST_OCTAVE) * BINS_PER_OCTAVE


def bins_of(ratios: Tensor) -> Tensor:
    """The bin of each ratio, int64."""
    return ((ratios.log2() - FIRST_OCTAVE) * BINS_PER_OCTAVE).floor().clamp(0, BINS - 1).long()


def value_exceeded_by(counts: Tensor, number: float) -> Tensor:
    """The value that `number` of the counted ratios exceed, interpolated within its bin: [..., BINS] -> float64 [...]."""
    above = counts.flip(-1).cumsum(-1).flip(-1).double()  # in this bin or a higher one
    place = (above > number).sum(-1, keepdim=True).sub(1).clamp_min(0)
    inside = counts.gather(-1, place).clamp_min(1)
    position = place + ((above.gather(-1, place) - number) / inside).clamp(0, 1)
    return torch.exp2(FIRST_OCTAVE + position[..., 0] / BINS_PER_OCTAVE)
