"""AdaGrad-Norm written out, and the batch of AdAdaGrad recomputed from its gradients."""

import math

import pytest
import torch

from workbench.errors import UserError
from workbench.optimizers.adagrad_norm import AdaGrad, AdaGradNorm, NormTest


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_one_total_for_all_tensors_or_one_for_each_coordinate():
    one, each = ([torch.nn.Parameter(normal(3)), torch.nn.Parameter(normal(2, 2, seed=1))] for _ in range(2))
    x, y = ([p.detach().clone() for p in one] for _ in range(2))
    norm, coordinate, total, totals = AdaGradNorm(one, lr=0.5, eps=0.1), AdaGrad(each, lr=0.5, eps=0.1), 0.0, [0.0, 0.0]
    for step in range(4):
        gs = [normal(*p.shape, seed=10 * step + i) for i, p in enumerate(one)]
        for p, q, g in zip(one, each, gs, strict=True):
            p.grad, q.grad = g.clone(), g.clone()
        norm.step()
        coordinate.step()
        total += sum(float((g**2).sum()) for g in gs)
        totals = [s + g**2 for s, g in zip(totals, gs, strict=True)]
        x = [v - 0.5 * g / math.sqrt(total + 0.1) for v, g in zip(x, gs, strict=True)]
        y = [v - 0.5 * g / (s + 0.1).sqrt() for v, g, s in zip(y, gs, totals, strict=True)]
    assert all(torch.allclose(p, v, atol=1e-12) for p, v in zip(one + each, x + y, strict=True))


def batches(eta, steps=50, n=10_000, d=50):
    """Sizes, and gradients of every example, of logistic regression under AdAdaGrad-Norm."""
    a = normal(n, d)
    y = (a @ normal(d, seed=1) + 0.3 * normal(n, seed=2)).sign()
    w, draws = torch.nn.Parameter(torch.zeros(d, dtype=torch.float64)), torch.Generator().manual_seed(3)
    optimizer, test, size = AdaGradNorm([w], lr=1.0), NormTest(eta, n), 16
    for _ in range(steps):
        rows = torch.randperm(n, generator=draws)[:size]
        each = -(y[rows] * torch.sigmoid(-y[rows] * (a[rows] @ w.detach())))[:, None] * a[rows]
        w.grad = each.mean(0)
        optimizer.step()
        before, size = size, test.after(each)
        yield before, each, size


def test_the_next_batch_is_the_norm_tests_and_never_smaller():
    eta, grown = 0.5, 0
    for before, each, after in batches(eta, steps=12):
        variance, squared = each.var(0).sum().item(), each.mean(0).square().sum().item()
        failed = variance / before > eta**2 * squared
        assert after == (min(10_000, math.ceil(variance / (eta**2 * squared))) if failed else before) >= before
        grown += after > before
    assert grown > 2


def test_a_strict_test_reaches_the_whole_set_within_ten_steps():
    sizes = [after for _, _, after in batches(0.1, steps=11)]
    assert 1000 < sizes[0] < 2000
    assert sizes[-1] == 10_000


def test_without_a_slope_the_batch_is_the_largest_and_without_variance_as_it_was():
    test = NormTest(0.5, 100)
    assert test.size(10, 1.0, 0.0) == 100
    assert test.size(10, 0.0, 0.0) == 10
    assert test.size(200, 1e9, 1.0) == 200  # a batch above the largest does not shrink either


@pytest.mark.parametrize(("eta", "largest"), [(0.0, 10), (1.5, 10), (0.5, 1)])
def test_a_test_that_makes_no_sense_is_refused(eta, largest):
    with pytest.raises(UserError, match=f"given {eta} and {largest}"):
        NormTest(eta, largest)


def test_one_example_has_no_variance():
    with pytest.raises(UserError, match="2 examples or more"):
        NormTest(0.5, 10).after(normal(1, 3))
