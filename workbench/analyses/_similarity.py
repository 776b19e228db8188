"""Similarity of two representations of the same texts: linear CKA and orthogonal Procrustes, with what each text does to them.

All are of centred activations `[n, width]`, invariant to rotation and to one scale factor, and 1 for equal ones. The
bootstrap of the analyses takes the statistics to first order in the texts' weights: one matrix product for all draws, where an
exact one would fit each draw anew.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

CONSTANT = 1e-8
"""Activations whose spread is below this share of their size are the same in all texts but for rounding."""


@dataclass(frozen=True)
class Similar:
    """A similarity and the influence of each text on it (mean 0): resampled texts change it by the mean of theirs."""

    value: float
    influence: Float[np.ndarray, " n"]


def centred(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Activations less their mean, in float64; zero where they vary by rounding alone."""
    wide = x.astype(np.float64)
    out = wide - wide.mean(0)
    return out if np.abs(out).max(initial=0) > CONSTANT * np.abs(wide).max(initial=0) else np.zeros_like(out)


def unbiased_hsic(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n e"]) -> tuple[float, Float[np.ndarray, " n"]]:
    """HSIC_1 [Song+12 eq. 5] of the linear kernels of centred activations, and the same without each of the texts.

    No Gram matrix is built: with K = x x' and its diagonal set to zero, tr(KL) = |x'y|^2 - sum p q, 1'K1 = -sum p and
    1'KL1 = sum p q, where p and q are the squared norms of the rows. O(n d e) for the value and all leave-one-outs together.
    """
    n = len(x)
    cross = x.T @ y
    p, q = (x**2).sum(1), (y**2).sum(1)
    pq, through = float(p @ q), ((x @ cross) * y).sum(1)
    whole = _hsic(n, float((cross**2).sum()) - pq, float(p.sum() * q.sum()), pq)
    # Without text i the sums of the others are -x_i and -y_i: row sums of its Gram matrix are -(x_j x_i + p_j).
    trace = (cross**2).sum() - 2 * through + 2 * p * q - pq
    total = (2 * p - p.sum()) * (2 * q - q.sum())
    both = through + x @ (q @ x) + y @ (p @ y) + pq - 4 * p * q
    return whole, _hsic(n - 1, trace, total, both)


def _hsic(n: int, trace: Any, total: Any, both: Any) -> Any:
    """The estimator from tr(KL), 1'K1 1'L1 and 1'KL1; numbers or arrays of them."""
    return (trace + total / ((n - 1) * (n - 2)) - 2 / (n - 2) * both) / (n * (n - 3))


def cka(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n e"]) -> Similar:
    """Linear CKA [Kornblith+19] with unbiased HSIC [Nguyen+21]: 0 on average for independent rows whatever n, at most 1.

    Influences are jackknife pseudo-values from the exact leave-one-outs. NaN where one of the two does not vary.
    """
    (xy, xy_less), (xx, xx_less), (yy, yy_less) = unbiased_hsic(x, y), unbiased_hsic(x, x), unbiased_hsic(y, y)
    if not (xx > 0 and yy > 0):
        return Similar(math.nan, np.full(len(x), math.nan))
    less = xy_less / np.sqrt(xx_less * yy_less)
    return Similar(xy / math.sqrt(xx * yy), (len(x) - 1) * (less.mean() - less))


def biased_cka(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n e"]) -> float:
    """Linear CKA as first defined: |x'y|^2 / (|x'x| |y'y|). Of independent rows it is about d / n, not 0."""
    xy, xx, yy = (float(np.linalg.norm(a.T @ b)) for a, b in ((x, y), (x, x), (y, y)))
    return xy**2 / (xx * yy) if xx * yy > 0 else math.nan


def procrustes(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n e"]) -> Similar:
    """|x'y|_* / (|x| |y|): 1 - d^2 / 2 of the distance after the best rotation; its arc cosine is a metric [Williams+21].

    Of independent rows it is not 0: it falls with n as the square root of width / n. NaN where one of the two does not vary.
    """
    size = float(np.linalg.norm(x) * np.linalg.norm(y))
    if size == 0:
        return Similar(math.nan, np.full(len(x), math.nan))
    left, values, right = np.linalg.svd(x.T @ y, full_matrices=False)
    kept = values > 1e-10 * values[0]
    value = float(values.sum()) / size
    along = ((x @ left[:, kept]) * (y @ right[kept].T)).sum(1) / values.sum()
    share = ((x**2).sum(1) / (x**2).sum() + (y**2).sum(1) / (y**2).sum()) / 2
    return Similar(value, len(x) * value * (along - share))


MEASURES = {"cka": cka, "procrustes": procrustes}
