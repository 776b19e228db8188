"""Which eigenvalues stand apart from the bulk, and whether their eigenvectors are the directions of the classes.

Of a classifier with k classes about k or k - 1 eigenvalues stand apart [Sagun+17 1706.04454 §3.3; Papyan 2020 2008.11865].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from workbench.seeds import numpy_generator

GAP = 1.75
"""An outlier lies above a drop of at least this factor. Fixed on other seeds (100 to 102) than those of the labs' defaults."""
MOST = 20
"""Leading eigenvalues among which outliers are looked for; and never more than half of all."""
FLOOR = 1e-3
"""Share of the largest eigenvalue below which all is one bulk, negative eigenvalues with it."""
DRAWS = 100
"""Random subspaces of the control."""


@dataclass(frozen=True)
class Outliers:
    """How many eigenvalues stand apart, and how clearly."""

    count: int
    drop: float
    """Last outlier / first of the bulk; the largest drop there is where nothing stands apart."""


def count_outliers(
    eigenvalues: Float[np.ndarray, " m"], size: int | None = None, *, gap: float = GAP, most: int = MOST, floor: float = FLOOR
) -> Outliers:
    """The gap rule: outliers are all above the last drop lambda_i / lambda_(i+1) >= `gap` among the leading `most`.

    The bulk thins out gradually (its successive eigenvalues differ by a few per cent), so that the last large drop is its edge,
    while drops among the outliers themselves say nothing about it. Eigenvalues below `floor` times the largest count as
    that floor: tiny or negative ones make no drop of their own.

    Args:
        eigenvalues: in any order, the largest `most` + 1 among them.
        size: number of eigenvalues of the whole matrix, where only some are given.
        gap: the smallest drop that counts.
        most: where to look.
        floor: share of the largest.
    """
    ordered = np.sort(np.asarray(eigenvalues, dtype=np.float64))[::-1]
    look = min(most, (len(ordered) if size is None else size) // 2, len(ordered) - 1)
    if look < 1 or ordered[0] <= 0:
        return Outliers(0, 1.0)
    held = np.maximum(ordered[: look + 1], floor * ordered[0])
    drops = held[:-1] / held[1:]
    large = np.flatnonzero(drops >= gap)
    if len(large) == 0:
        return Outliers(0, float(drops.max()))
    return Outliers(int(large[-1]) + 1, float(drops[large[-1]]))


def span(directions: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n r"]:
    """An orthonormal basis of what the columns span, as far as they are independent; their lengths do not matter."""
    lengths = np.linalg.norm(directions, axis=0)
    unit = directions[:, lengths > 0] / lengths[lengths > 0]
    if unit.shape[1] == 0:
        return unit
    u, s, _ = np.linalg.svd(unit, full_matrices=False)
    return u[:, s > 1e-8 * s[0]]


def overlap(vectors: Float[np.ndarray, "n c"], directions: Float[np.ndarray, "n d"]) -> float:
    """Mean over orthonormal `vectors` of the share of their squared length in the span of `directions`; NaN without vectors.

    1 where the vectors lie in the span; rank / n on average where they have nothing to do with it.
    """
    if vectors.shape[1] == 0:
        return float("nan")
    return float(np.square(span(directions).T @ vectors).sum() / vectors.shape[1])


def random_overlap(vectors: Float[np.ndarray, "n c"], rank: int, seed: int, draws: int = DRAWS) -> Float[np.ndarray, " draws"]:
    """The control: `overlap` with random subspaces of `rank` dimensions; rank / n on average, exactly."""
    generator = numpy_generator(seed, "random subspaces", rank)
    return np.array([overlap(vectors, generator.standard_normal((len(vectors), rank))) for _ in range(draws)])


def attribution(vectors: Float[np.ndarray, "n c"], directions: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "c k"]:
    """Squared cosine of each eigenvector with each class's own direction: near 1 where it is that class's alone."""
    lengths = np.linalg.norm(directions, axis=0)
    return np.square(vectors.T @ (directions / np.where(lengths > 0, lengths, 1)))
