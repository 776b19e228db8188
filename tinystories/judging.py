"""Is a feature in a text? A judge's answers on many texts become a rate with its intervals and with how good the judge is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np

from tinystories.endpoint_judge import EndpointJudge
from tinystories.judge_quality import THRESHOLD, Bin, Floats, Quality, corrected, measure
from tinystories.ngram_judge import NgramJudge, load_judge, train_judge
from workbench.errors import UserError, did_you_mean
from workbench.statistics import wilson

__all__ = [
    "Bin",
    "EndpointJudge",
    "FeatureScore",
    "Judge",
    "NgramJudge",
    "Quality",
    "RuleJudge",
    "load_judge",
    "measure",
    "score",
    "train_judge",
]

ENOUGH = 200
"""Texts from which on a rate is known to about 7 points."""


@runtime_checkable
class Judge(Protocol):
    """What gives texts a probability of having a feature."""

    @property
    def feature(self) -> str:
        """Its name."""
        ...

    @property
    def name(self) -> str:
        """What judges, in a few words."""
        ...

    @property
    def exact(self) -> bool:
        """Whether it decides by definition and cannot err."""
        ...

    @property
    def quality(self) -> Quality | None:
        """Measured on texts that it never saw; None where it was not."""
        ...

    def probability(self, texts: Sequence[str]) -> Floats:
        """Per text, in [0, 1]; NaN where it came to no answer."""
        ...


@dataclass(frozen=True)
class RuleJudge:
    """A rule of `tinystories.features` on the characters as they stand: probabilities 0 and 1.

    Raises:
        UserError: there is no rule for the feature.
    """

    feature: str

    def __post_init__(self) -> None:
        _ = self._rule

    @cached_property
    def _rule(self) -> Any:
        from tinystories.features import RULES

        if self.feature not in RULES:
            raise UserError(f"there is no rule for {self.feature!r}{did_you_mean(self.feature, RULES)}.")
        return RULES[self.feature]

    @property
    def name(self) -> str:
        """`rule`, or `marker words` where the rule finds words that often go with the feature."""
        return "rule" if self.exact else "marker words"

    @property
    def exact(self) -> bool:
        """As the rule says of itself."""
        return bool(self._rule.exact)

    @property
    def quality(self) -> Quality | None:
        """None: a rule is a definition, or it is measured against other labels by `measure`."""
        return None

    def probability(self, texts: Sequence[str]) -> Floats:
        """1 where the rule holds, else 0."""
        return np.array([float(self._rule.of(text)) for text in texts])


@dataclass(frozen=True)
class FeatureScore:
    """How many of the texts have a feature, as far as a judge can tell."""

    feature: str
    judge: str
    n: int
    """Texts that were judged."""
    unparsed: int
    """Texts without an answer; they count neither as having the feature nor as lacking it."""
    positives: int
    rate: float
    """Share that the judge calls positive, with Wilson's interval; NaN and (0, 1) without texts."""
    low: float
    high: float
    corrected_rate: float
    """The true share, given how often the judge errs, with its interval; NaN and (0, 1) where that was not measured."""
    corrected_low: float
    corrected_high: float
    quality: Quality | None
    limits: tuple[str, ...]
    turned: bool = False
    """Whether it is the share of texts without the feature."""

    def unbiased(self, shows: Floats) -> Floats:
        """Numbers per text whose mean is the corrected share [Rogan & Gladen 1978], before it is cut off at 0 and 1."""
        q = self.quality
        if q is None or (slope := q.sensitivity.value + q.specificity.value - 1) <= 0:
            return shows
        has = 1 - shows if self.turned else shows
        true = (has + q.specificity.value - 1) / slope
        return 1 - true if self.turned else true

    @property
    def trust(self) -> str:
        """How good the judge is on texts that it never saw; empty where that was not measured, as of a definition."""
        if self.quality is None:
            return ""
        q, area = self.quality, self.quality.auroc
        return (
            f"AUROC {area.value:.3f} [{area.low:.3f}, {area.high:.3f}], Brier score {q.brier.value:.3f} on {q.n} held-out texts"
        )


def score(judge: Judge, texts: Sequence[str], seed: int = 0) -> FeatureScore:
    """The share of texts that have the judge's feature.

    Args:
        judge: whose probabilities count as positive from .5 on.
        texts: for instance continuations of the prompts of a test split.
        seed: of the draws behind the corrected rate's interval.

    Raises:
        UserError: there are no texts.
    """
    if not texts:
        raise UserError(f"there are no texts in which to look for {judge.feature}; give some, {ENOUGH} or more if you can.")
    p = judge.probability(texts)
    judged = p[~np.isnan(p)]
    n, positives = len(judged), int((judged >= THRESHOLD).sum())
    low, high = (float(end) for end in wilson(positives, n))
    rate = positives / n if n else math.nan
    true = (math.nan, 0.0, 1.0)
    if judge.exact:
        true = (rate, low, high)
    elif judge.quality is not None and n:
        found = corrected(positives, n, judge.quality, seed)
        true = (found.value, found.low, found.high)
    return FeatureScore(
        feature=judge.feature,
        judge=judge.name,
        n=n,
        unparsed=len(p) - n,
        positives=positives,
        rate=rate,
        low=low,
        high=high,
        corrected_rate=true[0],
        corrected_low=true[1],
        corrected_high=true[2],
        quality=judge.quality,
        limits=tuple(_limits(judge, n, len(p) - n)),
    )


def _limits(judge: Judge, n: int, unparsed: int) -> list[str]:
    out: list[str] = []
    if n < ENOUGH:
        out.append(f"Only {n} texts were judged; from {ENOUGH} on the interval is within about 7 points.")
    if unparsed:
        out.append(f"The judge came to no answer on {unparsed} of {n + unparsed} texts; they are left out.")
    if judge.exact:
        return out
    quality = judge.quality
    if quality is None:
        return [*out, f"How often the judge ({judge.name}) errs was not measured, so its rate is not corrected."]
    out.append(
        f"The judge ({judge.name}) has a balanced accuracy of {quality.balanced_accuracy.value:.1%} on {quality.n} held-out texts; "
        "the correction holds if it errs on these texts as often as on those."
    )
    if quality.sensitivity.value + quality.specificity.value <= 1:
        out.append("The judge does no better than chance: its rate says nothing about the true one.")
    return out
