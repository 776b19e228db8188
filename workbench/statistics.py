"""Intervals and censored crossings, once for all analyses.

Intervals for one set of examples are Wilson's; across seeds they are a hierarchical bootstrap (examples within seeds).
A control that never arrives at a threshold is no missing number but a bound, and stays one in ratios.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from workbench.seeds import numpy_generator

Floats = NDArray[np.float64]
Numbers = float | Sequence[Any] | np.ndarray | np.generic
"""What NumPy makes an array of numbers of."""
Pool = Literal["mean", "geometric"]
Bound = Literal["exact", "upper", "lower", "undefined"]
"""`upper`: the true value is at most this (a control never arrived); `lower`: at least this (the subject never arrived)."""


@dataclass(frozen=True)
class Interval:
    """A number with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Crossing:
    """Training steps until a threshold is reached; `lower`: not reached, so it takes more than `value` steps."""

    value: float
    bound: Literal["exact", "lower"]


def normal_quantile(confidence: float) -> float:
    """Half width of a two-sided normal interval in standard deviations, 1.96 at .95."""
    from scipy.special import ndtri

    return float(ndtri(0.5 + confidence / 2))


def wilson(successes: Numbers, n: Numbers, confidence: float = 0.95) -> tuple[Floats, Floats]:
    """Wilson's score interval of a proportion, elementwise; (0, 1) where n is 0.

    Args:
        successes: counts, any shape.
        n: trials, broadcast against `successes`.
        confidence: nominal coverage.

    Returns:
        Lower and upper ends, in [0, 1].
    """
    trials = np.asarray(n, dtype=np.float64)
    share = np.asarray(successes, dtype=np.float64) / np.maximum(trials, 1)
    z2 = normal_quantile(confidence) ** 2
    safe = np.maximum(trials, 1e-300)
    centre = (share * trials + z2 / 2) / (trials + z2)
    half = np.sqrt(z2 * (share * (1 - share) * safe + z2 / 4)) / (trials + z2)
    # At 0 and n the ends are exactly 0 and 1; rounding must not put the proportion outside its own interval.
    low = np.clip(np.minimum(centre - half, np.where(trials > 0, share, 0.0)), 0, 1)
    return np.asarray(low), np.asarray(np.clip(np.maximum(centre + half, share), 0, 1))


def paired_difference(after: Numbers, before: Numbers, confidence: float = 0.95) -> Interval:
    """Difference of two proportions on the same examples, with its interval [Newcombe 1998, paired data, method 10].

    Unlike a bootstrap it has a width also where every answer agrees.

    Args:
        after: 1.0 where right `[n]`.
        before: the same examples, `[n]`.
        confidence: nominal coverage.
    """
    a, b = np.asarray(after, dtype=np.float64), np.asarray(before, dtype=np.float64)
    n, p, q = len(a), float(a.mean()), float(b.mean())
    (low_p, high_p), (low_q, high_q) = wilson(p * n, n, confidence), wilson(q * n, n, confidence)
    both, neither, only_a, only_b = ((x * y).sum() for x, y in ((a, b), (1 - a, 1 - b), (a, 1 - b), (1 - a, b)))
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    cross = both * neither - only_a * only_b
    # The correlation of the two, its numerator corrected for continuity where it is positive.
    phi = (max(cross - n / 2, 0.0) if cross > 0 else cross) / np.sqrt(margins) if margins > 0 else 0.0

    def reach(x: float, y: float) -> float:
        return float(np.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y)))

    return Interval(
        p - q, p - q - reach(p - float(low_p), float(high_q) - q), p - q + reach(float(high_p) - p, q - float(low_q))
    )


@lru_cache(maxsize=8)
def resampling(n: int, draws: int, seed: int) -> Floats:
    """How often each of n examples is drawn, as weights that sum to one `[draws, n]`; read only, for it is kept."""
    if n < 1:
        raise ValueError("there are no examples to resample")
    counts = numpy_generator(seed, "examples", n).multinomial(n, np.full(n, 1 / n), size=draws)
    weights = counts.astype(np.float64) / n
    weights.flags.writeable = False
    return weights


def bootstrap_mean(values: Numbers, draws: int = 1000, seed: int = 0) -> Floats:
    """Means of resampled examples.

    The same `seed` and number of examples give the same resampling, so differences of two measures on the same examples
    may be taken draw by draw.

    Args:
        values: measure of each example `[n]`.
        draws: how many resamplings.
        seed: of the resampling.

    Returns:
        `[draws]`.
    """
    data = np.asarray(values, dtype=np.float64)
    return resampling(len(data), draws, seed) @ data


def pooled(values: Numbers, pool: Pool = "mean", axis: int = -1) -> Any:
    """Arithmetic mean, or geometric for ratios, whose errors are symmetric on the log scale.

    Raises:
        ValueError: a negative value has no geometric mean.
    """
    data = np.asarray(values, dtype=np.float64)
    if pool == "mean":
        return data.mean(axis)
    if np.any(data < 0):
        raise ValueError("the geometric mean needs values of at least 0")
    with np.errstate(divide="ignore"):
        return np.exp(np.log(data).mean(axis))


def hierarchical(
    draws_by_seed: Sequence[Numbers],
    pool: Pool = "mean",
    n_draws: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
    values: Sequence[float] | None = None,
) -> Interval:
    """Pool seeds by a hierarchical bootstrap: resample seeds, take a random within-seed draw for each, average.

    The percentile interval knows no more seeds than there are. Where seeds differ by much more than their within-seed
    noise, it covers about 50 % with two seeds, 75 % with three and 90 % with eight (nominal 95 %). Where they
    do not differ at all it is too wide, by up to a factor of sqrt 2, because the observed spread counts the noise again.

    Args:
        draws_by_seed: bootstrap draws of each seed; lengths may differ; NaN draws (undefined) are left out.
        pool: how seeds are averaged.
        n_draws: draws of the pooled number.
        seed: of the resampling.
        confidence: nominal coverage.
        values: point estimates of the seeds; the pooled mean of their draws where not given.

    Returns:
        The pooled number and its interval. With one seed that is the percentile interval of its draws. All NaN when a
        seed has no defined draw.

    Raises:
        ValueError: no seeds.
    """
    if not draws_by_seed:
        raise ValueError("there are no seeds to pool")
    data = [np.asarray(d, dtype=np.float64).ravel() for d in draws_by_seed]
    data = [d[~np.isnan(d)] for d in data]
    if any(len(d) == 0 for d in data):
        return Interval(np.nan, np.nan, np.nan)
    points = [pooled(d, pool) for d in data] if values is None else values
    if len(data) == 1:
        sample = data[0]
    else:
        rng = numpy_generator(seed, "hierarchical", len(data))
        chosen = rng.integers(len(data), size=(n_draws, len(data)))
        lengths = np.array([len(d) for d in data])
        offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        within = np.minimum((rng.random(chosen.shape) * lengths[chosen]).astype(np.int64), lengths[chosen] - 1)
        sample = pooled(np.concatenate(data)[offsets[chosen] + within], pool, axis=1)
    low, high = np.quantile(sample, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(float(pooled(points, pool)), float(low), float(high))


def _cross(steps: Floats, values: Floats, threshold: float, hold: int) -> tuple[Floats, NDArray[np.bool_]]:
    """Crossings of many curves: values `[d, s]` -> steps `[d]` and whether censored `[d]`."""
    if len(steps) == 0 or values.shape[-1] != len(steps) or np.any(np.diff(steps) <= 0) or steps[0] < 0:
        raise ValueError(f"steps must increase from 0 or more, one for each of {values.shape[-1]} values; got {steps}")
    above = values >= threshold  # NaN is below
    held = above.copy()
    for ahead in range(1, hold + 1):
        end = max(0, len(steps) - ahead)
        held[:, :end] &= above[:, ahead:]
        held[:, end:] = False  # nothing follows that could confirm
    held[:, 0] |= above.all(axis=1)  # never seen below: there from the start, however short the grid
    arrived = np.asarray(held.any(axis=1))
    at = held.argmax(axis=1)
    rows = np.arange(len(values))
    # What is above at the very end alone may have crossed anywhere after the last point below.
    last_below = len(steps) - 1 - np.argmax(~above[:, ::-1], axis=1)
    before = np.maximum(at - 1, 0)
    # The point before is always below: were it above, it would have held as well and come first.
    first, last = values[rows, before], values[rows, at]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(at == 0, 1.0, (threshold - first) / (last - first))
    share = np.where(np.isfinite(share), share, 1.0)  # nothing known before: not earlier than seen
    scale = np.log1p(steps)
    inside = np.expm1(scale[before] + share * (scale[at] - scale[before]))
    found = np.where(share == 1, steps[at], inside)  # on a grid point without rounding
    return np.where(arrived, found, steps[last_below]), ~arrived


def steps_to(steps: Numbers, values: Numbers, threshold: float, hold: int = 1) -> Crossing:
    """Training steps until a measure reaches a threshold and stays there.

    The crossing lies before the first grid point that is at or above `threshold` and whose next `hold` grid points are
    too: one lucky evaluation is no crossing, and a last one that nothing confirms is none either. No maximum over noisy
    evaluations is taken. Between grid points the curve is straight in log(1 + step), since the grid
    is geometric and learning curves are close to straight there; that scale is defined at step 0.

    Args:
        steps: evaluation grid `[s]`, increasing, in training steps.
        values: the measure `[s]`; NaN counts as below.
        threshold: what to reach.
        hold: how many later grid points must confirm.

    Returns:
        `exact`, the first grid step (0 on the usual grid) when already there; `lower` with the last step below when never.

    Raises:
        ValueError: the grid does not increase or does not fit the values.
    """
    found, censored = _cross(np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)[None], threshold, hold)
    return Crossing(float(found[0]), "lower" if censored[0] else "exact")


def bootstrap_crossings(
    steps: Numbers, correct: Numbers, threshold: float, draws: int = 1000, seed: int = 0, hold: int = 1
) -> tuple[Floats, NDArray[np.bool_]]:
    """`steps_to` on resampled examples, the same examples at all steps, since one model answers them all.

    Args:
        steps: evaluation grid `[s]`.
        correct: measure of each example `[s, n]`.
        threshold: for the mean over examples.
        draws: how many resamplings.
        seed: of the resampling.
        hold: as in `steps_to`.

    Returns:
        Steps `[draws]` (the last step below where censored) and whether censored `[draws]`.
    """
    data = np.asarray(correct, dtype=np.float64)
    # Rounding: a mean of exactly 0.95 must not miss a threshold of 0.95 by one bit of a differently ordered sum.
    means = np.round(resampling(data.shape[1], draws, seed) @ data.T, 12)
    return _cross(np.asarray(steps, dtype=np.float64), means, threshold, hold)


def ratio(a: Crossing, b: Crossing, floor: float = 1.0) -> tuple[float, Bound]:
    """How many times the steps of `b` it takes to do `a`.

    Args:
        a: numerator, for instance the tuned model.
        b: denominator, for instance the model that never had the ability.
        floor: steps below this count as this many (give the first grid step above 0): nothing is resolved below,
            and the 0 steps of a model that is already there are no denominator and have no geometric mean.

    Returns:
        The ratio and its bound: `upper` when only `b` never arrived, `lower` when only `a` did not, `undefined` with NaN
        when neither did.
    """
    bounds: dict[tuple[str, str], Bound] = {
        ("exact", "exact"): "exact",
        ("exact", "lower"): "upper",
        ("lower", "exact"): "lower",
    }
    bound = bounds.get((a.bound, b.bound), "undefined")
    return (float("nan") if bound == "undefined" else max(a.value, floor) / max(b.value, floor)), bound


def ratio_draws(
    a: tuple[Floats, NDArray[np.bool_]], b: tuple[Floats, NDArray[np.bool_]], floor: float = 1.0
) -> tuple[Floats, np.ndarray]:
    """`ratio` draw by draw, of two answers of `bootstrap_crossings`.

    Returns:
        Ratios `[draws]`, NaN where undefined, and their bounds `[draws]`.
    """
    value = np.maximum(a[0], floor) / np.maximum(b[0], floor)
    bound = np.select([a[1] & b[1], a[1], b[1]], ["undefined", "lower", "upper"], "exact")
    return np.where(bound == "undefined", np.nan, value), bound
