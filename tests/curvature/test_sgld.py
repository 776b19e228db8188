"""Langevin sampling against closed forms: quadratics, flat directions, crossing valleys; and what must be refused."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from workbench.curvature.objective import Objective, Part
from workbench.curvature.sgld import Calibration, Chains, Rise, Sampler, calibrate, estimate, mixing, sample
from workbench.errors import UserError


@dataclass
class Known:
    """A loss whose rise and slope are formulas; `spread` is the standard deviation of each part's own slope."""

    rise: object
    slope: object
    parts: int = 1
    shifts: torch.Tensor | None = None

    def measure(self, w, part):
        rise, slope = self.rise(w), self.slope(w)
        if part is not None and self.shifts is not None:  # each part pulls its own way, all together nowhere
            pull = self.shifts[torch.tensor(part)]
            rise, slope = rise + (pull * w).sum(1), slope + pull
        return rise, slope


def quadratic(h, **noise):
    h = torch.tensor(h, dtype=torch.float64)
    return Known(lambda w: 0.5 * (w * w) @ h, lambda w: w * h, **noise), torch.zeros(len(h), dtype=torch.float64)


def discretised(h, s, noise=0.0):
    """The estimate n beta sum (h/2) Var, from w' = (1 - eps a/2) w + sqrt(eps) xi - (eps n beta/2) u with a = n beta h + gamma.

    Then Var = (eps + (eps n beta/2)^2 noise) / (1 - (1 - eps a/2)^2).
    """
    h = np.asarray(h)
    a = s.heat * h + s.gamma
    variance = (s.eps + (s.eps * s.heat / 2) ** 2 * noise) / (1 - (1 - s.eps * a / 2) ** 2)
    return float(s.heat * (0.5 * h * variance).sum())


def agrees(found, expected, errors=4.0):
    return abs(found.value - expected) < errors * found.error and found.error < 0.1 * expected


H = [8.0, 4.0, 2.0, 1.0, 1.0]
LONG = Sampler(n=1000, eps=4e-4, gamma=1.0, chains=16, burn=150, draws=1500, full=True)


def test_a_quadratic_with_a_coarse_step_has_exactly_the_bias_of_that_step():
    """eps a reaches 2.3 of the 4 at which the chain explodes: the continuous formula is 30 % off, the discrete one is not."""
    s = Sampler(n=1000, eps=2e-3, gamma=1.0, chains=16, burn=150, draws=1500, full=True)
    found = estimate(sample(*quadratic(H), s, seed=1))
    continuous = 0.5 * sum(s.heat * h / (s.heat * h + s.gamma) for h in H)
    assert agrees(found, discretised(H, s))
    assert discretised(H, s) > 1.25 * continuous
    assert not agrees(found, continuous)
    assert found.sound


def test_a_fine_step_gives_half_the_parameters():
    found = estimate(sample(*quadratic(H), LONG, seed=2))
    assert agrees(found, discretised(H, LONG))
    assert discretised(H, LONG) == pytest.approx(len(H) / 2, rel=0.07)
    assert found.low < discretised(H, LONG) < found.high


def test_localisation_takes_its_share():
    """Where gamma equals n beta h, a direction counts half."""
    s = Sampler(n=1000, eps=4e-4, gamma=1000 / math.log(1000) * 2.0, chains=16, burn=80, draws=1500, full=True)
    found = estimate(sample(*quadratic([2.0] * 6), s, seed=3))
    assert discretised([2.0] * 6, s) == pytest.approx(1.5, rel=0.07)
    assert agrees(found, discretised([2.0] * 6, s))


def test_flat_directions_count_nothing():
    flat = [3.0, 3.0, 3.0, *([0.0] * 7)]
    s = Sampler(n=1000, eps=4e-4, gamma=20.0, chains=16, burn=150, draws=1500, full=True)
    found = estimate(sample(*quadratic(flat), s, seed=4))
    assert agrees(found, discretised(flat, s))
    assert found.value == pytest.approx(1.5, rel=0.1)  # of rank 3, not of 10 parameters
    assert found.radius == pytest.approx(math.sqrt(10 / 20))
    assert found.distance < found.radius


def test_minibatches_add_their_own_noise_and_no_more():
    """Four parts pull by +-1 along each axis: the noise of a part has variance 1 in every direction."""
    shifts = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    s = Sampler(n=300, eps=4e-3, gamma=1.0, chains=16, burn=100, draws=2000)
    found = estimate(sample(*quadratic([1.0, 1.0], parts=4, shifts=shifts), s, seed=5))
    assert discretised([1.0, 1.0], s, noise=1.0) > 1.1 * discretised([1.0, 1.0], s)
    assert agrees(found, discretised([1.0, 1.0], s, noise=1.0))
    assert not agrees(found, discretised([1.0, 1.0], s))


def test_beta_and_mean_draws():
    s = Sampler(n=100, eps=1e-3, gamma=1.0, chains=16, burn=50, draws=800, every=4, beta=0.5, full=True)
    assert s.heat == 50
    assert agrees(estimate(sample(*quadratic(H), s, seed=6)), discretised(H, s))


def crossing_at(heat):
    """What n beta E[w1^2 w2^2] is exactly under exp(-heat w1^2 w2^2 - |w|^2 / 2), by quadrature on a grid that is fine near the axes."""
    grid = np.sinh(np.linspace(-12, 12, 2001)) / np.sinh(12) * 7
    step = np.gradient(grid)
    x, y = np.meshgrid(grid, grid)
    loss = (x * y) ** 2
    weight = np.exp(-heat * loss - (x**2 + y**2) / 2) * step * step[:, None]
    return heat * float((loss * weight).sum() / weight.sum())


def test_a_draw_is_the_mean_of_its_steps():
    s = Sampler(100, 1e-3, 1.0, chains=2, burn=2, draws=10, full=True)
    steps = sample(*quadratic(H), replace(s, burn=8, draws=40), seed=6)
    draws = sample(*quadratic(H), replace(s, every=4), seed=6)
    np.testing.assert_allclose(draws.rise, steps.rise.reshape(2, 12, 4).mean(2), rtol=1e-12)
    np.testing.assert_array_equal(draws.distance, steps.distance[:, 3::4])


@pytest.mark.slow
def test_two_valleys_that_cross_have_a_half():
    """L = w1^2 w2^2 has lambda = 1/2 with multiplicity 2: n beta E[L] comes up to it as 1/2 - 1/log(n) does [Watanabe 2009 §4]."""
    crossing = Known(lambda w: (w[:, 0] * w[:, 1]) ** 2, lambda w: 2 * w * w.flip(1) ** 2)
    s = Sampler(n=1000, eps=1e-4, gamma=1.0, beta=1.0, chains=64, burn=400, draws=800, every=50, full=True)
    found = estimate(sample(crossing, torch.zeros(2, dtype=torch.float64), s, seed=7))
    assert crossing_at(1e3) < crossing_at(1e6) < crossing_at(1e9) < 0.5
    assert crossing_at(1e9) > 0.45
    assert found.value == pytest.approx(crossing_at(s.heat), abs=4 * found.error)
    assert found.error < 0.02
    assert found.value == pytest.approx(0.5, abs=0.15)  # a regular model of two parameters has 1


def test_chains_are_independent_and_can_be_had_again():
    first, again = (sample(*quadratic(H), Sampler(100, 1e-3, 1.0, chains=3, burn=0, draws=20), seed=8) for _ in range(2))
    np.testing.assert_array_equal(first.rise, again.rise)
    more = sample(*quadratic(H), Sampler(100, 1e-3, 1.0, chains=5, burn=0, draws=20), seed=8)
    np.testing.assert_allclose(more.rise[:3], first.rise, rtol=1e-12)  # a chain's noise does not depend on how many there are
    assert len(np.unique(more.rise[:, -1])) == 5
    assert (more.rise[:, 0] == 0).all()  # all of them start at the model


def autoregressive(rho, c=4, t=4000, seed=0):
    generator = np.random.default_rng(seed)
    x = np.zeros((c, t))
    x[:, 0] = generator.standard_normal(c)
    for i in range(1, t):
        x[:, i] = rho * x[:, i - 1] + math.sqrt(1 - rho**2) * generator.standard_normal(c)
    return x


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_effective_draws_of_an_autoregression(rho):
    x = autoregressive(rho)
    r_hat, ess = mixing(x)
    assert ess == pytest.approx(x.size * (1 - rho) / (1 + rho), rel=0.2)
    assert 0.99 < r_hat < 1.02


def test_r_hat_by_hand_and_of_chains_apart():
    x = np.random.default_rng(1).standard_normal((2, 10))
    halves = np.array([x[0, :5], x[0, 5:], x[1, :5], x[1, 5:]])
    within = np.mean([np.var(half, ddof=1) for half in halves])
    expected = math.sqrt((4 / 5 * within + np.var([h.mean() for h in halves], ddof=1)) / within)
    assert mixing(x)[0] == pytest.approx(expected)
    assert mixing(autoregressive(0.0) + 3 * np.arange(4)[:, None])[0] > 2
    assert all(math.isnan(v) for v in mixing(np.ones((2, 10))))


def made(trace, burn=0):
    """Chains whose trace is given."""
    trace = np.asarray(trace, dtype=float)
    s = Sampler(100, 1e-3, 1.0, chains=len(trace), burn=burn, draws=trace.shape[1] - burn, beta=0.01)
    return Chains(s, 3, trace, np.ones_like(trace))


GOOD = 5 + autoregressive(0.0, t=400)


def test_the_estimate_is_the_mean_after_burn_in_with_student_s_interval():
    trace = np.concatenate([np.full((4, 50), 99.0), GOOD], axis=1)
    found = estimate(made(trace, burn=50))
    means = GOOD.mean(1)
    assert found.value == pytest.approx(means.mean())
    half = 3.182446 * means.std(ddof=1) / 2
    assert (found.low, found.high) == pytest.approx((means.mean() - half, means.mean() + half), rel=1e-6)
    assert found.reasons == ()
    assert found.sound


@pytest.mark.parametrize(
    ("trace", "said"),
    [
        (GOOD - 10, "100% of the draws have a loss below"),
        (GOOD - 4.6, "no local minimum"),
        (GOOD + 2 * np.arange(4)[:, None], "chains disagree"),
        (5 + autoregressive(0.97, t=400), "too few effective draws"),
        (GOOD + np.linspace(0, 3, 400), "still drifts"),
        (np.where(np.arange(400) < 300, GOOD, np.nan), "left the finite numbers"),
        (np.where(np.arange(400) < 300, GOOD - 20, np.nan), "falls below that of the model"),
    ],
)
def test_what_is_refused(trace, said):
    found = estimate(made(trace))
    assert not found.sound
    assert any(said in reason for reason in found.reasons)


def test_a_slope_is_walked_down_and_given_up_early():
    slope = Known(lambda w: w.sum(1), torch.ones_like)
    chains = sample(slope, torch.zeros(4, dtype=torch.float64), Sampler(1000, 1e-3, 1.0, burn=10, draws=500, full=True), seed=9)
    assert chains.fell
    assert 20 <= np.isfinite(chains.rise[0]).sum() < 100
    assert "no local minimum" in estimate(chains).reasons[0]


def test_too_large_a_step_explodes_and_is_refused():
    """Exactly from eps a = 4 on."""
    small, large = (
        estimate(
            sample(*quadratic([1.0]), Sampler(1000, f * 4 / (1000 / math.log(1000) + 1), 1.0, burn=100, draws=600), seed=10)
        )
        for f in (0.9, 1.3)
    )
    assert math.isfinite(small.value)
    assert "step is too large" in large.reasons[0]


SWEEP = Sampler(1000, 1.0, 1.0, chains=8, burn=100, draws=500, full=True)


def test_the_calibration_takes_the_weakest_localisation_and_the_smallest_step_that_pass():
    found = calibrate(*quadratic(H), SWEEP, eps=(5e-3, 5e-4, 1e-3), gamma=(50.0, 1.0), seed=11)
    assert [(t.sampler.eps, t.sampler.gamma) for t in found.trials] == [(5e-4, 1.0), (1e-3, 1.0), (5e-3, 1.0)]
    assert found.chosen is found.trials[0]
    assert "step is too large" in found.trials[2].estimate.reasons[0]


def test_a_number_without_a_neighbour_that_agrees_is_refused():
    found = calibrate(*quadratic(H), SWEEP, eps=(3e-6, 1e-3), gamma=(1.0, 2.0), seed=12)
    assert len(found.trials) == 4
    assert found.chosen is None
    assert all("no neighbouring step size passes" in found.trials[i].estimate.reasons[-1] for i in (1, 3))
    assert found.refusal.startswith("None of 4 settings gives chains that pass the checks (eps 3e-06, gamma 1: ")


def test_rises_and_slopes_of_an_objective():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 3, generator=generator), torch.randn(12, 2, generator=generator)
    net = nn.Linear(3, 2)
    parts = [Part(x[:5].double(), y[:5].double()), Part(x[5:].double(), y[5:].double())]
    objective = Objective(net, parts, "squared_error", dtype=torch.float64)
    rise = Rise(objective)
    w = rise.centre + torch.randn(2, objective.size, generator=generator, dtype=torch.float64)
    whole, slopes = rise.measure(w, None)
    for chain in range(2):
        objective.put(w[chain])
        np.testing.assert_allclose(float(whole[chain]), objective.loss() - rise.loss, rtol=1e-12)
        np.testing.assert_allclose(slopes[chain], objective.gradient(), rtol=1e-12)
    by_part = [rise.measure(w, [i, i]) for i in range(2)]  # uneven parts, and still right on average
    np.testing.assert_allclose(sum(r for r, _ in by_part) / 2, whole, rtol=1e-12)
    np.testing.assert_allclose(sum(g for _, g in by_part) / 2, slopes, rtol=1e-12)
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize(
    ("change", "said"),
    [({"eps": 0.0}, "got 0.0"), ({"gamma": -1.0}, "got -1.0"), ({"beta": math.nan}, "got nan"), ({"chains": 1}, "chains=1")],
)
def test_settings_that_are_none(change, said):
    with pytest.raises(UserError, match=said):
        sample(*quadratic(H), Sampler(**{"n": 100, "eps": 1e-3, "gamma": 1.0, **change}), seed=0)


def test_a_calibration_needs_two_steps():
    with pytest.raises(UserError, match="two step sizes"):
        calibrate(*quadratic(H), SWEEP, eps=(1e-3, 1e-3), gamma=(1.0,), seed=0)


def test_nothing_tried_nothing_chosen():
    assert Calibration(()).chosen is None
