"""Curvature of a mean loss is a number of the examples it is the mean over: the same on several independent sets, with t-intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from workbench.examples import Examples
from workbench.measures import DRAWS, draw, shares, trained_share
from workbench.results import Metric
from workbench.seeds import numpy_generator
from workbench.subjects import Pair

Bounds = tuple[float, float]
ANY: Bounds = (-math.inf, math.inf)
SHARE: Bounds = (0.0, 1.0)
POSITIVE: Bounds = (0.0, math.inf)
MOST = 60.0
"""Logarithm of the largest end of an interval of a ratio: two sets have Cauchy's tails, which overflow."""


@dataclass(frozen=True)
class ExampleSets:
    """Both abilities' test texts, O_FT where it was trained, parted into sets of equal size that share no draw."""

    sets: dict[str, tuple[Examples, ...]]
    """By role, `pt` and `ft`."""
    capabilities: dict[str, str]
    batch: int
    """Examples of one set: the loss is the mean over so many."""

    @property
    def count(self) -> int:
        """How many sets."""
        return len(self.sets["pt"])

    def at(self, role: str) -> dict[str, Any]:
        """Columns of every table: whose loss, and on how many examples and sets it rests."""
        sets = {"batch": self.batch, "sets": self.count}
        return {"role": role, "capability": self.capabilities[role], **sets}


def example_sets(pair: Pair, n: int, count: int) -> ExampleSets:
    """`n` test examples per ability in `count` sets; what does not part evenly is left out."""
    texts = {"pt": (pair.capability, shares(pair, pair.capability)[0]), "ft": (pair.tuned_on, trained_share(pair))}
    size = n // count
    sets: dict[str, tuple[Examples, ...]] = {}
    for role, (capability, share) in texts.items():
        drawn = draw(pair, capability, share, n)
        sets[role] = tuple(drawn[i * size : (i + 1) * size] for i in range(count))
    return ExampleSets(sets, {role: capability for role, (capability, _) in texts.items()}, size)


def interval(values: Float[np.ndarray, " sets"], bounds: Bounds = ANY) -> tuple[float, float, float]:
    """Mean and 95 % t-interval over independent sets, cut at what the number can be; no width where there is one set."""
    mean, half = float(np.mean(values)), 0.0
    if len(values) > 1:
        from scipy.special import stdtrit

        half = float(stdtrit(len(values) - 1, 0.975)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, min(mean, max(bounds[0], mean - half)), max(mean, min(bounds[1], mean + half))


def row(values: Float[np.ndarray, " sets"], n: int, unit: str, bounds: Bounds = ANY) -> dict[str, Any]:
    """`value low high n unit` of a table."""
    value, low, high = interval(values, bounds)
    return {"value": value, "low": low, "high": high, "n": n, "unit": unit}


def metric(name: str, values: Float[np.ndarray, " sets"], n: int, unit: str, bounds: Bounds = ANY) -> Metric:
    """A headline number; its draws follow the same t-distribution. Undefined where a set has no number."""
    if not np.isfinite(values).all():
        return Metric(name, math.nan, math.nan, math.nan, n, unit, "undefined", draws=(math.nan,) * DRAWS)
    value, low, high = interval(values, bounds)
    return Metric(name, value, low, high, n, unit, draws=_rounded(np.clip(_draws(name, values), *bounds)))


def ratio(name: str, values: Float[np.ndarray, " sets"], n: int, unit: str) -> Metric:
    """The geometric mean of ratios that each set has, its t-interval on the log scale; undefined where one is not positive."""
    if not (np.isfinite(values).all() and (values > 0).all()):
        return Metric(name, math.nan, math.nan, math.nan, n, unit, "undefined", "geometric", draws=(math.nan,) * DRAWS)
    value, low, high = np.exp(np.clip(interval(np.log(values)), -MOST, MOST)).tolist()
    draws = np.exp(np.clip(_draws(name, np.log(values)), -MOST, MOST))
    return Metric(name, value, low, high, n, unit, pool="geometric", draws=_rounded(draws))


def spread(name: str, values: Float[np.ndarray, " pairs"], n: int, unit: str) -> Metric:
    """The mean of what pairs of sets have, which are not independent, with their range instead of an interval."""
    return Metric(name, float(values.mean()), float(values.min()), float(values.max()), n, unit, draws=_rounded(values))


def _draws(name: str, values: Float[np.ndarray, " sets"]) -> Float[np.ndarray, " draws"]:
    if len(values) < 2:
        return np.full(DRAWS, float(np.mean(values)))
    noise = numpy_generator(0, "t", name).standard_t(len(values) - 1, DRAWS)
    return np.mean(values) + np.std(values, ddof=1) / math.sqrt(len(values)) * noise


def _rounded(draws: Float[np.ndarray, " draws"]) -> tuple[float, ...]:
    return tuple(float(f"{x:.6g}") for x in draws)
