"""signSGD and Signum, written out."""

import torch

from workbench.optimizers.signs import SignSGD


def test_every_coordinate_moves_by_the_rate_after_the_decay():
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    p.grad = torch.tensor([1e-9, -5.0, 0.0], dtype=torch.float64)
    optimizer = SignSGD([p], lr=0.1, weight_decay=0.5)
    optimizer.step()
    assert torch.allclose(p, torch.tensor([0.95 - 0.1, -1.9 + 0.1, 2.85], dtype=torch.float64), atol=1e-15)
    assert not optimizer.state[p]


def test_with_momentum_the_sign_is_the_averages():
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer, m, x = SignSGD([p], lr=0.1, momentum=0.5), 0.0, 0.0
    for g in (1.0, -0.4, -0.1, -3.0):
        p.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
        m = 0.5 * m + 0.5 * g
        x -= 0.1 * (1 if m > 0 else -1)
        assert p.item() == x
