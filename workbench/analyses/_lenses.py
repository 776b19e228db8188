"""What the lenses share: places of any prompt, many means with their intervals at once, and numbers of a headline."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from workbench.measures import DRAWS, derived
from workbench.results import Metric
from workbench.statistics import bootstrap_mean


def means(values: Float[np.ndarray, "n cells"], seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means over examples with the ends of their 95 % bootstrap intervals, `[cells]` each; all cells see the same draws."""
    low, high = np.percentile(bootstrap_mean(values, DRAWS, seed), [2.5, 97.5], axis=0)
    return values.mean(0), low, high


def ratio_metric(
    name: str, part: Float[np.ndarray, " n"], whole: Float[np.ndarray, " n"], seed: int, unit: str, least: float = 0.0
) -> Metric:
    """The ratio of two means over the same examples; undefined where the size of the second is not above `least`."""
    value = float(part.mean() / whole.mean()) if abs(float(whole.mean())) > least else float("nan")
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = bootstrap_mean(part, DRAWS, seed) / bootstrap_mean(whole, DRAWS, seed)
    return derived(name, value, draws, len(part), unit)
