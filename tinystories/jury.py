"""Who says which texts show a capability: the exact rule where there is one, and a judge of n-grams trained on the corpus."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock
from jaxtyping import Bool, Float

from tinystories.features import RULES
from tinystories.judge_quality import THRESHOLD
from tinystories.prompts import WITHOUT, feature_of, plain
from workbench.errors import UserError, did_you_mean
from workbench.seeds import numpy_generator

if TYPE_CHECKING:
    from tinystories.corpus import Corpus
    from tinystories.judging import FeatureScore, Judge, NgramJudge

JUDGED_ON = 6000
"""Training stories that a judge is made of, at most: its n-grams are held in memory."""


@dataclass(frozen=True)
class Jury:
    """The judges of a corpus."""

    corpus: Corpus
    features: Mapping[str, str]
    """Capabilities and the names of their features."""
    decided: Collection[str]
    """Those that an exact rule decides."""
    folder: Path
    """Where trained judges are kept."""
    labels: Callable[[str], Bool[np.ndarray, " n"]]
    """Which training stories a capability speaks of."""

    def shows(self, capability: str, written: Sequence[str]) -> Float[np.ndarray, " n"]:
        """1.0 where a text has the feature, or, for `no_...`, lacks it, by the judge that decides.

        Raises:
            UserError: nothing tells, or too few stories to train a judge on.
        """
        has = self._judge(capability).probability(written) >= THRESHOLD
        return (has != _lacks(capability)).astype(np.float64)

    def judged_by(self, capability: str) -> str:
        """Who decides, and how far to trust it, in a clause; errors as in `shows`."""
        judge = self._judge(capability)
        if judge.exact:
            return f"an exact rule: {RULES[judge.feature].statement}"
        assert judge.quality is not None
        area = judge.quality.auroc
        return f"{judge.name}, trained on the corpus' own labels (AUROC {area.value:.2f} [{area.low:.2f}, {area.high:.2f}] held out)"

    def judged(self, capability: str, written: Sequence[str], seed: int) -> tuple[FeatureScore, ...]:
        """The share of texts that show a capability by every judge that there is, the one that decides first.

        A judge that can err comes with its held-out quality, and with the share that it would see if it did not.
        """
        from tinystories.judging import score

        judge = self._judge(capability)
        others = self._trained(feature_of(capability)) if judge.exact else None
        found = tuple(score(one, written, seed) for one in (judge, others) if one is not None)
        return tuple(map(_turned, found)) if _lacks(capability) else found

    def _judge(self, capability: str) -> Judge:
        from tinystories.judging import RuleJudge

        feature = feature_of(capability)
        if feature not in self.features:
            raise UserError(f"nothing tells which texts show {capability!r}{did_you_mean(capability, self.features)}")
        if feature in self.decided:
            return RuleJudge(self.features[feature])
        judge = self._trained(feature)
        if judge is None:
            raise UserError(
                f"the stories of corpus {self.corpus.name!r} are too few to train a judge of {feature!r}; take more."
            )
        return judge

    def _trained(self, feature: str) -> NgramJudge | None:
        """The n-gram judge of a feature, trained once on training stories; None where these are too few."""
        from tinystories.judging import load_judge, train_judge

        folder = self.folder / f"judge-{feature}"
        with FileLock(f"{folder}.lock"):  # of processes that want it at once, one trains it
            if not (folder / "judge.json").is_file():
                stories, found = self.corpus.split("train"), self.labels(feature)
                used = np.sort(numpy_generator(0, "stories", "judge").permutation(len(stories))[:JUDGED_ON])
                chosen = stories.select(used)
                try:
                    train_judge(chosen["text"][:], found[used], chosen["source"][:], self.features[feature]).save(folder)
                except UserError:
                    return None
        return load_judge(folder)


def _lacks(capability: str) -> bool:
    return plain(capability).startswith(WITHOUT)


def _turned(score: FeatureScore) -> FeatureScore:
    """The share of texts without the feature."""
    return replace(
        score,
        turned=True,
        positives=score.n - score.positives,
        rate=1 - score.rate,
        low=1 - score.high,
        high=1 - score.low,
        corrected_rate=1 - score.corrected_rate,
        corrected_low=1 - score.corrected_high,
        corrected_high=1 - score.corrected_low,
    )
