"""Spherical Langevin averaging [2603.06028]: its parts against naive twins, the limit that is known exactly, and the claim, slowly."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import workbench as wb
from workbench.dynamics.sphere import (
    chance,
    cosine,
    cube,
    partial_trace,
    run_chains,
    single_index,
    step_size,
    symmetric_noise,
)
from workbench.figures import alt, figure
from workbench.seeds import torch_generator


def test_noise_is_symmetric_and_of_unit_variance():
    noise = torch.stack([symmetric_noise(6, torch_generator(seed, "noise")) for seed in range(300)])
    for order in itertools.permutations((1, 2, 3)):
        torch.testing.assert_close(noise, noise.permute(0, *order))
    assert float(noise[:, 0, 1, 2].var()) == pytest.approx(1, rel=0.25)
    assert float(noise[:, 0, 0, 0].var()) == pytest.approx(6, rel=0.25)


def test_the_single_index_tensor_is_its_correlation_loss():
    x = torch.randn(7, 4, generator=torch_generator(0, "x"), dtype=torch.float64)
    y = torch.randn(7, generator=torch_generator(0, "y"), dtype=torch.float64)
    theta = torch.nn.functional.normalize(torch.tensor([1.0, 2, -1, 0.5], dtype=torch.float64), dim=0)
    z = x @ theta
    tensor = single_index(x, y)
    for order in itertools.permutations(range(3)):
        torch.testing.assert_close(tensor, tensor.permute(order))
    value = torch.einsum("ijk,i,j,k->", tensor, theta, theta, theta)
    torch.testing.assert_close(value, math.sqrt(7) * (y * (z**3 - 3 * z)).mean())
    expected = math.sqrt(7) * (y[:, None] * x * (x.square().sum(1, keepdim=True) - 6)).mean(0)
    torch.testing.assert_close(partial_trace(tensor), expected)  # d + 2 = 6


def test_chains_are_those_of_a_loop():
    d, steps, betas, strengths = 5, 30, [0.3, 1.0, -0.5], [4.0, 0.0, 4.0]
    noise = torch.stack([symmetric_noise(d, torch_generator(seed, "noise")) for seed in range(2)])
    planted = torch.eye(d, dtype=torch.float64)[:2]
    chains = run_chains(
        noise, strengths, betas, planted, steps, [torch_generator(seed, "chain") for seed in range(2)], points=3
    )
    assert chains.at == [10, 20, 30]
    for b, c in itertools.product(range(2), range(3)):
        generator = torch_generator(b, "chain")
        theta = torch.randn(d, generator=generator, dtype=torch.float64)
        theta = theta / theta.norm()
        shocks = torch.randn(500, 1, d, generator=generator, dtype=torch.float64)[:, 0]
        tensor = strengths[c] * cube(planted[b]) + noise[b]
        h, seen = step_size(abs(betas[c])), []
        for step in range(steps):
            project = torch.eye(d, dtype=torch.float64) - torch.outer(theta, theta)
            drift = torch.einsum("ijk,j,k->i", tensor, theta, theta)
            theta = theta + project @ (h * betas[c] * drift + math.sqrt(2 * h) * shocks[step])
            theta = theta / theta.norm()
            seen.append(theta)
        every = torch.stack(seen)
        torch.testing.assert_close(chains.seen[-1, b, c], theta)
        torch.testing.assert_close(chains.average[b, c], every.mean(0))
        torch.testing.assert_close(chains.running[0, b, c], every[:10].mean(0))
        torch.testing.assert_close(chains.last[b, c], (every @ planted[b]).abs()[15:].mean())


def test_as_beta_vanishes_the_average_is_the_partial_trace():
    """Nothing can be tuned here: chains at +beta and -beta with the same shocks differ by the drift's mean alone."""
    d = 8
    noise = symmetric_noise(d, torch_generator(3, "noise"))
    goal = torch.eye(d, dtype=torch.float64)[:1]
    trace = partial_trace(noise + 5 * cube(goal[0]))

    def mirrored(beta):
        chains = run_chains(noise[None], [5.0, 5.0], [beta, -beta], goal, 4000, [torch_generator(3, "chain")], 1)
        return float(cosine(chains.average[0, 0] - chains.average[0, 1], trace))

    assert mirrored(0.01) > 0.998
    assert mirrored(0.01) > mirrored(2.0)


@pytest.mark.parametrize("d", [2, 3, 30])
def test_chance_is_the_mean_size_of_a_coordinate_on_the_sphere(d):
    points = torch.nn.functional.normalize(torch.randn(40_000, d, generator=torch_generator(0, "sphere")), dim=1)
    assert chance(d) == pytest.approx(float(points[:, 0].abs().mean()), rel=0.02)
    if d == 30:
        assert chance(d) == pytest.approx(math.sqrt(2 / (math.pi * d)), rel=0.01)


SMALL = {"d": 6, "steps": 400, "seeds": 2, "map_d": [4, 5], "map_ratios": [1, 8], "map_steps": 300, "map_draws": 3}


def test_the_lab_and_its_figure():
    result = wb.labs.langevin(**SMALL)
    assert {"value", "low", "high", "n", "seeds"} <= set(result.table)
    assert set(result.tables["expectations"]["held"]) <= {"yes", "no", "open"}
    assert len(result.tables["map"]) == 2 * 2 * 3
    assert result.tables["map"]["value"].between(0, 1).all()
    shares = result.tables["map"].set_index(["estimate", "d", "ratio"])["value"]
    assert shares["partial_trace", 5, 8] == 1
    assert result.metric("mirrored_along_trace").value > 0.9
    last = result.table.query("problem == 'tensor PCA' and beta == 0.3 and estimate == 'last'")["value"].item()
    assert result.metric("last_pca_0.3").value == pytest.approx(last / chance(6))
    fig = figure(result)
    assert {t.name for t in fig.data if t.showlegend} == {"iterate", "running average", "partial trace, |overlap|"}
    assert next(t for t in fig.data if t.name == "iterate").line.color == "#8C8C8C"
    assert alt(result).endswith(".")
    figure(wb.labs.langevin(**{**SMALL, "map_d": [], "seeds": 1, "steps": 50}))


@pytest.mark.slow
def test_the_average_finds_what_the_last_iterate_does_not():
    result = wb.labs.langevin(betas=[0.3], map_d=[])
    runs = result.tables["runs"].query("problem == 'tensor PCA'").set_index(["estimate", "seed"])["value"]
    assert (runs["average"] >= 0.5).all()
    assert runs["last"].mean() == pytest.approx(math.sqrt(2 / (math.pi * 30)), rel=0.1)
    assert runs["along_trace"].mean() >= 0.9
    assert (runs["along_trace"] >= 0.88).all()  # one seed of three lies at .898
    assert result.metric("mirrored_along_trace").value > 0.999
    null = result.table.query("problem == 'no signal' and estimate == 'last'")["value"].item()
    assert null == pytest.approx(chance(30), rel=0.1)
