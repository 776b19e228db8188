"""Stochastic traces: unbiased, exact where they must be, and honest about their scatter."""

import numpy as np
import pytest
import torch

from workbench.curvature.maps import SymmetricMap, from_dense
from workbench.curvature.traces import frobenius, hutch_plus_plus, hutchinson, hutchinson_diagonal, xtrace
from workbench.errors import UserError

ESTIMATORS = [hutchinson, hutch_plus_plus, xtrace]
LOW_RANK = [hutch_plus_plus, xtrace]


@pytest.fixture(scope="module")
def low_rank():
    factors = np.random.default_rng(0).standard_normal((200, 20))
    return torch.from_numpy(factors @ factors.T)


@pytest.fixture(scope="module")
def indefinite():
    matrix = np.random.default_rng(1).standard_normal((24, 24))
    return torch.from_numpy((matrix + matrix.T) / 2 + np.diag(np.linspace(-3, 8, 24)))


def counted(matrix):
    columns = []
    return from_dense(matrix).watched(columns.append), columns


@pytest.mark.parametrize("estimate", LOW_RANK)
def test_low_rank_is_found_exactly(low_rank, estimate):
    truth = float(low_rank.trace())
    for seed in range(5):
        found = estimate(from_dense(low_rank), 60, seed=seed)
        assert found.value == pytest.approx(truth, rel=1e-10)
        assert found.standard_error < 1e-9 * truth
        assert abs(found.value - truth) < 1e-6 * abs(hutchinson(from_dense(low_rank), 60, seed=seed).value - truth)


@pytest.mark.slow
@pytest.mark.parametrize("estimate", ESTIMATORS)
def test_unbiased_over_2000_draws(indefinite, estimate):
    draws = [estimate(from_dense(indefinite), 12, seed=seed) for seed in range(2000)]
    values = np.array([draw.value for draw in draws])
    z = (values.mean() - float(indefinite.trace())) / (values.std(ddof=1) / np.sqrt(len(values)))
    assert abs(z) < 4
    # The standard error is that of the value, in the mean: XTrace's samples share products, so only roughly so.
    claimed = np.sqrt(np.mean([draw.standard_error**2 for draw in draws]))
    assert claimed == pytest.approx(values.std(), rel=0.5 if estimate is xtrace else 0.08)


def test_xtrace_is_its_definition(indefinite):
    """Leave one out naively: an orthonormal basis of the other products, and the rest of the sample, resphered."""
    from workbench.curvature.maps import random_columns

    of, matrix, n, count = from_dense(indefinite), indefinite.numpy(), 24, 6
    omega = random_columns(n, count, 7, "xtrace", like=of).numpy()
    samples = []
    for i in range(count):
        q, _ = np.linalg.qr(np.delete(matrix @ omega, i, axis=1))
        rest = omega[:, i] - q @ (q.T @ omega[:, i])
        samples.append(np.trace(q.T @ matrix @ q) + (n - count + 1) * (rest @ matrix @ rest) / (rest @ rest))
    found = xtrace(of, 2 * count, seed=7)
    assert found.value == pytest.approx(np.mean(samples), rel=1e-10)
    assert found.standard_error == pytest.approx(np.std(samples, ddof=1) / np.sqrt(count), rel=1e-10)


@pytest.mark.parametrize(("estimate", "asked", "used"), [(hutchinson, 70, 70), (hutch_plus_plus, 61, 61), (xtrace, 61, 60)])
def test_products_are_counted(low_rank, estimate, asked, used):
    of, columns = counted(low_rank)
    assert estimate(of, asked).products == sum(columns) == used


@pytest.mark.parametrize("estimate", LOW_RANK)
def test_more_products_than_rows_are_exact(indefinite, estimate):
    found = estimate(from_dense(indefinite), 200)
    assert found.value == pytest.approx(float(indefinite.trace()), rel=1e-10)
    assert found.standard_error == 0


@pytest.mark.parametrize("estimate", ESTIMATORS)
def test_zero(estimate):
    found = estimate(from_dense(torch.zeros(30, 30, dtype=torch.float64)), 12)
    assert found.value == found.standard_error == 0


def test_signs_see_a_diagonal_exactly():
    of = from_dense(torch.diag(torch.arange(40, dtype=torch.float64)))
    assert hutchinson(of, 5).value == pytest.approx(780, rel=1e-14)
    diagonal = hutchinson_diagonal(of, 40)
    np.testing.assert_allclose(diagonal.values, np.arange(40), atol=1e-13)
    np.testing.assert_allclose(diagonal.standard_errors, 0, atol=1e-13)


def test_the_diagonal_is_within_its_errors(indefinite):
    found = hutchinson_diagonal(from_dense(indefinite), 500)
    z = ((found.values - indefinite.diagonal()) / found.standard_errors).numpy()
    assert np.abs(z).max() < 4.5
    assert 0.5 < z.std() < 1.5
    off = (indefinite - torch.diag(indefinite.diagonal())).square().sum(1) / 500  # the variance in closed form
    np.testing.assert_allclose(found.standard_errors.square(), off, rtol=0.35)


def test_the_diagonal_is_the_mean_of_its_samples(indefinite):
    """Gathered over several chunks of columns."""
    columns = []

    def apply(v):
        columns.append(v)
        return indefinite @ v

    found = hutchinson_diagonal(SymmetricMap(24, apply), 70)
    z = torch.cat(columns, dim=1)
    samples = z * (indefinite @ z)
    assert z.shape == (24, 70)
    assert set(z.unique().tolist()) == {-1.0, 1.0}
    np.testing.assert_allclose(found.values, samples.mean(1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.standard_errors, samples.std(1) / 70**0.5, rtol=1e-12)


def test_the_frobenius_norm_is_within_its_error(indefinite):
    truth = float(indefinite.norm())
    draws = [frobenius(from_dense(indefinite), 40, seed=seed) for seed in range(200)]
    values = np.array([draw.value for draw in draws])
    assert values.mean() == pytest.approx(truth, rel=0.01)
    assert np.mean([draw.standard_error for draw in draws]) == pytest.approx(values.std(), rel=0.2)


def test_one_sample_has_no_error(indefinite):
    assert np.isnan(hutchinson(from_dense(indefinite), 1).standard_error)
    assert hutchinson_diagonal(from_dense(indefinite), 1).standard_errors.isnan().all()


@pytest.mark.parametrize("estimate", [*ESTIMATORS, hutchinson_diagonal, frobenius])
def test_too_few_products_are_refused(indefinite, estimate):
    with pytest.raises(UserError, match="products = 0"):
        estimate(from_dense(indefinite), 0)
