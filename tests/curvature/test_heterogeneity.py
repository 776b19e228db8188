"""Distance between spectra: the three properties that it must have, and closed forms on spectra with known bins."""

from __future__ import annotations

import math

import numpy as np
import pytest

from workbench.curvature.density import density
from workbench.curvature.heterogeneity import FLAT, RANK, Spectrum, binned, coarser, heterogeneity, jensen_shannon, ranked


def exact(values) -> Spectrum:
    values = np.asarray(values, dtype=np.float64)
    return Spectrum(values, np.full(len(values), 1 / len(values)), len(values))


@pytest.fixture
def some():
    rng = np.random.default_rng(0)
    return [exact(rng.normal(size=300) * np.exp(rng.normal(0, s, size=300))) for s in (0.1, 1, 3)]


def test_identical_copies_have_no_distance_and_neither_have_scaled_ones(some):
    for spectrum in some:
        copies = [spectrum, spectrum, exact(1e-3 * spectrum.nodes), exact(7.3e5 * spectrum.nodes)]
        np.testing.assert_array_equal(heterogeneity(copies), np.zeros((4, 4)))


def test_densities_that_share_no_bin_are_log_two_apart():
    p, q = np.zeros(21), np.zeros(21)
    p[15], q[[4, 20]] = 1, 0.5
    assert jensen_shannon(p, q) == pytest.approx(math.log(2), abs=1e-15)


def test_spectra_that_share_their_unit_alone_are_log_two_apart_but_for_its_mass():
    n = 100_000
    unit, rest = np.array([10, n - 10]) / n
    one, other = (Spectrum(np.array([1.0, x]), np.array([unit, rest]), n) for x in (0.1, -0.5))
    assert heterogeneity([one, other])[0, 1] == pytest.approx(rest * math.log(2), abs=1e-12)


def test_blocks_in_another_order_give_the_matrix_in_that_order(some):
    matrix = heterogeneity(some)
    order = [2, 0, 1]
    np.testing.assert_array_equal(heterogeneity([some[i] for i in order]), matrix[np.ix_(order, order)])
    np.testing.assert_array_equal(matrix, matrix.T)
    np.testing.assert_array_equal(np.diag(matrix), 0)
    off = matrix[np.triu_indices(3, 1)]
    assert (off > 0).all()
    assert (off < math.log(2)).all()


def test_nor_does_the_order_of_eigenvalues_matter_nor_how_they_are_lumped():
    values = np.repeat([5.0, 2.0, 0.3, -0.1, 0.0], [4, 8, 20, 8, 60])
    lumped = Spectrum(np.array([0.3, 5, 0, -0.1, 2]), np.array([20, 4, 60, 8, 8]) / 100, 100)
    shuffled = exact(np.random.default_rng(1).permutation(values))
    np.testing.assert_allclose(heterogeneity([exact(values), lumped, shuffled]), 0, atol=1e-15)


@pytest.mark.parametrize("rank", [1, 4, 5, 10, 11, 40])
def test_the_ranked_eigenvalue_is_that_of_the_sorted_list(rank):
    values = np.random.default_rng(2).normal(size=40)
    assert ranked(exact(values), rank) == np.sort(values)[::-1][rank - 1]


def test_a_block_with_fewer_eigenvalues_is_divided_by_its_last():
    assert ranked(exact([3.0, 2.0, 1.0]), RANK) == 1.0


def test_bins_keep_all_mass_and_put_zeros_in_the_middle_and_signs_on_their_sides():
    masses = binned(exact([1.0] * 10 + [0.5 * FLAT, -0.5 * FLAT, 0.0, -1.0, -1e9, 1e9 * FLAT]), 11)
    assert masses.sum() == pytest.approx(1)
    middle = len(masses) // 2
    unit = binned(exact([1.0] * 10 + [0.0] * 10))
    assert unit[middle] == pytest.approx(0.5)
    assert np.flatnonzero(unit[middle + 1 :]).tolist() == [3]  # a decade and a half above FLAT, two bins each
    negative = binned(exact([1.0] * 10 + [-1.0] * 10))
    np.testing.assert_array_equal(negative[:middle], negative[middle + 1 :][::-1])


def test_half_shared_mass_has_the_closed_form():
    a, b = exact([1.0] * 10 + [0.0] * 10), exact([1.0] * 10 + [-1.0] * 10)
    assert heterogeneity([a, b])[0, 1] == pytest.approx(math.log(2) / 2, abs=1e-15)


def test_what_has_no_positive_eigenvalue_of_that_rank_is_not_known():
    matrix = heterogeneity([exact([1.0] * 9 + [0.0] * 30), exact([1.0] * 20)])
    assert np.isnan(matrix[0]).all()
    assert matrix[1, 1] == 0


def test_a_coarser_quadrature_is_that_of_fewer_steps(rotated):
    of, _ = rotated(np.concatenate([[40.0, 9], np.random.default_rng(0).normal(size=60)]))
    long, short = (density(of, steps=steps, probes=2, seed=5) for steps in (24, 9))
    for probe in range(2):
        nodes, weights = coarser(long.nodes[probe], long.weights[probe], 9)
        np.testing.assert_allclose(nodes, short.nodes[probe], rtol=1e-8)
        np.testing.assert_allclose(weights, short.weights[probe], rtol=1e-6)
    few = coarser(np.array([1.0, 1.0, 1.0]), np.array([0.2, 0.3, 0.4]), 3)  # one eigenvalue: one step spans all
    np.testing.assert_allclose(few[0], [1.0])
    np.testing.assert_allclose(few[1], [0.9])
