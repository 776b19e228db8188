"""With how few examples a linear probe reads the old answer: learning curves and the online codelength of the labels.

Where a probe of all examples reads the answer from every model, the number of examples that it takes may still tell them
apart: minimum description length separates *readable with few examples* from *readable at all* [Voita & Titov 2020].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from workbench.analyses._reading import kept_line, models_of, questions, rooms
from workbench.analysis import Settings, analysis
from workbench.errors import UserError
from workbench.examples import Examples
from workbench.measures import DRAWS, certain, derived, draw, proportion_row, role_of, shares, truth_of
from workbench.models.lens import residual_streams
from workbench.probes import CONVERGED, online_code, standardised
from workbench.results import Evidence, Metric, Result
from workbench.seeds import numpy_generator
from workbench.statistics import bootstrap_mean
from workbench.subjects import Pair, Question

SAVED = "share of the uniform code saved"


class ProbingCurveSettings(Settings):
    """Settings of `probing_curve`."""

    train_examples: int = Field(2000, ge=50, description="examples whose labels are coded, and largest number to fit on")
    first: int = Field(50, ge=8, description="smallest number of examples to fit on; their labels cost the uniform code")
    growth: float = Field(2.0, gt=1, description="ratio of one number of examples to the one before")
    orders: int = Field(3, ge=1, description="random orders of the training examples that everything is averaged over")
    precision: float = Field(
        2.0, gt=0, description="of the normal prior of a probe's entries; at 2000 examples the penalty of `probing`"
    )
    point: int | None = Field(None, ge=0, description="residual stream to read; chosen by the base and the controls when empty")
    n: int | None = Field(None, ge=16, description="test examples; the pair's own number when empty")
    iterations: int = Field(100, ge=1, description="largest number of L-BFGS iterations of a fit")

    @model_validator(mode="after")
    def _there_are_sizes_to_fit_on(self) -> ProbingCurveSettings:
        size_grid(self.first, self.train_examples, self.growth)
        return self


@dataclass(frozen=True)
class Series:
    """The coordinates of one learning curve."""

    model: str
    target: str
    prompt: str
    """`matching`: the prompt asks for the target; `tuned_on`: it asks for what the model was tuned on."""
    labels: str
    """`true` or `shuffled`."""


@dataclass(frozen=True)
class Learned:
    """Learning curves of several series, averaged over orders."""

    right: Float[np.ndarray, "p sizes m"]
    """Share of orders in which each test example is read correctly."""
    bits: Float[np.ndarray, "p n"]
    """What each training example's label costs, the mean over orders."""
    gradient: Float[np.ndarray, "p sizes"]
    """Largest entry over orders."""


@dataclass(frozen=True)
class Material:
    """What probes are fitted and tested on."""

    streams: Mapping[tuple[str, str], tuple[Tensor, Tensor]]
    """Standardised training and test activations `[points, n, d]` by model and prompt."""
    prompts: Mapping[tuple[str, str], str]
    """By target and kind of prompt."""
    labels: Mapping[tuple[str, str, str], tuple[np.ndarray, np.ndarray]]
    """Of training and test examples, by target, kind of prompt, and `true` or `shuffled`."""
    sizes: tuple[int, ...]
    precision: float
    iterations: int

    def classes(self, series: Series) -> np.ndarray:
        """All labels that occur."""
        return np.unique(np.concatenate(self.labels[series.target, series.prompt, series.labels]))

    def learn(self, series: Sequence[Series], points: Sequence[int], orders: Sequence[np.ndarray]) -> Learned:
        """Fit, test and code every series at its point, in every order of the training examples."""
        where = [self.streams[s.model, self.prompts[s.target, s.prompt]] for s in series]
        fitted, tested = (torch.stack([w[i][p] for w, p in zip(where, points, strict=True)]) for i in (0, 1))
        known, truth = (np.stack([self.labels[s.target, s.prompt, s.labels][i] for s in series]) for i in (0, 1))
        classes = [self.classes(s) for s in series]
        right = np.zeros((len(series), len(self.sizes), truth.shape[1]))
        bits, gradient = np.zeros(known.shape), np.zeros(right.shape[:2])
        for order in orders:
            code = online_code(fitted[:, order], known[:, order], classes, self.sizes, self.precision, self.iterations)
            bits[:, order] += code.bits / len(orders)
            for i, probes in enumerate(code.probes):
                right[:, i] += (probes.predict(tested) == truth) / len(orders)
                gradient[:, i] = np.maximum(gradient[:, i], probes.gradient)
        return Learned(right, bits, gradient)


def _check(settings: ProbingCurveSettings, question: Question, blocks: int) -> None:
    """Refuse a residual point that models of this depth do not have."""
    if settings.point is not None:
        _check_point(settings.point, blocks + 1)


@analysis(version=1, holds=600, passes=180, paper="Voita & Titov 2020", check=_check)
def probing_curve(pair: Pair, settings: ProbingCurveSettings) -> Result:
    """Probe accuracy over the number of training examples, and the online codelength of the labels, for every model.

    Estimand of the curve: accuracy on fresh texts at C_Te = 0 of a probe fitted on the first t training examples of a random
    order. Estimand of the codelength: bits per label that it takes to send all training labels to someone who has the
    activations, each block coded by the probe of all blocks before [Voita & Titov 2020, eq. 3]; the first block costs
    log2(classes) a label. A probe is the most likely multinomial logistic regression on standardised activations under a
    normal prior of fixed precision, so a probe of few examples is not sure of itself. `compression` = uniform / online code.

    Prompts, targets and controls are those of `probing`. The point is the one at which the base's labels of O_PT are cheaper
    than its best control's by most, on the first order of the training texts; the tuned model and the test texts have no say.

    In the headline a model is read as well as the share of the uniform code that it saves, 1 - bits / log2(classes): `room` =
    base - untrained, `room_never` = base - never had it, `share_kept` = (tuned - untrained) / room. Below .10 (`ROOM`) a room
    is too small to show anything. Intervals resample the coded examples with the fits held fixed.

    Does not show that the model uses what the probe reads.
    """
    sizes = size_grid(settings.first, settings.train_examples, settings.growth)
    asked = list(dict.fromkeys([pair.capability, pair.tuned_on]))
    train = {c: draw(pair, c, shares(pair, c)[0], settings.train_examples, "probe") for c in asked}
    test = {c: draw(pair, c, shares(pair, c)[0], settings.n or pair.n) for c in asked}
    wanted, models = questions(pair, train, test), models_of(pair)
    streams = {
        (name, prompt): standardised(residual_streams(model, train[prompt], 128), residual_streams(model, test[prompt], 128))
        for name, model in models.items()
        for prompt in asked
    }
    prompts = {(target, kind): prompt for target, prompt, kind in wanted}
    labels = _labels(pair, wanted, train, test)
    material = Material(streams, prompts, labels, sizes, settings.precision, settings.iterations)
    orders = [numpy_generator(pair.seed, "probe order", i).permutation(settings.train_examples) for i in range(settings.orders)]
    point = _point(pair, material, [name for name in models if name != "tuned"], settings.point, orders[0])
    series = [Series(m, target, kind, word) for target, _, kind in wanted for m in models for word in ("true", "shuffled")]
    found = material.learn(series, [point] * len(series), orders)
    coordinates = [{**vars(s), "role": role_of(pair, s.target)} for s in series]
    unfinished = int((found.gradient > CONVERGED).sum())
    result = Result(
        name="probing_curve",
        tables={
            "table": _curves(coordinates, found, sizes),
            "codelength": _codelengths(coordinates, series, material, found, pair.seed),
            "codes": _codes(wanted, material),
            "convergence": pd.DataFrame(
                {**at, "examples": size, "largest_gradient": gradient[i]}
                for at, gradient in zip(coordinates, found.gradient, strict=True)
                for i, size in enumerate(sizes)
            ),
        },
        headline=_headline(pair, dict(zip(series, found.bits, strict=True)), material),
        limits=(
            "A probe shows what can be read linearly, not what the model uses.",
            f"All curves read residual point {point}, "
            + ("as was asked." if settings.point is not None else "chosen by the base and its controls."),
            "The codelength depends on the probe: another one, or another prior, gives another number of bits.",
            *([f"{unfinished} fits stopped before their gradient fell below {CONVERGED}."] if unfinished else []),
        ),
        provenance={"capability": pair.capability, "tuned_on": pair.tuned_on},
    )
    return replace(result, evidence=evidence(result))


def size_grid(first: int, last: int, growth: float) -> tuple[int, ...]:
    """Numbers of examples from `first` on, each `growth` times the one before, and `last`.

    Raises:
        UserError: the first is not below the last.
    """
    if first >= last:
        raise UserError(f"probing_curve: first is {first}, which is not below train_examples {last}; lower it.")
    grid: list[int] = []
    size = float(first)
    while round(size) < last:
        grid.append(round(size))
        size = max(size * growth, grid[-1] + 1)
    return (*grid, last)


def _labels(
    pair: Pair, wanted: Sequence[tuple[str, str, str]], train: Mapping[str, Examples], test: Mapping[str, Examples]
) -> dict[tuple[str, str, str], tuple[np.ndarray, np.ndarray]]:
    out: dict[tuple[str, str, str], tuple[np.ndarray, np.ndarray]] = {}
    for target, prompt, kind in wanted:
        known, truth = truth_of(train[prompt], target), truth_of(test[prompt], target)
        shuffle = numpy_generator(pair.seed, "shuffled labels", target, prompt).permutation
        out[target, kind, "true"], out[target, kind, "shuffled"] = (known, truth), (shuffle(known), shuffle(truth))
    return out


def _point(pair: Pair, material: Material, models: Sequence[str], wanted: int | None, order: np.ndarray) -> int:
    """The residual point asked for, or the one at which the base's labels are cheaper than its best control's by most."""
    depth = len(material.streams["base", pair.capability][0])
    if wanted is not None:
        _check_point(wanted, depth)
        return wanted
    cells = [(Series(model, pair.capability, "matching", "true"), point) for model in models for point in range(depth)]
    found = material.learn([series for series, _ in cells], [point for _, point in cells], [order])
    cost = dict(zip(models, found.bits.mean(1).reshape(len(models), depth), strict=True))
    controls = np.min([cost[model] for model in models if model != "base"], axis=0)
    return int(np.argmax(controls - cost["base"]))


def _check_point(point: int, points: int) -> None:
    if point >= points:
        raise UserError(
            f"probing_curve: point is {point}, but the model has the residual points 0 to {points - 1}; "
            "choose one of them, or leave it empty."
        )


def _curves(coordinates: Sequence[Mapping[str, Any]], found: Learned, sizes: Sequence[int]) -> pd.DataFrame:
    return pd.DataFrame(
        {**at, "examples": size, **proportion_row(right[i])}
        for at, right in zip(coordinates, found.right, strict=True)
        for i, size in enumerate(sizes)
    )


def _codelengths(
    coordinates: Sequence[Mapping[str, Any]], series: Sequence[Series], material: Material, found: Learned, seed: int
) -> pd.DataFrame:
    """Bits per label, and how many times longer the uniform code is, with percentile intervals over examples."""
    rows: list[dict[str, Any]] = []
    for at, one, bits in zip(coordinates, series, found.bits, strict=True):
        uniform, draws = math.log2(len(material.classes(one))), bootstrap_mean(bits, DRAWS, seed)
        for measure, value, spread in (
            ("bits per label", float(bits.mean()), draws),
            ("compression", uniform / float(bits.mean()), uniform / draws),
        ):
            low, high = np.percentile(spread, [2.5, 97.5])
            numbers = {"value": value, "low": float(low), "high": float(high), "n": len(bits), "unit": measure}
            rows.append({**at, "measure": measure, **numbers})
    return pd.DataFrame(rows)


def _codes(wanted: Sequence[tuple[str, str, str]], material: Material) -> pd.DataFrame:
    """What labels cost without activations, and how well they are guessed: the lines to hold the curves against."""
    rows: list[dict[str, Any]] = []
    for target, _, kind in wanted:
        known, truth = material.labels[target, kind, "true"]
        classes = material.classes(Series("base", target, kind, "true"))
        shares_of = np.unique(known, return_counts=True)[1] / len(known)
        for what, value, unit in (
            ("uniform code", math.log2(len(classes)), "bits per label"),
            ("label frequencies", float(-(shares_of * np.log2(shares_of)).sum()), "bits per label"),
            ("majority", float(np.unique(truth, return_counts=True)[1].max() / len(truth)), "share of labels"),
        ):
            rows.append({"target": target, "prompt": kind, "kind": what, "value": value, "unit": unit})
    return pd.DataFrame(rows)


def _headline(pair: Pair, bits: Mapping[Series, np.ndarray], material: Material) -> tuple[Metric, ...]:
    words = {"never_had_it": "never"}

    def at(kind: str) -> dict[str, np.ndarray]:
        found = {s: b for s, b in bits.items() if (s.target, s.prompt, s.labels) == (pair.capability, kind, "true")}
        return {words.get(s.model, s.model): b for s, b in found.items()}

    def saved(read: Mapping[str, np.ndarray], uniform: float) -> dict[str, np.ndarray]:
        return {model: 1 - b / uniform for model, b in read.items()}

    matching = at("matching")
    uniform = math.log2(len(material.classes(Series("base", pair.capability, "matching", "true"))))
    n = len(matching["base"])
    shown = {**matching, "shuffled": bits[Series("tuned", pair.capability, "matching", "shuffled")]}
    asked_ft = [
        m for m in (rooms(saved(at("tuned_on"), uniform), pair.seed) if at("tuned_on") else ()) if m.metric == "share_kept"
    ]
    return (
        *(
            derived(f"{model}_bits", float(b.mean()), bootstrap_mean(b, DRAWS, pair.seed), n, "bits per label")
            for model, b in shown.items()
        ),
        certain("uniform_bits", uniform, n, "bits per label"),
        *rooms(saved(matching, uniform), pair.seed, SAVED),
        *(replace(m, metric="share_kept_asked_ft") for m in asked_ft),
    )


def evidence(result: Result) -> tuple[Evidence, ...]:
    """One line: how much of what the base's activations save the tuned model's save, if the controls leave room to say."""
    found = {m.metric: m for m in result.headline}
    base, tuned, untrained, uniform = (found[f"{k}_bits"].value for k in ("base", "tuned", "untrained", "uniform"))
    never = found.get("never_bits")
    name = result.provenance.get("capability", "O_PT")
    told = (
        f"With probes that learn on the way, a label of {name} costs {base:.2f} bits from the base and {tuned:.2f} from the "
        f"tuned model, out of {uniform:.2f}"
    )
    return kept_line(result, told, f"{untrained:.2f} bits", f"{never.value:.2f} bits" if never else None)
