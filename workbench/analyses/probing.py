"""Whether a linear probe still reads the old answer from the model: all probes of a pair fitted as one problem.

A probe that succeeds says little by itself; beside each stand one on an untrained model, one on a model that never had the
ability, and one on shuffled labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from workbench.analysis import Settings, analysis
from workbench.examples import Examples
from workbench.measures import DRAWS, derived, draw, proportion, proportion_row, role_of, shares, truth_of
from workbench.models.lens import residual_streams
from workbench.results import Direction, Evidence, Metric, Result
from workbench.seeds import numpy_generator
from workbench.statistics import bootstrap_mean
from workbench.subjects import Pair
from workbench.verdict import ROOM

KEPT = 0.8
"""From this share of the room on, an ability that is lost in behaviour counts as still encoded."""
GONE = 0.2
"""Below this share of the room it is no more readable than in a model of random weights."""
CONVERGED = 1e-3
"""Largest gradient entry (nats per standard deviation of an activation) at which a fit counts as finished."""


class ProbingSettings(Settings):
    """Settings of `probing`."""

    train_examples: int = Field(2000, ge=50, description="examples that the probes are fitted on")
    n: int | None = Field(None, ge=16, description="test examples; the pair's own number when empty")
    penalty: float = Field(1e-3, gt=0, description="L2 penalty: loss = mean cross-entropy + penalty / 2 * |weights|^2")
    iterations: int = Field(100, ge=1, description="largest number of L-BFGS iterations")


@dataclass(frozen=True)
class Cell:
    """The coordinates of one probe."""

    model: str
    point: int
    """Residual stream: 0 after the embedding, b after block b."""
    target: str
    prompt: str
    """`matching`: the prompt asks for the target; `tuned_on`: it asks for what the model was tuned on."""
    labels: str
    """`true` or `shuffled`."""


@analysis(version=1, passes=45, paper="Jain+23 §D")
def probing(pair: Pair, settings: ProbingSettings) -> Result:
    """Accuracy of linear probes for O_PT and O_FT in every residual stream, with their controls [Jain+23 §D; Fig 8, 22-25, 90].

    Estimand: accuracy, on fresh texts at C_Te = 0, of a multinomial logistic regression with a bias on activations that are
    standardised by the training examples, at the position that PREDICTS the answer (at the answer itself the input would
    hold the label). Trained on texts at C_Te = 0 too, where the other label does not give the target away. Standardising and an
    L2 penalty replace the paper's 4,000 AdamW steps: the optimum is unique, and how near the fit is to it is in
    `convergence`.

    `prompt`: `matching` asks for the target, as the paper most naturally reads; `tuned_on` asks for O_FT with O_PT as target.
    The headline takes O_PT, the matching prompt, and the point where the base's probe exceeds the untrained model's most:
    base and untrained model choose it (on the test texts), the tuned model has no say.

    Shuffled labels are shuffled in training and in test. Held against the true test labels, a control on activations that fall
    into one cluster per label would be right by whole clusters or not at all.

    `room` = base - untrained, `room_never` = base - never had it, `share_kept` = (tuned - untrained) / room.

    Does not show that the model uses what the probe reads.
    """
    models: dict[str, PreTrainedModel] = {"base": pair.base, "tuned": pair.tuned, "untrained": pair.untrained}
    if pair.never_had_it is not None:
        models["never_had_it"] = pair.never_had_it
    n = settings.n or pair.n
    pt, ft = pair.capability, pair.tuned_on
    asked = list(dict.fromkeys([pt, ft]))
    train = {c: draw(pair, c, shares(pair, c)[0], settings.train_examples, "probe") for c in asked}
    test = {c: draw(pair, c, shares(pair, c)[0], n) for c in asked}
    wanted = [(c, c, "matching") for c in asked]
    if ft != pt and pt in train[ft].labels and pt in test[ft].labels:
        wanted.append((pt, ft, "tuned_on"))

    cells: list[Cell] = []
    sources: list[int] = []
    labels: list[np.ndarray] = []
    truths: list[np.ndarray] = []
    train_x, test_x, where = _activations(models, train, test)
    for target, prompt, kind in wanted:
        fitted, truth = truth_of(train[prompt], target), truth_of(test[prompt], target)
        shuffle = numpy_generator(pair.seed, "shuffled labels", target, prompt).permutation
        pairs = (("true", fitted, truth), ("shuffled", shuffle(fitted), shuffle(truth)))
        for (name, of, point), source in where.items():
            if of == prompt:
                for word, values, right in pairs:
                    cells.append(Cell(name, point, target, kind, word))
                    sources.append(source)
                    labels.append(values)
                    truths.append(right)
    fit = fit_probes(train_x[sources], np.stack(labels), settings.penalty, settings.iterations)
    correct = dict(zip(cells, fit.predict(test_x[sources]) == np.stack(truths), strict=True))

    rows = [{**_coordinates(pair, cell), **proportion_row(right)} for cell, right in correct.items()]
    convergence = pd.DataFrame([_coordinates(pair, cell) for cell in cells])
    convergence["loss_nats"], convergence["largest_gradient"] = fit.loss, fit.gradient
    point, headline = _headline(pair, {cell: right.astype(np.float64) for cell, right in correct.items()})
    unfinished = int((fit.gradient > CONVERGED).sum())
    result = Result(
        name="probing",
        tables={"table": pd.DataFrame(rows), "chance": _chance(wanted, test), "convergence": convergence},
        headline=headline,
        limits=(
            "A probe shows what can be read linearly, not what the model uses.",
            f"The headline reads residual point {point}, chosen by the base and the untrained model.",
            *(
                [f"{unfinished} of {len(cells)} probes stopped before their gradient fell below {CONVERGED}."]
                if unfinished
                else []
            ),
        ),
        provenance={"capability": pt, "tuned_on": ft},
    )
    return replace(result, evidence=evidence(result))


def _coordinates(pair: Pair, cell: Cell) -> dict[str, Any]:
    return {
        "model": cell.model,
        "point": cell.point,
        "target": cell.target,
        "role": role_of(pair, cell.target),
        "prompt": cell.prompt,
        "labels": cell.labels,
    }


def _activations(
    models: Mapping[str, PreTrainedModel], train: Mapping[str, Examples], test: Mapping[str, Examples]
) -> tuple[Float[Tensor, "f n d"], Float[Tensor, "f m d"], dict[tuple[str, str, int], int]]:
    """Residual streams of all `(model, prompt, point)`, standardised by the training examples, and where each lies."""
    where: dict[tuple[str, str, int], int] = {}
    parts: tuple[list[Tensor], list[Tensor]] = [], []
    for (name, model), prompt in product(models.items(), train):
        for part, examples in zip(parts, (train[prompt], test[prompt]), strict=True):
            part.append(residual_streams(model, examples, batch_size=128))
        for point in range(len(parts[0][-1])):
            where[name, prompt, point] = len(where)
    train_x, test_x = torch.cat(parts[0]), torch.cat(parts[1])
    mean, deviation = train_x.mean(1, keepdim=True), train_x.std(1, keepdim=True, correction=0)
    # The embedding at the answer request is one and the same vector in every example: nothing to scale.
    scale = torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation))
    return (train_x - mean) / scale, (test_x - mean) / scale, where


@dataclass(frozen=True)
class Probes:
    """Fitted probes `[p]`; a probe with fewer than `c` classes has the rest masked."""

    weights: Float[Tensor, "p d c"]
    bias: Float[Tensor, "p c"]
    classes: list[np.ndarray]
    loss: np.ndarray
    """Mean cross-entropy plus penalty of each probe, in nats."""
    gradient: np.ndarray
    """Largest absolute entry of each probe's gradient."""

    def predict(self, x: Float[Tensor, "p n d"]) -> np.ndarray:
        """The most likely label of each example `[p, n]`."""
        valid = _valid(self.classes, self.bias.shape[1])
        best = _logits(x, self.weights, self.bias, valid).argmax(-1).numpy()
        return np.stack([classes[row] for classes, row in zip(self.classes, best, strict=True)])


def _valid(classes: list[np.ndarray], width: int) -> Bool[Tensor, "p 1 c"]:
    return torch.tensor([[[i < len(c) for i in range(width)]] for c in classes])


def _logits(
    x: Float[Tensor, "p n d"], weights: Float[Tensor, "p d c"], bias: Float[Tensor, "p c"], valid: Bool[Tensor, "p 1 c"]
) -> Float[Tensor, "p n c"]:
    # Left alone, the bias of a class that a probe does not have would have no finite optimum.
    return (torch.einsum("pnd,pdc->pnc", x, weights) + bias[:, None]).masked_fill(~valid, -torch.inf)


def fit_probes(
    x: Float[Tensor, "p n d"],
    labels: Int[np.ndarray, "p n"],
    penalty: float,
    iterations: int,
    tolerance: float = CONVERGED / 2,
) -> Probes:
    """Multinomial logistic regressions, all at once: mean cross-entropy + penalty / 2 * |weights|^2, the bias free.

    One L-BFGS with a strong-Wolfe line search on the sum of the losses. Each probe is solved in coordinates in which its
    curvature is nearly the identity, A = (X'X s / n + penalty)^(-1/2) with s a typical variance of a class indicator; that
    changes the way to the optimum, not the optimum. The search ends when no entry of the gradient there exceeds `tolerance`.
    """
    found = [np.unique(row, return_inverse=True) for row in labels]
    classes = [values for values, _ in found]
    target = torch.from_numpy(np.stack([index for _, index in found]))
    width = max(len(values) for values in classes)
    valid = _valid(classes, width)
    p, n, d = x.shape
    curvature = torch.einsum("pni,pnj->pij", x, x).double() / n * ((width - 1) / width**2)
    values, vectors = torch.linalg.eigh(curvature)
    root = ((vectors * (values.clamp_min(0) + penalty).rsqrt()[:, None]) @ vectors.mT).to(x.dtype)

    def losses(weights: Tensor, bias: Tensor) -> Tensor:
        # In double precision: the line search compares sums over many probes whose last improvements are small.
        likelihood = torch.log_softmax(_logits(x, weights, bias, valid).double(), -1).gather(-1, target[..., None]).squeeze(-1)
        return -likelihood.mean(1) + penalty / 2 * weights.double().square().sum((1, 2))

    with torch.enable_grad():
        free = torch.zeros(p, d, width, dtype=x.dtype, requires_grad=True)
        bias = torch.zeros(p, width, dtype=x.dtype, requires_grad=True)
        search = torch.optim.LBFGS(
            [free, bias],
            max_iter=iterations,
            max_eval=2 * iterations,
            history_size=20,
            tolerance_grad=tolerance,
            tolerance_change=1e-12,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            search.zero_grad()
            total = losses(root @ free, bias).sum()
            total.backward()
            return total

        search.step(closure)
        weights = (root @ free).detach().requires_grad_()
        final = losses(weights, bias)
        slopes = torch.autograd.grad(final.sum(), (weights, bias))
    gradient = torch.maximum(slopes[0].abs().amax((1, 2)), slopes[1].abs().amax(1))
    return Probes(weights.detach(), bias.detach(), classes, final.detach().numpy(), gradient.numpy())


def _chance(wanted: list[tuple[str, str, str]], test: Mapping[str, Examples]) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for target, prompt, kind in wanted:
        counts = np.unique(truth_of(test[prompt], target), return_counts=True)[1]
        known = {"majority": float(counts.max() / counts.sum()), **(test[prompt].chance if target == prompt else {})}
        rows += [{"target": target, "prompt": kind, "kind": k, "value": value} for k, value in known.items()]
    return pd.DataFrame(rows)


def _headline(pair: Pair, correct: Mapping[Cell, np.ndarray]) -> tuple[int, tuple[Metric, ...]]:
    """The chosen point, and the numbers there."""

    def at(model: str, point: int, labels: str = "true") -> np.ndarray:
        return correct[Cell(model, point, pair.capability, "matching", labels)]

    points = sorted({cell.point for cell in correct})
    point = max(points, key=lambda p: float(at("base", p).mean() - at("untrained", p).mean()))
    read = {"base": at("base", point), "tuned": at("tuned", point), "untrained": at("untrained", point)}
    if any(cell.model == "never_had_it" for cell in correct):
        read["never"] = at("never_had_it", point)
    read["shuffled"] = at("tuned", point, "shuffled")
    mean = {name: float(values.mean()) for name, values in read.items()}
    draws = {name: bootstrap_mean(values, DRAWS, pair.seed) for name, values in read.items()}
    n = len(read["base"])

    def difference(name: str, a: str, b: str) -> Metric:
        return derived(name, mean[a] - mean[b], draws[a] - draws[b], n, "accuracy")

    room = mean["base"] - mean["untrained"]
    kept = (mean["tuned"] - mean["untrained"]) / room if room >= ROOM else math.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        kept_draws = (draws["tuned"] - draws["untrained"]) / (draws["base"] - draws["untrained"])
    return point, (
        *(proportion(f"{name}_probe", values, pair.seed) for name, values in read.items()),
        difference("room", "base", "untrained"),
        *([difference("room_never", "base", "never")] if "never" in read else []),
        derived("share_kept", kept, kept_draws, n, "share of the room"),
        difference("selectivity", "tuned", "shuffled"),
    )


def evidence(result: Result) -> tuple[Evidence, ...]:
    """One line: how much of the base's readable answer the tuned model keeps, if the controls leave room to say."""
    found = {m.metric: m for m in result.headline}
    base, tuned, untrained, kept = (found[k] for k in ("base_probe", "tuned_probe", "untrained_probe", "share_kept"))
    never = found.get("never_probe")
    name = result.provenance.get("capability", "O_PT")
    told = f"A linear probe reads {name} from the base at {base.value:.2f}, from the tuned model at {tuned.value:.2f}"
    shown = kept
    direction: Direction
    if found["room"].value < ROOM:
        shown, direction = found["room"], "uninformative"
        text = f"{told}, but from a model of random weights at {untrained.value:.2f} already: no room to show anything."
    elif never is None:
        shown, direction = found["room"], "uninformative"
        text = f"{told}; without a model that never had it, a probe does not tell the ability from its ingredients."
    elif found["room_never"].value < ROOM:
        shown, direction = found["room_never"], "uninformative"
        text = f"{told}, but from a model that never had it at {never.value:.2f} already: no room to show anything."
    elif not math.isfinite(kept.value):
        direction = "uninformative"
        text = f"{told}; in some seed a model of random weights is read almost as well: no room to show anything."
    elif kept.low >= KEPT:
        direction = "masked"
        controls = f"random weights {untrained.value:.2f}, never had it {never.value:.2f}"
        text = f"{told} ({controls}): {kept.value:.0%} of the room is kept."
    elif kept.high < GONE:
        direction = "erased"
        text = f"{told}, hardly better than from random weights ({untrained.value:.2f}): {kept.value:.0%} of the room is kept."
    else:
        direction = "neutral"
        text = f"{told} (random weights {untrained.value:.2f}): a part of the room is kept, which takes no side."
    return (Evidence("probing", shown.metric, shown.value, shown.low, shown.high, shown.n, direction, text, name, shown.bound),)
