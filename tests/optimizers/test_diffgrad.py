"""diffGrad: its friction, its first version, and its authors' toy with the control that undoes its story."""

import math

import pytest
import torch

from workbench.errors import UserError
from workbench.optimizers.diffgrad import DiffGrad


def gradients(n=6):
    return torch.randn(n, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def seen(version, gs):
    """Frictions and points along given gradients."""
    p, frictions, points = torch.nn.Parameter(torch.zeros(5, dtype=torch.float64)), [], []
    optimizer = DiffGrad([p], lr=0.1, betas=(0.9, 0.99), version=version)
    optimizer.watch = lambda _, facts: frictions.append(facts["friction"])
    for g in gs:
        p.grad = g.clone()
        optimizer.step()
        points.append(p.detach().clone())
    return frictions, points


def test_friction_is_the_sigmoid_of_the_change_of_the_gradient():
    gs = gradients()
    frictions, _ = seen("v2", gs)
    before = torch.zeros(5, dtype=torch.float64)
    for friction, g in zip(frictions, gs, strict=True):
        assert torch.allclose(friction, 1 / (1 + torch.exp(-(before - g).abs())), atol=1e-15)
        assert ((friction >= 0.5) & (friction < 1)).all()
        before = g


def test_the_first_version_is_adam_at_half_the_rate_after_its_first_step():
    gs = gradients()
    frictions, points = seen("v1", gs)
    assert torch.equal(frictions[0], torch.sigmoid(gs[0].abs()))
    assert all((friction == 0.5).all() for friction in frictions[1:])
    x, m, v = torch.zeros(5, dtype=torch.float64), 0.0, 0.0
    for t, (g, point) in enumerate(zip(gs, points, strict=True), start=1):
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        xi = torch.sigmoid(g.abs()) if t == 1 else 0.5
        x = x - 0.1 * math.sqrt(1 - 0.99**t) / (1 - 0.9**t) * xi * m / (v.sqrt() + 1e-8)
        assert torch.allclose(point, x, atol=1e-12)


def test_decay_is_part_of_the_gradient_and_of_the_friction():
    p, q = (torch.nn.Parameter(torch.full((2,), 3.0, dtype=torch.float64)) for _ in range(2))
    decayed, plain = DiffGrad([p], lr=0.1, weight_decay=0.5), DiffGrad([q], lr=0.1)
    for g in (1.0, -2.0, 0.5):
        p.grad, q.grad = torch.full_like(p, g), torch.full_like(q, g) + 0.5 * q.detach()
        decayed.step()
        plain.step()
    assert torch.equal(p, q)


def end_of_toy(make):
    """Slope 2x + .6 up to 0 and 2x - .4 beyond: minima at -.3 (value 0) and .2 (value .05); from -1, 300 points."""
    x = torch.nn.Parameter(torch.tensor([-1.0], dtype=torch.float64))
    optimizer = make([x])
    for _ in range(300):
        x.grad = 2 * x.detach() + (0.6 if x.item() <= 0 else -0.4)
        optimizer.step()
    return x.item()


def test_the_toy_ends_as_published_and_so_does_adam_at_half_the_rate():
    betas = (0.95, 0.999)
    assert end_of_toy(lambda p: torch.optim.Adam(p, lr=0.1, betas=betas)) == pytest.approx(0.2, abs=1e-3)
    assert end_of_toy(lambda p: DiffGrad(p, lr=0.1, betas=betas)) == pytest.approx(-0.3, abs=1e-3)
    assert end_of_toy(lambda p: torch.optim.Adam(p, lr=0.05, betas=betas)) == pytest.approx(-0.3, abs=1e-3)
    assert end_of_toy(lambda p: DiffGrad(p, lr=0.1, betas=betas, version="v1")) == pytest.approx(-0.3, abs=1e-3)


def test_a_version_that_is_none_is_refused():
    with pytest.raises(UserError, match=r"version is 'v3': it must be one of v1, v2\."):
        DiffGrad([torch.nn.Parameter(torch.zeros(1))], version="v3")
