"""The demo's Muon against torch's, whose products are in bfloat16."""

import torch

from tools.demo.muon import Muon, orthogonal


def test_steps_are_torchs() -> None:
    torch.manual_seed(0)
    shapes = ((12, 12), (6, 12), (20, 12), (12, 12))
    ours = [torch.nn.Parameter(torch.randn(*shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(matrix.detach().clone()) for matrix in ours]
    before = [matrix.detach().clone() for matrix in ours]
    optimizers = (
        Muon(ours, lr=0.01, weight_decay=0.01),
        torch.optim.Muon(theirs, lr=0.01, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(3):
        for own, other in zip(ours, theirs, strict=True):
            own.grad = torch.randn_like(own)
            other.grad = own.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for own, other, start in zip(ours, theirs, before, strict=True):
        assert (own - other).norm() < 0.03 * (own - start).norm()


def test_rows_become_orthogonal() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(3, 4, 9)))
    assert values.min() > 0.6
    assert values.max() < 1.3
