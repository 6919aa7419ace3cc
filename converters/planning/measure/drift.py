"""Logit drift: how far a pruned model's answers have moved from the dense model's."""

import torch
from torch import Tensor

LIKELIEST = 5
"""Tokens whose logits are compared."""
LEAST_MARGIN = 0.1
"""Nats: closer than that two tokens are taken for a tie."""


def moves_over_margin(pruned: Tensor, dense: Tensor) -> Tensor:
    """By how much the dense model's five likeliest tokens moved against each other, over its margin between the first two, `[tokens, 5]`;
    scaled so that the squares add up to that of their root mean square. From logits or log-probabilities `[tokens, vocabulary]`."""
    likeliest = dense.topk(min(LIKELIEST, dense.shape[-1]), -1)
    moved = (pruned - dense).gather(-1, likeliest.indices)
    margin = (likeliest.values[:, 0] - likeliest.values[:, 1]).clamp(min=LEAST_MARGIN)
    moves: Tensor = (moved - moved.mean(-1, keepdim=True)) / (margin[:, None] * float(moved.shape[-1]) ** 0.5)
    return moves


def logit_drift(pruned: Tensor, dense: Tensor) -> Tensor:
    """How far each token's logits moved `[tokens]`, 0 for not at all, 1 for beyond measure, from log-probabilities `[tokens, vocabulary]`.

    `1 - exp(-r)`: `r` is the root mean square by which the dense model's five likeliest tokens moved against each other, over its margin
    between the first two: near 1 the answer is about to change. The order of plans by its mean on 128 questions is nearer to that by
    the answers that change on 1,000 others than the order by KL, which a few questions decide (`benchmarks/planner.md`).
    """
    return -torch.expm1(-moves_over_margin(pruned, dense).square().sum(-1).sqrt())
