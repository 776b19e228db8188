"""A judge of our own: logistic regression on words, pairs of words and character trigrams, calibrated and measured on held-out texts."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tinystories.judge_quality import Bin, Floats, Quality, measure
from workbench.errors import UserError
from workbench.files import atomic_folder, atomic_json
from workbench.seeds import stream
from workbench.statistics import Interval

HASHED = 2**16
"""Columns for words and pairs, and as many for trigrams; which n-gram goes where is a hash, so there is no vocabulary to keep."""
SHARES = (0.7, 0.15, 0.15)
"""Of texts to fit on, to calibrate on, and to measure on."""
STRENGTH = 10.0
"""Inverse strength of the penalty on squared weights."""
FORMAT = 1
_ARRAYS = {"idf": (2 * HASHED,), "weights": (2 * HASHED,), "scalars": (3,)}
_CHUNK = 2000
"""Texts at a time when judging."""


@dataclass(frozen=True, eq=False)
class NgramJudge:
    """What `train_judge` gives."""

    feature: str
    idf: Floats
    """Weight of each column, larger where fewer texts have it `[columns]`."""
    weights: Floats
    """Of the regression `[columns]`."""
    scalars: Floats
    """Intercept of the regression; slope and intercept of the calibration `[3]`."""
    quality: Quality
    trained_on: int
    """Texts that it was fitted on, those for calibration not counted."""

    @property
    def name(self) -> str:
        """What judges."""
        return "n-gram regression"

    @property
    def exact(self) -> bool:
        """False: it errs as often as `quality` says."""
        return False

    def probability(self, texts: Sequence[str]) -> Floats:
        """Calibrated probability that each text has the feature, in [0, 1]."""
        parts = [texts[start : start + _CHUNK] for start in range(0, len(texts), _CHUNK)]
        return np.concatenate([np.empty(0), *(_sigmoid(self.scalars[1] * self._evidence(x) + self.scalars[2]) for x in parts)])

    def _evidence(self, texts: Sequence[str]) -> Floats:
        return _weighted(_counts(texts), self.idf) @ self.weights + self.scalars[0]

    def save(self, folder: Path) -> None:
        """Write `judge.json` and `judge.npz`, in place of a judge that was there; nothing is pickled.

        Raises:
            UserError: the folder holds something else.
        """
        if folder.exists() and not (folder / "judge.json").is_file() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} is there and holds no judge; name a new folder.")
        with atomic_folder(folder) as new:
            np.savez(new / "judge.npz", idf=self.idf, weights=self.weights, scalars=self.scalars)
            facts = {"format": FORMAT, "feature": self.feature, "trained_on": self.trained_on, "quality": asdict(self.quality)}
            atomic_json(new / "judge.json", facts)


def load_judge(folder: Path) -> NgramJudge:
    """A saved judge, which gives the very probabilities that it gave.

    Raises:
        UserError: there is none, or its files are damaged or of another version.
    """
    try:
        facts = json.loads((folder / "judge.json").read_text(encoding="utf-8"))
        if facts["format"] != FORMAT:
            raise ValueError(f"its format is {facts['format']}, this version reads {FORMAT}")
        with (folder / "judge.npz").open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in _ARRAYS}
        for name, shape in _ARRAYS.items():
            if arrays[name].shape != shape or arrays[name].dtype != np.float64 or not np.isfinite(arrays[name]).all():
                raise ValueError(f"its {name} are not {shape[0]} finite numbers")
        return NgramJudge(
            str(facts["feature"]), **arrays, quality=_quality(facts["quality"]), trained_on=int(facts["trained_on"])
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        reason = "nothing is there" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {error}"
        raise UserError(f"{folder} holds no judge that can be read ({reason}); train it again.") from None


def train_judge(
    texts: Sequence[str],
    labels: Sequence[bool] | NDArray[np.bool_],
    sources: Sequence[str],
    feature: str,
    seed: int = 0,
) -> NgramJudge:
    """Fit, calibrate and measure a judge, each on texts of its own; some seconds for 10,000 stories.

    Within each source, texts go to the three parts by their hash, equal texts together. The calibration is a sigmoid [Platt 1999].

    It learns whatever goes with the labels. Where sources differ in how many of their texts have the feature, that is also the
    source: its layout, typography and favourite words; compare `quality.auroc_within` with `quality.auroc`. Where labels come
    from marker words (MoralValue, BadEnding) it learns these markers and what stands around them, nothing is masked, and its quality is
    agreement with the markers, not with what a reader would say.

    Args:
        texts: stories, tens of thousands at most: the n-grams of all are held in memory, about 10 kB per story.
        labels: whether each has the feature.
        sources: where each comes from; one name for all where that is not known.
        feature: its name.
        seed: of the split.

    Raises:
        UserError: a part would lack one of the two classes.
    """
    from sklearn.linear_model import LogisticRegression

    truth = np.asarray(labels, bool)
    if not len(texts) == len(truth) == len(sources):
        raise ValueError(f"{len(texts)} texts, {len(truth)} labels, {len(sources)} sources")
    part = _split(texts, sources, seed)
    for number, what in enumerate(("fit", "calibrate", "measure")):
        have, n = int(truth[part == number].sum()), int((part == number).sum())
        if have in (0, n):
            raise UserError(
                f"{int(truth.sum())} of {len(truth)} texts have {feature}, and {have} of the {n} to {what} a judge on; "
                "both kinds are needed there: give more texts."
            )
    fit, held, test = ([i for i, number in enumerate(part.tolist()) if number == k] for k in range(3))
    counts = _counts([texts[i] for i in fit])
    documents = np.bincount(counts.indices, minlength=2 * HASHED)
    idf = np.log((1 + len(fit)) / (1 + documents)) + 1
    model = LogisticRegression(C=STRENGTH, max_iter=1000).fit(_weighted(counts, idf), truth[fit])
    weights, intercept = np.ravel(model.coef_).astype(np.float64), float(np.ravel(model.intercept_)[0])
    evidence = _weighted(_counts([texts[i] for i in held]), idf) @ weights + intercept
    slope, offset = _platt(evidence, truth[held])
    scalars = np.array([intercept, slope, offset])
    p = _sigmoid(slope * (_weighted(_counts([texts[i] for i in test]), idf) @ weights + intercept) + offset)
    quality = measure(p, truth[test], [sources[i] for i in test], seed)
    return NgramJudge(feature, idf, weights, scalars, quality, len(fit))


def _split(texts: Sequence[str], sources: Sequence[str], seed: int) -> NDArray[np.int64]:
    """0, 1 or 2 per text: exact shares of the different texts of each source, in the order of their hashes.

    A text that several sources have belongs to the first, so that it is in one part.
    """
    home: dict[str, str] = {}
    for text, source in zip(texts, sources, strict=True):
        home.setdefault(text, source)
    of: dict[str, list[str]] = {}
    for text, source in home.items():
        of.setdefault(source, []).append(text)
    part: dict[str, int] = {}
    for mine in of.values():
        mine.sort(key=lambda text: stream(seed, "judge", text))
        where = np.searchsorted(np.cumsum(SHARES)[:2], (np.arange(len(mine)) + 0.5) / len(mine), side="right")
        part.update(zip(mine, where.tolist(), strict=True))
    return np.array([part[text] for text in texts], np.int64)


def _counts(texts: Sequence[str]) -> Any:
    """How often each n-gram stands in each text, as a sparse matrix `[n, columns]`; signs count as words."""
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import HashingVectorizer

    shared: dict[str, Any] = {"n_features": HASHED, "alternate_sign": False, "norm": None}
    words = HashingVectorizer(ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", **shared)
    letters = HashingVectorizer(analyzer="char", ngram_range=(3, 3), **shared)
    return csr_matrix(hstack([words.transform(texts), letters.transform(texts)]))


def _weighted(counts: Any, idf: Floats) -> Any:
    """Rows of (1 + log count) x idf, of length one; an empty text has a row of zeros."""
    from sklearn.preprocessing import normalize

    out = counts.copy()
    out.data = (1 + np.log(out.data)) * idf[out.indices]
    return normalize(out, copy=False)


def _platt(evidence: Floats, truth: NDArray[np.bool_]) -> tuple[float, float]:
    """Slope and intercept on the log-odds; targets a little off 0 and 1, so that both are finite where classes are separated."""
    from sklearn.linear_model import LogisticRegression

    m, n = int(truth.sum()), int((~truth).sum())
    target = np.where(truth, (m + 1) / (m + 2), 1 / (n + 2))
    doubled, weight = np.concatenate([evidence, evidence])[:, None], np.concatenate([target, 1 - target])
    model = LogisticRegression(C=np.inf, max_iter=1000, tol=1e-8)
    model.fit(doubled, np.arange(2 * len(truth)) < len(truth), sample_weight=weight)
    return float(np.ravel(model.coef_)[0]), float(np.ravel(model.intercept_)[0])


def _sigmoid(x: Floats) -> Floats:
    from scipy.special import expit

    return cast(Floats, expit(x))


def _quality(facts: dict[str, Any]) -> Quality:
    """From JSON, where null stands for NaN."""
    bins: list[dict[str, Any]] = [{k: math.nan if v is None else v for k, v in b.items()} for b in facts["calibration"]]
    read: dict[str, Any] = {
        name: Interval(**cast(dict[str, float], v)) if isinstance(v, dict) else v for name, v in facts.items()
    }
    read["calibration"] = tuple(Bin(**values) for values in bins)
    return Quality(**read)
