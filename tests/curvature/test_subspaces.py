"""Overlap, shares and curvature against geometry that is known, and what random directions give against many draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

from workbench.curvature.maps import from_dense
from workbench.curvature.subspaces import curvature_along, overlap, random_overlap, random_share, share_inside
from workbench.models.spectra import random_share as exact_share


def frame(n, k, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(n, k, dtype=torch.float64, generator=generator))[0]


@pytest.mark.parametrize(("k", "m"), [(1, 1), (3, 3), (2, 5), (5, 2)])
def test_overlap_is_the_mean_squared_cosine_of_the_principal_angles(k, m):
    a, b = frame(12, k, 0), frame(12, m, 1)
    expected = np.mean(np.cos(subspace_angles(a.numpy(), b.numpy())) ** 2)
    assert overlap(a, b) == pytest.approx(expected, abs=1e-12)


def test_overlap_sees_spans_and_not_their_bases():
    a, turn = frame(20, 4, 0), frame(4, 4, 1)
    assert overlap(a, a @ turn) == pytest.approx(1)
    assert overlap(a, a[:, :2] @ frame(2, 2, 2)) == pytest.approx(1)
    identity = torch.eye(20, dtype=torch.float64)
    assert overlap(identity[:, :4], identity[:, 4:8]) == 0
    assert overlap(identity[:, :4], identity[:, 3:7]) == pytest.approx(1 / 4)


@pytest.mark.parametrize(("n", "k", "m"), [(9, 1, 1), (20, 3, 3), (20, 2, 6), (60, 5, 5)])
def test_random_overlap_is_what_many_random_subspaces_have(n, k, m):
    fixed = torch.eye(n, dtype=torch.float64)[:, :m]
    drawn = np.array([overlap(frame(n, k, seed), fixed) for seed in range(3000)])
    mean, low, high = random_overlap(n, k, m)
    assert mean == max(k, m) / n
    assert abs(drawn.mean() - mean) < 4 * drawn.std() / math.sqrt(3000)
    assert 0.93 < np.mean((drawn >= low) & (drawn <= high)) < 0.97
    assert random_overlap(n, m, k) == (mean, low, high)


@pytest.mark.parametrize(("n", "k"), [(7, 2), (100_000, 5)])
def test_the_share_of_a_random_vector_has_its_exact_range(n, k):
    np.testing.assert_allclose(random_share(n, k), exact_share(k, n), rtol=1e-9)
    assert random_share(k, k) == (1, 1, 1)


def test_shares_are_squared_lengths_of_projections():
    both = frame(15, 4, 0)
    basis, outside = both[:, :3], both[:, 3]
    inside = basis @ torch.tensor([1.0, -2, 0.5], dtype=torch.float64)
    vectors = torch.stack([3 * inside, outside, inside / inside.norm() + outside, torch.zeros(15, dtype=torch.float64)], 1)
    found = share_inside(vectors, basis)
    np.testing.assert_allclose(found[:3], [1, 0, 0.5], atol=1e-12)
    assert found[3].isnan()


def test_curvature_along_a_vector_does_not_depend_on_its_length():
    half = frame(8, 8, 3)
    values = torch.linspace(-1, 6, 8, dtype=torch.float64)
    matrix = half @ torch.diag(values) @ half.T
    mixed = half[:, 0] + half[:, 7]
    vectors = torch.stack([half[:, 2] * 1e-4, half[:, 7] * 50, mixed, torch.zeros(8, dtype=torch.float64)], 1)
    found = curvature_along(from_dense(matrix), vectors)
    np.testing.assert_allclose(found[:3], [values[2], values[7], (values[0] + values[7]) / 2], atol=1e-12)
    assert found[3].isnan()
