"""Which features of whole texts can be read from each block: one linear probe per feature, model and residual point.

Beside base, tuned and revived model stand those of random weights and without the ability, and probes of shuffled labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from pydantic import Field

from workbench.analyses._reading import kept_line, rooms_of
from workbench.analysis import Settings, analysis
from workbench.areas import area_draws, area_value, auroc
from workbench.errors import UserError
from workbench.examples import Examples
from workbench.label_probes import LabelProbes, fit_labels
from workbench.measures import DRAWS, derived, proportion_row
from workbench.models.pooled import last_positions, pooled_streams
from workbench.probes import scored, standardised
from workbench.protocols import WritingTask
from workbench.results import Evidence, Metric, Result
from workbench.seeds import numpy_generator
from workbench.statistics import normal_quantile
from workbench.subjects import Pair, Question

FOLDS = 5
"""Parts of the training texts, each held out once, that choose the residual point of the headline."""
SHUFFLES = 8
"""Permutations of every label. One alone says little: where a feature is a strong direction, a probe of chance labels leans on it
one way or the other, and reads the true label well or badly by luck."""
FINISHED = 1e-2
"""Largest gradient entry (nats per standard deviation) at which a fit counts as finished."""
UNHINTED = "unhinted"
_SHORT = {"never_had_it": "never"}


class FeatureProbingSettings(Settings):
    """Settings of `feature_probing`."""

    train_texts: int = Field(2000, ge=50, description="training texts that the probes are fitted on, at most")
    n: int = Field(1000, ge=32, description="test texts, at most")
    last_tokens: int = Field(10, ge=1, description="tokens at the end of a text over which activations are averaged")
    fewest: int = Field(20, ge=FOLDS, description="texts with and without a feature that it takes, in training and in test")
    penalty: float = Field(1e-4, gt=0, description="L2 penalty: loss = mean cross-entropy + penalty / 2 * |weights|^2")
    iterations: int = Field(200, ge=1, description="largest number of L-BFGS iterations")


def _check(settings: FeatureProbingSettings, question: Question, blocks: int) -> None:
    del settings, blocks
    _feature(question)


def _feature(question: Question) -> tuple[WritingTask, str]:
    """The task, and its label that the pair's ability speaks of."""
    task = question.task
    if not isinstance(task, WritingTask):
        raise UserError(f"feature_probing: a {type(task).__name__} has no whole texts; use a task of kind 'stories'.")
    return task, task.feature(question.capability)


@dataclass(frozen=True)
class _Texts:
    """Texts of one split, what a probe averages over, and what is true of them."""

    examples: Examples
    positions: torch.Tensor
    hinted: Bool[np.ndarray, " n"]
    """Whether what is averaged over shows the pair's feature by itself."""

    def truth(self, names: list[str]) -> Bool[np.ndarray, "n f"]:
        return np.stack([self.examples.labels[name].numpy() != 0 for name in names], axis=1)


@dataclass(frozen=True)
class _Read:
    """Scores of one model's probes on the test texts `[points, n, f]`, by kind of probe; all but `true` of fewer features."""

    true: Float[np.ndarray, "points n f"]
    shuffled: Float[np.ndarray, "points n f shuffles"]
    unhinted: Float[np.ndarray, "points n"] | None
    """The pair's feature, fitted on texts that do not give it away."""
    chosen_by: Float[np.ndarray, " points"] | None
    """AUROC of the pair's feature on held-out training texts; of the base alone."""
    gradient: Float[np.ndarray, " probes"]


@analysis(
    version=1, paper="Jain+23 2311.12786 §F.2", uses=("revived",), passes=40, holds=700, n=1000, group="evidence", check=_check
)
def feature_probing(pair: Pair, settings: FeatureProbingSettings) -> Result:
    """AUROC of linear probes of every feature of whole texts, at the embedding and after every block [Jain+23 §F.2].

    Estimand: on test texts without an instruction, the chance that a text with the feature scores above one without it. Input:
    the mean activation over a text's last tokens (padding and the token that ends it left out), standardised by the training
    texts. One logistic regression with a bias per feature; its penalty keeps the optimum finite, and replaces the paper's 2,000
    steps of AdamW. `accuracy` and `balanced accuracy` are those of the likelier answer; `features` has the majority's share.

    Headline: the pair's own feature at the one point where the base reads it best on held-out TRAINING texts. `change` = tuned -
    base on the same test texts. `..._unhinted`: fitted and tested on texts whose last tokens do not show the feature by
    themselves. `room`, `room_never` and `share_kept` as in `probing`, of AUROC.

    Controls: random weights; a model that never had the ability; `shuffled`, probes of labels that were permuted among the
    training texts, held against the true ones of the test texts (mean over permutations, interval of a single one);
    `base_tokens`, the base at the embedding, which is what the last tokens alone give away.

    Does not show that the model uses what a probe reads.
    """
    task, own = _feature(pair)
    train, test = (
        _texts(pair, task, settings, n, split) for n, split in ((settings.train_texts, "train"), (settings.n, "test"))
    )
    names, features = _features(train, test, own, settings.fewest, pair)
    models = {**pair.states, "untrained": pair.untrained}
    if pair.never_had_it is not None:
        models["never_had_it"] = pair.never_had_it
    read = {
        name: _read(model, train, test, names, names.index(own), settings, pair.seed, choose=name == "base")
        for name, model in models.items()
    }
    return _result(pair, read, test, names, features, settings, _cut(test.examples, task.end))


def _texts(pair: Pair, task: WritingTask, settings: FeatureProbingSettings, n: int, split: str) -> _Texts:
    examples = task.whole(None, n, pair.seed, split)
    positions = last_positions(examples, settings.last_tokens, task.end)
    pieces = [task.describe(tokens[chosen].tolist()) for tokens, chosen in zip(examples.tokens, positions, strict=True)]
    return _Texts(examples, positions, np.asarray(task.hints(pair.capability, pieces), dtype=np.bool_))


def _cut(examples: Examples, end: int) -> float:
    """Share of texts whose end does not fit into the context."""
    return 1 - float(((examples.tokens == end) & examples.loss_mask).any(1).float().mean())


def _features(train: _Texts, test: _Texts, own: str, fewest: int, pair: Pair) -> tuple[list[str], pd.DataFrame]:
    """Features that enough texts have and lack, the pair's own first, and a table of all.

    Raises:
        UserError: the pair's own is not among them.
    """
    labels = [own, *(name for name in test.examples.labels if name != own)]
    rows: list[dict[str, Any]] = []
    for name in labels:
        here, there = (texts.truth([name])[:, 0] for texts in (test, train))
        counts = [int(x.sum()) for x in (here, ~here, there, ~there)]
        rows.append(
            {
                "feature": name,
                "own": name == own,
                "probed": min(counts) >= fewest,
                "test_with": counts[0],
                "test_without": counts[1],
                "train_with": counts[2],
                "train_without": counts[3],
                "majority": max(counts[:2]) / len(here),
            }
        )
    first = rows[0]
    if not first["probed"]:
        raise UserError(
            f"feature_probing: {first['test_with']} test texts of pair {pair.name!r} have {own!r} and {first['test_without']} lack "
            f"it, {first['train_with']} and {first['train_without']} of training; {fewest} of each are needed: take a larger "
            "corpus, or lower 'fewest'."
        )
    return [row["feature"] for row in rows if row["probed"]], pd.DataFrame(rows)


def _read(
    model: Any,
    train: _Texts,
    test: _Texts,
    names: list[str],
    own: int,
    settings: FeatureProbingSettings,
    seed: int,
    *,
    choose: bool,
) -> _Read:
    """Fit and test all probes of a model; its mean activations are held while it is read, and no others."""
    x, y = standardised(*(pooled_streams(model, texts.examples, texts.positions) for texts in (train, test)))
    truth, f = train.truth(names), len(names)
    rngs = [numpy_generator(seed, "shuffled labels", name) for name in names]
    shuffled = np.stack([rng.permutation(truth[:, i]) for i, rng in enumerate(rngs) for _ in range(SHUFFLES)], axis=1)
    mine = truth[:, own]
    columns, used = [truth, shuffled], [np.ones((len(truth), f * (1 + SHUFFLES)), dtype=np.bool_)]
    plain = _enough(mine[~train.hinted], settings.fewest)
    if plain:
        columns.append(mine[:, None])
        used.append(~train.hinted[:, None])
    held = _folds(mine, seed)
    labels, among = np.concatenate(columns, axis=1), np.concatenate(used, axis=1)
    scores: list[np.ndarray] = []
    chosen_by: list[float] = []
    gradients: list[np.ndarray] = []
    for fitted_on, tested_on in zip(x.numpy(), y.numpy(), strict=True):
        probes = fit_labels(fitted_on, labels, settings.penalty, settings.iterations, among)
        scores.append(probes.scores(tested_on))
        gradients.append(probes.gradient)
        if choose:  # a fit of its own, so that the base's probes are those of an equal model to the last bit
            folds = np.repeat(mine[:, None], FOLDS, axis=1)
            parts = fit_labels(fitted_on, folds, settings.penalty, settings.iterations, ~held)
            chosen_by.append(_held_out(parts, fitted_on, mine, held))
            gradients.append(parts.gradient)
    found = np.stack(scores)
    return _Read(
        true=found[..., :f],
        shuffled=found[..., f : f * (1 + SHUFFLES)].reshape(*found.shape[:2], f, SHUFFLES),
        unhinted=found[..., -1] if plain else None,
        chosen_by=np.array(chosen_by) if choose else None,
        gradient=np.concatenate(gradients),
    )


def _enough(truth: Bool[np.ndarray, " n"], fewest: int) -> bool:
    return min(int(truth.sum()), int((~truth).sum())) >= fewest


def _folds(truth: Bool[np.ndarray, " n"], seed: int) -> Bool[np.ndarray, "n folds"]:
    """Which texts each fold holds out; both classes are spread evenly."""
    place = np.empty(len(truth), dtype=np.int64)
    for value in (False, True):
        rows = np.flatnonzero(truth == value)
        place[numpy_generator(seed, "folds", int(value)).permutation(rows)] = np.arange(len(rows)) % FOLDS
    return place[:, None] == np.arange(FOLDS)


def _held_out(probes: LabelProbes, x: np.ndarray, truth: np.ndarray, held: Bool[np.ndarray, "n folds"]) -> float:
    """Mean AUROC over the folds, each on what its probe was not fitted on."""
    scores = probes.scores(x)
    return float(np.mean([area_value(scores[held[:, i], i], truth[held[:, i]]) for i in range(FOLDS)]))


def _result(
    pair: Pair,
    read: Mapping[str, _Read],
    test: _Texts,
    names: list[str],
    features: pd.DataFrame,
    settings: FeatureProbingSettings,
    cut: float,
) -> Result:
    truth = test.truth(names)
    n, points = len(truth), len(read["base"].true)
    chosen_by = read["base"].chosen_by
    assert chosen_by is not None
    point = int(np.argmax(chosen_by))
    free = ~test.hinted
    plain = read["base"].unhinted is not None and _enough(truth[free, 0], settings.fewest)
    rows: list[dict[str, Any]] = []
    for model, found in read.items():
        for p in range(points):
            for i, name in enumerate(names):
                what = {"model": model, "point": p, "feature": name, "own": i == 0}
                rows += _rows({**what, "labels": "true", "texts": "all"}, found.true[p, :, i], truth[:, i])
                rows.append({**what, "labels": "shuffled", "texts": "all", **_chance(found.shuffled[p, :, i], truth[:, i])})
            if plain and found.unhinted is not None:
                what = {"model": model, "point": p, "feature": names[0], "own": True, "labels": "true", "texts": UNHINTED}
                rows += _rows(what, found.unhinted[p, free], truth[free, 0])
    choice = pd.DataFrame({"point": range(points), "held_out_auroc": chosen_by, "chosen": [p == point for p in range(points)]})
    gradient = np.concatenate([found.gradient for found in read.values()])
    limits = [
        "A probe shows what can be read linearly, not what the model uses: a feature stands in the text that was read, and a model "
        "that carries it on to the end need not be one that would write it.",
        f"{names[0]} is read at {_where(point)}, where base and training texts alone chose it.",
        f"The last {settings.last_tokens} tokens may show a feature by themselves: they show {names[0]} in "
        f"{test.hinted.mean():.0%} of the test texts, and any model that passes tokens on is read well there; "
        + (f"'{UNHINTED}' leaves these texts out." if plain else f"fewer than {settings.fewest} of a class are left without."),
        "Intervals resample test texts, not the training of the probes.",
    ]
    out = [str(name) for name, probed in zip(features["feature"], features["probed"], strict=True) if not probed]
    if out:
        limits.append(f"Left out, with fewer than {settings.fewest} texts of a class: {', '.join(out)}.")
    if cut > 0:
        limits.append(f"{cut:.0%} of the test texts are longer than the context: their last tokens stand before their end.")
    if unfinished := int((gradient > FINISHED).sum()):
        limits.append(f"{unfinished} of {len(gradient)} probes stopped before their gradient fell below {FINISHED}.")
    headline = _areas({m: found.true[point, :, 0] for m, found in read.items()}, truth[:, 0], pair.seed)
    headline += (_by_chance(read["tuned"].shuffled[point, :, 0], truth[:, 0], pair.seed),)
    headline += _single("base_tokens", read["base"].true[0, :, 0], truth[:, 0], pair.seed)
    if plain:
        few = {m: found.unhinted[point, free] for m, found in read.items() if found.unhinted is not None}
        headline += _areas(few, truth[free, 0], pair.seed, UNHINTED)
    result = Result(
        name="feature_probing",
        tables={"table": pd.DataFrame(rows), "features": features.assign(n=n), "choice": choice},
        headline=headline,
        limits=tuple(limits),
        provenance={"capability": pair.capability, "tuned_on": pair.tuned_on},
    )
    return replace(result, evidence=evidence(result))


def _where(point: int) -> str:
    return f"the residual point after block {point}" if point else "the embedding"


def _rows(what: Mapping[str, Any], scores: np.ndarray, truth: np.ndarray) -> list[dict[str, Any]]:
    """AUROC, balanced accuracy and accuracy, a row each."""
    area = auroc(scores, truth)
    right = (scores > 0) == truth
    balanced = (float(end) for end in scored(right, truth.astype(np.int64), balanced=True))
    ends = {"AUROC": (area.value, area.low, area.high), "balanced accuracy": tuple(balanced)}
    rows = [
        {
            **what,
            "measure": measure,
            **dict(zip(("value", "low", "high"), found, strict=True)),
            "n": len(truth),
            "unit": measure,
        }
        for measure, found in ends.items()
    ]
    return [*rows, {**what, "measure": "accuracy", **proportion_row(right)}]


def _chance(scores: Float[np.ndarray, "n shuffles"], truth: np.ndarray) -> dict[str, Any]:
    """Mean AUROC over the permutations, and where 95 % of single ones lie if they are normal."""
    areas = np.array([area_value(column, truth) for column in scores.T])
    mean, half = float(areas.mean()), float(normal_quantile(0.95) * areas.std(ddof=1))
    ends = {"value": mean, "low": max(0.0, mean - half), "high": min(1.0, mean + half)}
    return {"measure": "AUROC", **ends, "n": len(truth), "unit": "AUROC"}


def _by_chance(scores: Float[np.ndarray, "n shuffles"], truth: np.ndarray, seed: int) -> Metric:
    """As `_chance`; every draw resamples the texts and takes the next permutation."""
    numbers = _chance(scores, truth)
    every = np.stack([area_draws(column, truth, DRAWS, seed) for column in scores.T])
    draws = every[np.arange(DRAWS) % len(every), np.arange(DRAWS)]
    kept = tuple(np.round(draws, 6).tolist())
    return Metric("shuffled_auroc", numbers["value"], numbers["low"], numbers["high"], len(truth), "AUROC", draws=kept)


def _single(name: str, scores: np.ndarray, truth: np.ndarray, seed: int) -> tuple[Metric, ...]:
    area, draws = auroc(scores, truth), area_draws(scores, truth, DRAWS, seed)
    kept = tuple(np.round(draws, 6).tolist())
    return (Metric(name, area.value, area.low, area.high, len(truth), "AUROC", draws=kept),)


def _areas(scores: Mapping[str, np.ndarray], truth: np.ndarray, seed: int, suffix: str = "auroc") -> tuple[Metric, ...]:
    """One number per model, the change, and, of all texts, what the controls leave to show."""
    short = {_SHORT.get(model, model): values for model, values in scores.items()}
    single = {m: _single(f"{m}_{suffix}", values, truth, seed)[0] for m, values in short.items()}
    draws = {m: np.array(metric.draws) for m, metric in single.items()}
    base, tuned = single["base"], single["tuned"]
    name = "change" if suffix == "auroc" else f"change_{suffix}"
    change = derived(name, tuned.value - base.value, draws["tuned"] - draws["base"], len(truth), "AUROC")
    if base.value == tuned.value == 1:  # so is every draw, which does not make the areas of all texts equal for certain
        low = change.value - float(np.hypot(tuned.value - tuned.low, base.high - base.value))
        high = change.value + float(np.hypot(tuned.high - tuned.value, base.value - base.low))
        change = replace(change, low=low, high=high)
    found = (*single.values(), change)
    if suffix != "auroc":
        return found
    return (*found, *rooms_of({m: metric.value for m, metric in single.items()}, draws, len(truth), "AUROC"))


def evidence(result: Result) -> tuple[Evidence, ...]:
    """One line: how much of what the base's end of a text tells of the feature the tuned model keeps, if there is room to say."""
    found = {m.metric: m for m in result.headline}
    base, tuned, untrained = (found[f"{model}_auroc"].value for model in ("base", "tuned", "untrained"))
    never = found.get("never_auroc")
    name = result.provenance.get("capability", "O_PT")
    told = (
        f"Where the base's training texts choose, a linear probe at the end of whole texts tells {name} from the base with AUROC "
        f"{base:.2f}, from the tuned model with {tuned:.2f}"
    )
    return kept_line(result, told, f"{untrained:.2f}", f"{never.value:.2f}" if never else None)
