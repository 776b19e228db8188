"""Normalised gradient descent: the counts of [2412.08424, Table 1], its bound and its limits."""

import math

import pytest
import torch

from workbench.optimizers.normalised import NormalisedGD, normaliser

WORST = {100: 2, 10: 2, 1: 16, 0.1: 157}
"""Updates until every margin is positive on the worst set of 1000 points, by rate."""


def worst(n=1000):
    """Points times labels: one (.5, -1) of label +1, the others (-.5, -1) of label -1."""
    points = torch.tensor([[0.5, 1.0]], dtype=torch.float64).repeat(n, 1)
    points[0] = torch.tensor([0.5, -1.0])
    return points


def run(make, points, most=1000):
    """`(updates until all margins are positive, weights after each)`."""
    theta, trace = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64)), []
    optimizer = make([theta])

    def closure():
        margins = points @ theta
        theta.grad = None
        torch.nn.functional.softplus(-margins).mean().backward()
        return margins

    for step in range(most):
        if (points @ theta.detach() > 0).all():
            return step, trace
        optimizer.step(closure)
        trace.append(theta.detach().clone())
    raise AssertionError("not separated")


@pytest.mark.parametrize("rate", WORST)
def test_the_worst_set_is_separated_after_exactly_as_many_updates_as_published(rate):
    found, _ = run(lambda p: NormalisedGD(p, lr=rate), worst())
    assert found == WORST[rate]
    assert found <= 1.25 / 0.25 + 2 * math.log(2 * 1000 - 1) / (rate * 0.25)  # Theorem 6.1, R^2 = 1.25, mu = .5


def test_without_the_normaliser_it_takes_308():
    assert run(lambda p: torch.optim.SGD(p, lr=100), worst())[0] == 308


def test_the_first_normalised_step_is_twice_the_plain_one_and_the_other_set_is_solved_at_the_second():
    points = torch.tensor(
        [[1.0, -1.0], [1.0, 4.0]], dtype=torch.float64
    )  # Theorem 4.1: (1, -1) of label +1, (-1, -4) of label -1
    solved, (first, *_) = run(lambda p: torch.optim.SGD(p, lr=1e6), points)
    assert torch.allclose(first / 1e6, torch.tensor([0.5, 0.75], dtype=torch.float64), atol=1e-15)
    assert solved == 2
    _, (normalised, *_) = run(lambda p: NormalisedGD(p, lr=1e6), points)
    assert torch.allclose(normalised, 2 * first, rtol=1e-14)


def test_a_huge_rate_without_normaliser_is_the_batch_perceptron():
    points, rate, theta = worst(100), 1e12, torch.zeros(2, dtype=torch.float64)
    _, trace = run(lambda p: torch.optim.SGD(p, lr=rate), points)
    for found in trace:
        margins = points @ theta
        theta = theta + (((margins < 0) + 0.5 * (margins == 0)).double() @ points) / len(points)
        assert (found / rate - theta).abs().max() <= 1e-12


def test_the_normaliser_is_its_formula_and_stays_finite():
    margins = torch.tensor([0.3, -2.0, 5.0], dtype=torch.float64)
    assert normaliser(margins).item() == pytest.approx(1 / float((1 / (1 + margins.exp())).mean()), rel=1e-14)
    assert normaliser(torch.tensor([-1e4, 1e4], dtype=torch.float64)).item() == pytest.approx(2)
    assert torch.isfinite(normaliser(torch.full((3,), 600.0, dtype=torch.float64)))
