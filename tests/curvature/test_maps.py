"""Maps made of maps, against the matrices that they stand for."""

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh

from workbench.curvature.maps import SymmetricMap, asymmetry, dots, from_dense, lengths, random_columns


@pytest.fixture(scope="module")
def matrix():
    raw = torch.from_numpy(np.random.default_rng(0).standard_normal((40, 40)))
    return (raw + raw.T) / 2


@pytest.fixture(scope="module")
def of(matrix):
    return from_dense(matrix)


def test_products_with_a_vector_and_with_columns(of, matrix):
    v = torch.from_numpy(np.random.default_rng(1).standard_normal((40, 3)))
    assert torch.allclose(of @ v, matrix @ v, rtol=1e-13)
    assert (of @ v[:, 0]).shape == (40,)
    assert torch.allclose(of @ v[:, 0], matrix @ v[:, 0], rtol=1e-13)


@pytest.mark.parametrize("chunk", [1, 7, 40, 100])
def test_dense_gives_the_matrix_back(of, matrix, chunk):
    assert torch.equal(of.dense(chunk), matrix)


def test_restricted_is_the_block(of, matrix):
    at = torch.tensor([5, 0, 31])
    block = of.restricted(at)
    assert block.size == 3
    assert torch.equal(block.dense(), matrix[at][:, at])


def test_inside_is_the_matrix_in_a_basis(of, matrix):
    basis, _ = torch.linalg.qr(torch.from_numpy(np.random.default_rng(2).standard_normal((40, 6))))
    assert of.inside(basis).size == 6
    assert torch.allclose(of.inside(basis).dense(), basis.T @ matrix @ basis, atol=1e-13)


def test_scaled_and_differences(of, matrix):
    by = torch.linspace(0.1, 3, 40, dtype=torch.float64)
    assert torch.allclose(of.scaled(by).dense(), torch.diag(by) @ matrix @ torch.diag(by), atol=1e-14)
    other = torch.diag(by)
    assert torch.allclose((of - from_dense(other)).dense(), matrix - other, atol=1e-14)


def test_watched_tells_the_columns_and_changes_nothing(of, matrix):
    seen = []
    watched = of.watched(seen.append)
    assert torch.equal(watched.dense(16), matrix)
    _ = watched @ torch.ones(40, dtype=torch.float64)
    assert seen == [16, 16, 8, 1]


def test_scipy_takes_it(of, matrix):
    operator = of.linear_operator()
    assert operator.dtype == np.float64
    v = np.random.default_rng(3).standard_normal((40, 2))
    for shaped in (v, v[:, 0], v[:, :1]):
        product = operator @ shaped
        assert product.shape == shaped.shape
        np.testing.assert_allclose(product, matrix.numpy() @ shaped, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        np.sort(eigsh(operator, k=4, which="LA")[0]), np.linalg.eigvalsh(matrix.numpy())[-4:], rtol=1e-10
    )
    assert from_dense(matrix.float()).linear_operator().dtype == np.float32


def test_asymmetry_is_rounding_for_a_symmetric_map_and_large_for_any_other(of, matrix):
    assert asymmetry(of) < 1e-15
    skew = torch.zeros(40, 40, dtype=torch.float64)
    skew[3, 17] = 1e-3 * float(matrix.norm())
    for seed in range(5):
        assert asymmetry(from_dense(matrix + skew), seed) > 1e-5
    assert asymmetry(from_dense(torch.zeros(5, 5))) == 0


def test_a_map_that_changes_from_call_to_call_is_not_symmetric(matrix):
    """Such as dropout: one call for all columns would hide it, columns on their own do not."""
    generator = torch.Generator().manual_seed(0)
    noisy = SymmetricMap(
        40, lambda v: torch.stack([(1 + 0.1 * torch.randn((), generator=generator)) * (matrix @ c) for c in v.T], 1)
    )
    assert asymmetry(noisy) > 1e-3


def test_random_columns_are_normal_and_a_function_of_seed_and_labels(of):
    once, again = (random_columns(2000, 3, 5, "a", 1, like=of) for _ in range(2))
    assert torch.equal(once, again)
    for other in (random_columns(2000, 3, 6, "a", 1, like=of), random_columns(2000, 3, 5, "a", 2, like=of)):
        assert abs(float(torch.corrcoef(torch.stack([once.flatten(), other.flatten()]))[0, 1])) < 0.06
    assert float(once.mean()) == pytest.approx(0, abs=0.06)
    assert float(once.std()) == pytest.approx(1, abs=0.05)
    single = from_dense(torch.zeros(1, 1, dtype=torch.float32))
    assert torch.equal(random_columns(2000, 3, 5, "a", 1, like=single), once.float())


def test_sums_over_millions_in_single_precision_are_those_in_double():
    """A plain product of these is off by more (4e-6): its running sums are so large that each number is rounded as it comes in."""
    a = torch.rand(2, 2_000_000, generator=torch.Generator().manual_seed(0)) + 1
    exact = a.double() @ a.double().T
    torch.testing.assert_close(dots(a, a), exact, rtol=2e-6, atol=0)
    torch.testing.assert_close(lengths(a, 1), exact.diagonal().sqrt(), rtol=1e-9, atol=0)
