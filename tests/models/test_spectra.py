"""Ranks, spaces and new directions against closed forms, planted directions and Gaussian draws."""

import math

import numpy as np
import pytest
import torch

from workbench.models.spectra import (
    entropy_rank,
    intruders,
    random_cosine,
    random_part,
    random_share,
    random_singular,
    rank_for,
    share_inside,
    sine,
    space,
    stable_rank,
)

RNG = torch.Generator().manual_seed(0)


def gauss(*shape):
    return torch.randn(*shape, generator=RNG, dtype=torch.float64)


def orthonormal(rows, columns):
    return torch.linalg.qr(gauss(rows, columns))[0]


def singular(matrix):
    return torch.linalg.svdvals(matrix)


def test_a_matrix_of_one_direction_has_rank_one_by_every_measure():
    planted = singular(3.0 * torch.outer(gauss(8), gauss(5)))
    for rank in (stable_rank, entropy_rank, rank_for):
        assert float(rank(planted)) == pytest.approx(1, abs=1e-6)


def test_equal_directions_count_in_full():
    equal = torch.full((6,), 0.3, dtype=torch.float64)
    assert float(stable_rank(equal)) == pytest.approx(6)
    assert float(entropy_rank(equal)) == pytest.approx(6)
    assert float(rank_for(equal, 0.5)) == 3


def test_ranks_in_closed_form():
    """Of singular values 3 and 1: 10 / 9, exp of the entropy of (3/4, 1/4), and the first alone holds nine tenths."""
    two = torch.tensor([3.0, 1.0], dtype=torch.float64)
    assert float(stable_rank(two)) == pytest.approx(10 / 9)
    assert float(entropy_rank(two)) == pytest.approx(4 / 27**0.25)
    assert float(rank_for(two, 0.9)) == 1
    assert float(rank_for(two, 0.91)) == 2
    assert float(rank_for(two, 1.0)) == 2
    assert float(rank_for(torch.zeros(3, dtype=torch.float64))) == 0


def marchenko_pastur(shape, grid):
    """Density of the singular values s of a large Gaussian matrix of unit Frobenius norm, at these s.

    With ratio q = short / long, s sqrt(short) has the density sqrt((b - x)(x - a)) / (pi q s sqrt(short)), x its square,
    a and b = (1 -+ sqrt q)^2.
    """
    short, long = sorted(shape)
    q = short / long
    x = np.asarray(grid, dtype=np.float64) ** 2 * short
    inside = np.clip(((1 + math.sqrt(q)) ** 2 - x) * (x - (1 - math.sqrt(q)) ** 2), 0, None)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(np.sqrt(inside) / (math.pi * q * np.sqrt(x))) * math.sqrt(short)


@pytest.mark.parametrize("shape", [(60, 240), (200, 200)])
def test_random_matrices_follow_marchenko_and_pastur(shape):
    drawn = random_singular(shape, 20, seed=1)
    assert torch.allclose(drawn.square().sum(1), torch.ones(20, dtype=torch.float64))
    q = min(shape) / max(shape)
    edge = (1 + math.sqrt(q)) / math.sqrt(min(shape))
    assert float(drawn.max()) == pytest.approx(edge, rel=0.06)
    assert float(stable_rank(drawn).mean()) == pytest.approx(1 / edge**2, rel=0.06)
    grid = np.linspace(1e-6, 1.1 * edge, 4001)
    density = marchenko_pastur(shape, grid)
    mass = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(grid))])
    assert mass[-1] == pytest.approx(1, abs=2e-3)
    for at in (0.25, 0.5, 0.75):
        assert float(drawn.flatten().quantile(at)) == pytest.approx(float(np.interp(at, mass, grid)), rel=0.03)


def test_random_matrices_are_drawn_from_the_seed():
    assert torch.equal(random_singular((4, 6), 2, 5), random_singular((4, 6), 2, 5))
    assert not torch.equal(random_singular((4, 6), 2, 5), random_singular((4, 6), 2, 6))


def test_planted_new_directions_are_counted_exactly():
    """Old directions among the first 5 of 12 outputs, three larger new ones among the others."""
    old = torch.zeros(12, 9, dtype=torch.float64)
    old[:5, :5] = torch.diag(torch.tensor([5.0, 4, 3, 2, 1], dtype=torch.float64))
    left = space(old)[0][:, :5]
    planted = old.clone()
    for i, size in enumerate((9.0, 8.0, 7.0)):
        planted[6 + i, 5 + i] = size
    assert intruders(planted, left, 3, 0.5) == 3
    assert intruders(planted, left, 10, 0.5) == 3 + 1  # nine directions of which one, empty, is any
    assert intruders(planted, left, 8, 0.5) == 3
    assert intruders(old, left, 5, 0.5) == 0
    assert intruders(old + 2 * old, left, 5, 0.999) == 0


def test_epsilon_is_the_cosine_below_which_a_direction_is_new():
    """A direction halfway between two old ones has a cosine of .707 to either."""
    old = torch.eye(4, dtype=torch.float64)[:, :2]
    halfway = torch.outer(torch.tensor([1.0, 1, 0, 0], dtype=torch.float64), torch.tensor([1.0, 0], dtype=torch.float64))
    assert intruders(halfway, old, 1, 0.70) == 0
    assert intruders(halfway, old, 1, 0.71) == 1


def test_planted_directions_lie_inside_or_outside():
    basis = orthonormal(10, 10)
    inside, outside = basis[:, :4], basis[:, 4:]
    change = 3 * torch.outer(inside[:, 0], gauss(7)) + torch.outer(inside[:, 2], gauss(7))
    assert share_inside(change, inside) == pytest.approx(1)
    assert share_inside(change, outside) == pytest.approx(0, abs=1e-20)
    mixed = (inside[:, 0] + outside[:, 0]) / math.sqrt(2)
    assert share_inside(torch.outer(mixed, gauss(7)), inside) == pytest.approx(0.5)
    assert sine(mixed, inside) == pytest.approx(math.sqrt(0.5))
    assert (sine(inside[:, 1], inside), sine(outside[:, 1], inside)) == (pytest.approx(0, abs=1e-7), pytest.approx(1))


def test_the_space_of_a_matrix_holds_nine_tenths_of_it():
    u, v = orthonormal(8, 3), orthonormal(6, 3)
    left, right, r = space(u @ torch.diag(torch.tensor([3.0, 1.0, 0.1], dtype=torch.float64)) @ v.T)
    assert r == 2  # 9 of 10.01 is short of nine tenths
    assert share_inside(u[:, :2], left[:, :r]) == pytest.approx(1)
    assert share_inside(v[:, :2], right[:, :r]) == pytest.approx(1)


@pytest.mark.parametrize(("r", "dim", "other"), [(3, 10, 1), (3, 10, 6), (20, 30, 2)])
def test_the_range_of_random_changes_holds_95_per_cent_of_them(r, dim, other):
    mean, low, high = random_share(r, dim, other)
    basis = orthonormal(dim, r)
    shares = np.array([share_inside(gauss(dim, other), basis) for _ in range(2000)])
    assert mean == r / dim
    assert shares.mean() == pytest.approx(mean, abs=0.015)
    assert np.mean((shares >= low) & (shares <= high)) == pytest.approx(0.95, abs=0.02)


def test_a_whole_space_leaves_nothing_outside():
    assert random_share(5, 5, 3) == (1, 1, 1)
    assert random_share(0, 5, 3) == (0, 0, 0)


def test_the_cosine_of_random_directions():
    draws = gauss(4000, 12)
    cosines = (draws[:, 0] / draws.norm(dim=1)).abs()
    assert float((cosines < random_cosine(12)).double().mean()) == pytest.approx(0.95, abs=0.015)
    assert random_cosine(100_000) == pytest.approx(1.96 / math.sqrt(100_000), rel=1e-3)
    assert random_cosine(1) == 1


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_a_random_part_has_the_norm_and_rank_that_were_asked_for(shape):
    change = gauss(*shape)
    part = random_part(change, 2, 0.7, torch.Generator().manual_seed(1))
    assert float(part.norm()) == pytest.approx(0.7)
    assert int((singular(part) > 1e-12).sum()) == 2
    other = random_part(change, 2, 0.7, torch.Generator().manual_seed(2))
    assert not torch.allclose(part, other)
    whole = random_part(change, 6, 2 * float(change.norm()), torch.Generator().manual_seed(1))
    assert torch.allclose(whole, 2 * change)
