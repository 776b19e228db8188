"""How good a judge of stories is, on texts whose labels are known; and what its rate says about the true one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workbench.areas import auroc
from workbench.errors import UserError
from workbench.seeds import numpy_generator
from workbench.statistics import Interval, bootstrap_mean, wilson

Floats = NDArray[np.float64]
THRESHOLD = 0.5
"""A text counts as positive from this probability on."""
BINS = 10
DRAWS = 10_000


@dataclass(frozen=True)
class Bin:
    """Texts whose probability lies in `[start, end)`; the last bin has its end too."""

    start: float
    end: float
    n: int
    mean: float
    """Mean probability; NaN where the bin is empty."""
    share: float
    """Of texts that have the feature, with Wilson's interval; NaN and (0, 1) where the bin is empty."""
    low: float
    high: float


@dataclass(frozen=True)
class Quality:
    """A judge against known labels. All intervals are of 95 % and take the texts as independent.

    Sensitivity and specificity hold for texts like these. The pooled AUROC of texts from several sources also counts what
    tells the sources apart, where the feature is more frequent in some; the one within sources compares only texts of one.
    """

    positives: int
    negatives: int
    true_positives: int
    true_negatives: int
    auroc: Interval
    auroc_within: Interval | None
    """Pairs of one source only, all pairs alike; None without sources, or where no source has both classes."""
    balanced_accuracy: Interval
    sensitivity: Interval
    specificity: Interval
    brier: Interval
    calibration: tuple[Bin, ...]

    @property
    def n(self) -> int:
        """Texts."""
        return self.positives + self.negatives

    @property
    def majority(self) -> float:
        """Accuracy of always giving the more frequent answer; its balanced accuracy is .5."""
        return max(self.positives, self.negatives) / self.n


def measure(
    probability: ArrayLike, labels: Sequence[bool] | NDArray[np.bool_], sources: Sequence[str] | None = None, seed: int = 0
) -> Quality:
    """Quality of probabilities `[n]` against labels `[n]`.

    Args:
        probability: what the judge gave, in [0, 1].
        labels: whether the text has the feature.
        sources: where each text comes from.
        seed: of the resampling behind the Brier score's interval; every other interval is in closed form.

    Raises:
        UserError: no text of one class, or a text that was not judged.
    """
    p, truth = np.asarray(probability, np.float64), np.asarray(labels, bool)
    if p.shape != truth.shape or (sources is not None and len(sources) != len(truth)):
        raise ValueError(f"{len(p)} probabilities, {len(truth)} labels, {None if sources is None else len(sources)} sources")
    if np.isnan(p).any():
        raise UserError(f"{int(np.isnan(p).sum())} of {len(p)} texts were not judged; leave them and their labels out.")
    m, n = int(truth.sum()), int((~truth).sum())
    if not m or not n:
        raise UserError(f"{m} of {m + n} texts have the feature; a judge is measured on some that do and some that do not.")
    said = p >= THRESHOLD
    hits, rejections = int((said & truth).sum()), int((~said & ~truth).sum())
    sensitivity, specificity = _proportion(hits, m), _proportion(rejections, n)
    errors = (p - truth) ** 2
    draws = bootstrap_mean(errors, seed=seed)
    return Quality(
        positives=m,
        negatives=n,
        true_positives=hits,
        true_negatives=rejections,
        auroc=auroc(p, truth),
        auroc_within=None if sources is None else _within(p, truth, np.asarray(sources, dtype=np.str_)),
        balanced_accuracy=_mean([sensitivity, specificity], [0.5, 0.5]),
        sensitivity=sensitivity,
        specificity=specificity,
        brier=Interval(float(errors.mean()), float(np.quantile(draws, 0.025)), float(np.quantile(draws, 0.975))),
        calibration=_calibration(p, truth),
    )


def corrected(positives: int, n: int, quality: Quality, seed: int = 0) -> Interval:
    """The true share behind an imperfect judge's `positives` of `n`: (rate + specificity - 1) / (sensitivity + specificity - 1).

    [Rogan and Gladen 1978], clipped to [0, 1]; NaN from 0 to 1 where the judge does no better than chance. The interval has
    the quantiles of that number when the rate, sensitivity and specificity are drawn from their Jeffreys posteriors; a draw
    in which the judge does no better than chance bounds nothing. It holds if the judge errs here as often as where it was measured.
    """

    def estimate(rate: Floats, sensitivity: Floats, specificity: Floats, useless: float) -> Floats:
        gain = sensitivity + specificity - 1
        good = gain > 0
        return np.where(good, np.clip((rate + specificity - 1) / np.where(good, gain, 1.0), 0.0, 1.0), useless)

    generator = numpy_generator(seed, "corrected rate")
    q = quality
    counts = ((positives, n), (q.true_positives, q.positives), (q.true_negatives, q.negatives))
    rate, sensitivity, specificity = (generator.beta(k + 0.5, total - k + 0.5, DRAWS) for k, total in counts)
    low = float(np.quantile(estimate(rate, sensitivity, specificity, 0.0), 0.025))
    high = float(np.quantile(estimate(rate, sensitivity, specificity, 1.0), 0.975))
    observed = [np.asarray(k / total if total else math.nan) for k, total in counts]
    value = float(estimate(*observed, useless=math.nan))
    if math.isnan(value):
        return Interval(value, 0.0, 1.0)
    return Interval(value, min(low, value), max(high, value))


def _proportion(k: int, n: int) -> Interval:
    low, high = wilson(k, n)
    return Interval(k / n, float(low), float(high))


def _mean(parts: Sequence[Interval], weights: Sequence[float]) -> Interval:
    """A weighted mean of independent numbers; distances to the ends are added in squares [Newcombe 1998]."""
    value = sum(w * x.value for x, w in zip(parts, weights, strict=True))
    below = math.sqrt(sum((w * (x.value - x.low)) ** 2 for x, w in zip(parts, weights, strict=True)))
    above = math.sqrt(sum((w * (x.high - x.value)) ** 2 for x, w in zip(parts, weights, strict=True)))
    return Interval(value, value - below, value + above)


def _within(p: Floats, truth: NDArray[np.bool_], sources: np.ndarray) -> Interval | None:
    parts: list[Interval] = []
    pairs: list[int] = []
    for source in np.unique(sources):
        here = sources == source
        if both := int(truth[here].sum()) * int((~truth[here]).sum()):
            parts.append(auroc(p[here], truth[here]))
            pairs.append(both)
    return _mean(parts, [k / sum(pairs) for k in pairs]) if parts else None


def _calibration(p: Floats, truth: NDArray[np.bool_]) -> tuple[Bin, ...]:
    edges = np.arange(BINS + 1) / BINS
    place = np.clip(np.searchsorted(edges, p, side="right") - 1, 0, BINS - 1)
    out: list[Bin] = []
    for k in range(BINS):
        here = place == k
        n, positive = int(here.sum()), int(truth[here].sum())
        low, high = wilson(positive, n)
        mean, share = (float(p[here].mean()), positive / n) if n else (math.nan, math.nan)
        out.append(Bin(float(edges[k]), float(edges[k + 1]), n, mean, share, float(low), float(high)))
    return tuple(out)
