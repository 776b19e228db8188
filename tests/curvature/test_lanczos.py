"""Extreme pairs: right, none skipped, each with the residual it really has."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import diags_array
from scipy.sparse.linalg import eigsh

from workbench.curvature.keeping import FolderKeeper
from workbench.curvature.lanczos import extreme_pairs
from workbench.curvature.maps import SymmetricMap, from_dense
from workbench.errors import UserError


def check(pairs, matrix):
    """What a set of pairs says of itself holds."""
    v, product = pairs.vectors.double().numpy(), matrix @ pairs.vectors.double().numpy()
    np.testing.assert_allclose(v.T @ v, np.eye(v.shape[1]), atol=1e-10)
    np.testing.assert_allclose(
        np.linalg.norm(product - v * pairs.values, axis=0), pairs.residuals, atol=1e-12 * pairs.scale + 1e-300
    )
    np.testing.assert_array_equal(pairs.converged, pairs.residuals <= pairs.tolerance * pairs.scale)


class Counted:
    """A map that counts its columns, and that can be killed."""

    def __init__(self, of, most=10**9):
        self.columns, self.most, self.of = 0, most, of

    def map(self):
        def apply(v):
            if self.columns + v.shape[1] > self.most:
                raise KeyboardInterrupt
            self.columns += v.shape[1]
            return self.of @ v

        return SymmetricMap(self.of.size, apply, self.of.dtype)


# --- right


def test_the_top_ten_of_the_recorded_model(recorded, diagonal):
    truth = recorded[::-1][:10]
    counted = Counted(diagonal(recorded))
    pairs = extreme_pairs(counted.map(), 10)
    np.testing.assert_allclose(pairs.values, truth, rtol=1e-6)
    assert (pairs.residuals <= 1e-6 * truth[0]).all()
    assert pairs.converged.all()
    assert pairs.scale == pytest.approx(truth[0], rel=1e-9)
    assert pairs.products == counted.columns <= 70
    check(pairs, diags_array(recorded))


@pytest.mark.parametrize("block", [1, 2, 5])
@pytest.mark.parametrize("basis", [None, 35])
@pytest.mark.parametrize("which", ["top", "bottom"])
def test_arpack_finds_the_same(rotated, which, basis, block):
    of, matrix = rotated(np.random.default_rng(1).standard_normal(150) ** 3)
    pairs = extreme_pairs(of, 8, which, block=block, basis=basis, tolerance=1e-9)
    twin, vectors = eigsh(of.linear_operator(), k=8, which={"top": "LA", "bottom": "SA"}[which], v0=np.ones(150))
    twin, vectors = (twin[::-1], vectors[:, ::-1]) if which == "top" else (twin, vectors)
    np.testing.assert_allclose(pairs.values, twin, rtol=1e-9)
    np.testing.assert_allclose(np.abs((pairs.vectors.numpy() * vectors).sum(0)), 1, rtol=1e-9)
    assert pairs.converged.all()
    check(pairs, matrix)


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_any_small_spectrum_of_any_multiplicities(data):
    """Few distinct values: the search meets invariant subspaces at once and has to go on from random vectors."""
    values = data.draw(st.lists(st.sampled_from([-3.0, -1.0, 0.0, 1e-3, 2.0, 5.0]), min_size=1, max_size=30))
    k, which = data.draw(st.integers(1, 12)), data.draw(st.sampled_from(["top", "bottom"]))
    q, _ = np.linalg.qr(np.random.default_rng(len(values)).standard_normal((len(values), len(values))))
    matrix = (q * values) @ q.T
    pairs = extreme_pairs(from_dense(torch.from_numpy(matrix)), k, which, confirm=True, seed=data.draw(st.integers(0, 5)))
    truth = sorted(values, reverse=which == "top")[:k]
    np.testing.assert_allclose(pairs.values, truth, atol=1e-9)
    assert pairs.converged.all()
    check(pairs, matrix)


# --- none skipped


@pytest.mark.parametrize("seed", range(5))
def test_both_copies_of_double_eigenvalues(rotated, seed):
    """Beside a bulk without gaps, so that no invariant subspace helps."""
    values = np.concatenate([[9, 9, 7, 6, 6, 5, 4.5, 4, 4, 3.5], np.linspace(-1, 2, 290)])
    of, _ = rotated(values)
    for k in (2, 4, 10):
        pairs = extreme_pairs(of, k, seed=seed)
        np.testing.assert_allclose(pairs.values, values[:k], rtol=1e-9)
        assert pairs.converged.all()
    # One vector sees one copy, until rounding breeds the other.
    np.testing.assert_allclose(extreme_pairs(of, 2, block=1, seed=seed).values, [9, 7], rtol=1e-9)


@pytest.mark.parametrize("block", [1, 2])
def test_a_confirming_search_finds_every_copy(rotated, block):
    values = np.concatenate([[9] * 5, [7, 6, 6, 6, 5], np.linspace(-1, 2, 290)])
    of, _ = rotated(values)
    plain, confirmed = (extreme_pairs(of, 4, block=block, confirm=x) for x in (False, True))
    np.testing.assert_allclose(plain.values[block], 7, rtol=1e-9)  # passed over
    assert not plain.confirmed
    np.testing.assert_allclose(confirmed.values, [9] * 4, rtol=1e-9)
    assert confirmed.confirmed
    assert confirmed.converged.all()


def test_an_invariant_subspace_is_no_end(diagonal):
    """The identity is invariant from the first vector on; so is a matrix of low rank after a few."""
    values = np.zeros(400)
    values[[3, 50, 51, 200, 301, 302, 303]] = [4, 2, 2, 1, 3, 3, 3]
    pairs = extreme_pairs(diagonal(values), 8)
    np.testing.assert_allclose(pairs.values, [4, 3, 3, 3, 2, 2, 1, 0], atol=1e-12)
    assert pairs.converged.all()
    assert pairs.confirmed
    ones = extreme_pairs(diagonal(np.ones(400)), 7)
    np.testing.assert_allclose(ones.values, np.ones(7), rtol=1e-12)
    assert ones.products < 60


# --- honest


def test_an_unsettled_bottom_is_flagged(recorded, diagonal):
    """The bottom value is far harder; what 60 products give is wrong, and said to be."""
    short = extreme_pairs(diagonal(recorded), 2, "bottom", most_products=60)
    assert short.products <= 60
    assert short.values[0] == pytest.approx(recorded[0], abs=short.residuals[0])
    assert short.values[0] > 0.99 * recorded[0]
    assert not short.converged.any()
    check(short, diags_array(recorded))
    long = extreme_pairs(diagonal(recorded), 2, "bottom")
    assert long.converged.all()
    np.testing.assert_allclose(long.values, recorded[:2], rtol=1e-6)


def test_float32_stops_at_its_own_precision(recorded, diagonal):
    pairs = extreme_pairs(diagonal(recorded, torch.float32), 5, tolerance=1e-9)
    assert pairs.tolerance == 1e-5
    assert pairs.converged.all()
    assert pairs.vectors.dtype == torch.float32
    np.testing.assert_allclose(pairs.values, recorded[::-1][:5], rtol=1e-6)
    # Residuals are what the products give, not what the recurrence believes.
    rough = SymmetricMap(5296, lambda v: diagonal(recorded) @ v + 0.01 * torch.sin(1e6 * v))
    assert not extreme_pairs(rough, 3, most_products=80).converged.any()


def test_few_products_are_really_few(recorded, diagonal):
    counted = Counted(diagonal(recorded))
    pairs = extreme_pairs(counted.map(), 10, most_products=30)
    assert pairs.products == counted.columns <= 30
    assert not pairs.converged.all()


# --- edges


def test_small_zero_and_wide(diagonal):
    for n in (1, 2, 3):
        pairs = extreme_pairs(diagonal(np.arange(n)), 5, block=4)
        np.testing.assert_allclose(pairs.values, np.arange(n)[::-1], atol=1e-12)
        assert pairs.vectors.shape == (n, n)
        assert pairs.confirmed
    zero = extreme_pairs(diagonal(np.zeros(100)), 3)
    np.testing.assert_array_equal(zero.values, 0)
    np.testing.assert_array_equal(zero.residuals, 0)
    assert zero.converged.all()


def test_a_warm_start_saves_products(recorded, diagonal):
    cold = extreme_pairs(diagonal(recorded), 3, basis=20)
    near = recorded * (1 + 1e-3 * np.sin(np.arange(len(recorded))))
    warm = extreme_pairs(diagonal(near), 3, start=cold.vectors, basis=20)
    assert warm.products < 0.8 * extreme_pairs(diagonal(near), 3, basis=20).products
    np.testing.assert_allclose(warm.values, np.sort(near)[::-1][:3], rtol=1e-9)
    exact = extreme_pairs(diagonal(recorded), 3, start=cold.vectors[:, [0, 0, 1, 2]])  # dependent columns do no harm
    np.testing.assert_allclose(exact.values, cold.values, rtol=1e-9)


@pytest.mark.parametrize("null", [0, 60_000])
def test_a_start_in_another_eigenvector_does_not_hide_the_first(recorded, diagonal, null):
    """Nor where a random vector sees so little of the matrix at first that it looks settled."""
    of = diagonal(np.concatenate([recorded, np.zeros(null)]))
    second = torch.zeros(of.size, 1, dtype=torch.float64)
    second[len(recorded) - 2] = 1 + 1e-3
    second[7] = 1e-9
    np.testing.assert_allclose(extreme_pairs(of, 1, start=second).values, recorded[-1:], rtol=1e-9)


def test_nor_where_the_first_stands_close_to_a_bulk(diagonal):
    """There a random vector takes long to rise, which its residual shows."""
    of = diagonal(np.concatenate([np.linspace(0, 1, 3000), [1.01]]))
    last = torch.zeros(of.size, 1, dtype=torch.float64)
    last[-2], last[7] = 1, 1e-9
    np.testing.assert_allclose(extreme_pairs(of, 1, start=last).values, [1.01], rtol=1e-9)


def test_the_same_seed_gives_the_same_bits(recorded, diagonal):
    once, again, other = (extreme_pairs(diagonal(recorded), 4, seed=s) for s in (0, 0, 1))
    assert torch.equal(once.vectors, again.vectors)
    assert not torch.equal(once.vectors, other.vectors)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"k": 0}, "k = 0"),
        ({"k": 3, "block": 0}, "block = 0"),
        ({"k": 3, "basis": 5}, "basis = 5"),
        ({"k": 1, "tolerance": 0.0}, "tol"),
    ],
)
def test_what_cannot_be_is_said(diagonal, options, said):
    with pytest.raises(UserError, match=said):
        extreme_pairs(diagonal(np.arange(50)), **options)


# --- killed and continued


HARD: dict = {"k": 6, "basis": 20, "confirm": True, "seed": 3}
"""A search with restarts of a small basis, and a confirming search."""


def test_a_confirming_search_ends_at_the_edge_of_a_bulk(hard):
    """Where the last wanted value has others close below, and the basis has to be restarted within the search."""
    of, whole = hard
    np.testing.assert_allclose(whole.values, [9, 9, 9, 7, 6, 3], rtol=1e-9)
    assert whole.products < 1.3 * extreme_pairs(of, **HARD | {"confirm": False}).products


@pytest.fixture(scope="module")
def hard(rotated):
    of, _ = rotated(np.concatenate([[9, 9, 9, 7, 6], np.linspace(-1, 3, 295)]))
    return of, extreme_pairs(of, **HARD)


@pytest.mark.parametrize("most", [7, 23, 95, 145, 200, 215, 232])
def test_a_killed_search_goes_on_bit_for_bit(hard, memory, most):
    of, whole = hard
    assert whole.products > 235
    assert whole.confirmed
    with pytest.raises(KeyboardInterrupt):
        extreme_pairs(Counted(of, most).map(), keeper=memory, **HARD)
    rest = Counted(of)
    resumed = extreme_pairs(rest.map(), keeper=memory, **HARD)
    assert rest.columns <= whole.products - most + 14  # little is done twice
    for name in ("values", "residuals", "converged", "products", "confirmed"):
        np.testing.assert_array_equal(getattr(resumed, name), getattr(whole, name))
    assert torch.equal(resumed.vectors, whole.vectors)


def test_what_is_done_is_not_done_again(hard, tmp_path):
    of, whole = hard
    keeper = FolderKeeper(tmp_path, "abc-")
    extreme_pairs(of, keeper=keeper, **HARD)
    assert [file.name for file in tmp_path.iterdir()] == ["abc-pairs-top.safetensors"]  # the state is forgotten
    again = extreme_pairs(Counted(of, 0).map(), keeper=keeper, **HARD)
    assert torch.equal(again.vectors, whole.vectors)
    for name in ("values", "residuals", "converged", "products", "tolerance", "scale", "confirmed"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))


def test_millions_of_parameters_in_single_precision():
    """Sums over so many numbers of one sign are off by 1e-4 in single precision, and so would be lengths, and all that rests on them."""
    n = 2_000_000
    same = torch.full((n,), n**-0.5)
    slope = torch.linspace(-1, 1, n) * (3 / n) ** 0.5
    bulk = torch.linspace(-1, 1, n)

    def times(v):
        outer = sum(x[:, None] * (size * x.double() @ v.double()).float() for x, size in ((same, 100.0), (slope, 30.0)))
        return outer + bulk[:, None] * v

    pairs = extreme_pairs(SymmetricMap(n, times, torch.float32), 2, block=1)
    assert pairs.converged.all()
    # bulk takes `same` to `slope` and back: [[100, c], [c, 30]] with c = same.bulk.slope = 1/sqrt 3, and what lies further out
    inner = np.linalg.eigvalsh([[100, 3**-0.5], [3**-0.5, 30]])[::-1]
    np.testing.assert_allclose(pairs.values, inner, rtol=1e-3)
    lengths = pairs.vectors.double().norm(dim=0)
    torch.testing.assert_close(lengths, torch.ones(2, dtype=torch.float64), rtol=1e-6, atol=0)
