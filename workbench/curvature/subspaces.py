"""Subspaces of sharp directions: how far two agree, how much of a vector lies inside one, and the curvature along a vector.

Beside every number stands what random directions would give, exactly: in a hundred thousand dimensions that is next to nothing, so
that a share of a per cent may be a thousand times chance.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from workbench.curvature.maps import SymmetricMap


def overlap(a: Float[Tensor, "n k"], b: Float[Tensor, "n m"]) -> float:
    """Mean squared cosine of the principal angles between the spans of orthonormal columns: 1 where one lies in the other."""
    return float((a.T @ b).double().square().sum()) / min(a.shape[1], b.shape[1])


def random_overlap(n: int, k: int, m: int) -> tuple[float, float, float]:
    """Mean and 95 % range of `overlap` where one of the subspaces is uniformly random.

    Mean max(k, m)/n and variance are exact; the range is that of the beta distribution with these two moments, which is the
    distribution itself where k or m is 1.
    """
    from scipy.stats import beta

    small, large = sorted((k, m))
    mean = large / n
    if large == n:
        return 1.0, 1.0, 1.0
    # Var tr(PQ) = 2 k m (n-k)(n-m) / (n^2 (n-1)(n+2)) for a random projection P of rank k and a fixed one of rank m.
    variance = 2 * k * m * (n - k) * (n - m) / (n**2 * (n - 1) * (n + 2)) / small**2
    total = mean * (1 - mean) / variance - 1
    low, high = beta.ppf([0.025, 0.975], mean * total, (1 - mean) * total)
    return mean, float(low), float(high)


def share_inside(vectors: Float[Tensor, "n c"], basis: Float[Tensor, "n k"]) -> Float[Tensor, " c"]:
    """Share of each column's squared norm inside the span of orthonormal columns; NaN for a column of zeros."""
    v = vectors.double()
    return (basis.double().T @ v).square().sum(0) / v.square().sum(0)


def random_share(n: int, k: int) -> tuple[float, float, float]:
    """Mean k/n and 95 % range of `share_inside` for a random vector: a beta distribution, exactly."""
    return random_overlap(n, k, 1)


def curvature_along(of: SymmetricMap, vectors: Float[Tensor, "n c"]) -> Float[Tensor, " c"]:
    """v^T A v / v^T v of each column: the second derivative of the loss per unit step that way; NaN for a column of zeros."""
    sizes = vectors.norm(dim=0)
    unit = vectors / sizes
    found = (unit * (of @ unit.nan_to_num())).double().sum(0)
    return found.where(sizes > 0, float("nan"))
