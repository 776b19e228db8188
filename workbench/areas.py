"""Areas under the ROC curve: how well scores rank, with intervals in closed form, by resampling, and for differences."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from workbench.statistics import Interval, normal_quantile, resampling

_EDGE = 1e-12


def auroc(scores: NDArray[np.floating], labels: NDArray[np.bool_]) -> Interval:
    """Chance that a text with the feature gets the larger number, ties counted half, with Newcombe's interval.

    The interval [Newcombe 2006, Statistics in Medicine 25, method 5] has a width also at an area of 1, unlike a bootstrap.
    Both classes must be there.
    """
    area = area_value(scores, labels)
    return Interval(area, *area_interval(area, int(labels.sum()), int((~labels).sum())))


def area_value(scores: NDArray[np.floating], labels: NDArray[np.bool_]) -> float:
    """The area alone."""
    from scipy.stats import rankdata

    m, n = int(labels.sum()), int((~labels).sum())
    ranks = cast(NDArray[np.float64], rankdata(scores))
    return float((ranks[labels].sum() - m * (m + 1) / 2) / (m * n))


def area_interval(area: float, m: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Areas that an observed one is not significantly away from; their standard error is that of the area looked at."""
    from scipy.optimize import brentq

    z = normal_quantile(confidence)

    def error(a: float) -> float:
        rest = ((m + n) / 2 - 1) * ((1 - a) / (2 - a) + a / (1 + a))
        return z * math.sqrt(max(0.0, a * (1 - a) * (1 + rest) / (m * n)))

    inside = min(max(area, _EDGE), 1 - _EDGE)  # at 0 and 1 the standard error is 0, and the ends are trivial solutions
    low = 0.0 if area <= _EDGE else brentq(lambda a: area - a - error(a), 0.0, inside)
    high = 1.0 if area >= 1 - _EDGE else brentq(lambda a: a - area - error(a), inside, 1.0)
    return float(cast(float, low)), float(cast(float, high))


def area_draws(
    scores: Float[np.ndarray, " n"], labels: Bool[np.ndarray, " n"], draws: int, seed: int
) -> Float[np.ndarray, " draws"]:
    """Areas of resampled texts; NaN where a draw lacks a class.

    The same `seed` and number of texts give the same resampling, so that differences may be taken draw by draw.
    """
    order = np.argsort(scores, kind="stable")
    ranked, positive = scores[order], labels[order]
    weights = resampling(len(scores), draws, seed)[:, order]
    below = np.cumsum(np.where(positive, 0.0, weights), axis=1)
    below = np.concatenate([np.zeros((draws, 1)), below], axis=1)  # weight of the negatives before each rank
    first, last = np.searchsorted(ranked, ranked, "left"), np.searchsorted(ranked, ranked, "right")
    won = (below[:, first] + below[:, last]) / 2  # of ties half
    yes = np.where(positive, weights, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (won * yes).sum(1) / (yes.sum(1) * below[:, -1])
