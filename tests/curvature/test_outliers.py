"""The gap rule on spectra whose outliers are known, and overlaps on subspaces whose angles are."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.curvature.outliers import FLOOR, GAP, attribution, count_outliers, overlap, random_overlap, span


def bulk(n=200, top=1.0):
    return top * np.linspace(1, 0.01, n)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_planted_outliers_are_counted(k):
    found = count_outliers(np.concatenate([bulk(), np.linspace(GAP + 0.25, 6, k)]))
    assert found.count == k
    assert found.drop == pytest.approx(GAP + 0.25)


def test_a_bulk_alone_has_none():
    assert count_outliers(bulk()).count == 0
    assert count_outliers(np.ones(50)).count == 0
    assert count_outliers(np.append(bulk(), GAP - 0.01)).count == 0


def test_drops_among_outliers_do_not_hide_the_lower_ones():
    assert count_outliers(np.concatenate([bulk(), [2, 2.2, 100]])).count == 3


def test_scale_order_and_tiny_negative_values_do_not_matter():
    values = np.concatenate([bulk(), [3, 4]])
    expected = count_outliers(values)
    assert count_outliers(1e-6 * values[::-1]).count == expected.count
    noise = -1e-9 * np.arange(300)
    assert count_outliers(np.concatenate([values, noise])) == expected


def test_below_the_floor_all_is_one_bulk():
    rank_two = np.concatenate([[1.0, 0.5], np.geomspace(FLOOR / 2, 1e-30, 40), -np.geomspace(1e-30, FLOOR / 2, 40)])
    assert count_outliers(rank_two).count == 2
    assert count_outliers(np.zeros(9)).count == 0
    assert count_outliers(-np.ones(9)).count == 0


def test_leading_values_alone_are_enough_if_the_size_is_told():
    values = np.concatenate([[9.0, 5.0], bulk(21)])
    assert count_outliers(values[:23], size=500).count == 2
    assert count_outliers(np.array([9.0, 5.0, 1.0, 1.0]), size=4).count == 2  # at most half of all
    assert count_outliers(np.array([9.0, 8.0, 7.0, 1.0])).count == 0
    assert count_outliers(np.array([3.0])).count == 0


def basis(n, *at):
    return np.eye(n)[:, list(at)]


def test_overlap_is_the_squared_cosine():
    angle = 0.3
    tilted = np.cos(angle) * basis(5, 0) + np.sin(angle) * basis(5, 4)
    assert overlap(tilted, basis(5, 0, 1)) == pytest.approx(np.cos(angle) ** 2)
    assert overlap(basis(5, 0, 4), basis(5, 0, 1)) == pytest.approx(0.5)
    assert overlap(basis(5, 0, 1), 1e-12 * basis(5, 1, 0) @ [[1.0, 1], [1, -1]]) == pytest.approx(
        1
    )  # neither length nor basis counts
    assert np.isnan(overlap(basis(5), basis(5, 0)))


def test_dependent_and_zero_directions_span_no_more():
    directions = np.column_stack([basis(6, 0, 1), basis(6, 0, 1).sum(1), np.zeros(6)])
    assert span(directions).shape == (6, 2)
    assert span(np.zeros((6, 2))).shape == (6, 0)
    assert overlap(basis(6, 2), np.zeros((6, 2))) == 0


def test_random_subspaces_overlap_by_their_share_of_the_dimensions():
    draws = random_overlap(basis(40, 0, 1, 2), 10, seed=0, draws=400)
    assert draws.mean() == pytest.approx(10 / 40, abs=4 * draws.std() / 20)
    assert np.array_equal(draws[:5], random_overlap(basis(40, 0, 1, 2), 10, seed=0, draws=5))


def test_attribution_is_per_class():
    shares = attribution(basis(4, 0, 1), np.column_stack([3 * basis(4, 0), basis(4, 0) + basis(4, 1), np.zeros(4)]))
    np.testing.assert_allclose(shares, [[1, 0.5, 0], [0, 0.5, 0]])
