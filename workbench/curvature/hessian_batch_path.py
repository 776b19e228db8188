"""Are the solutions of small-batch and of large-batch training joined by a path without a barrier?"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from workbench.curvature.lanczos import extreme_pairs
from workbench.curvature.operators import hessian
from workbench.curvature.small_problems import COUNTING_ROWS, MOST_CLASSES, SOURCES, Problem, Source, batches, problem
from workbench.lab import Expectation, LabSettings, expectations, lab, over_seeds, progress
from workbench.models.weight_paths import barrier, between, distance, put, weights_of
from workbench.results import Metric, Result
from workbench.seeds import stream

FLAT = 0.1
"""Expected barrier, at most, in nats of the training loss, between solutions that lie in one basin."""
RATES = {"blobs": 0.2, "digits": 0.2, "counting": 3e-3}
"""Learning rates, the same for both sizes of a batch."""
COUNTING_STEPS = 400
"""Steps of counting at most; Adam needs fewer."""
PATHS = ("direct", "continued", "own", "other_start")
POINTS = 21

Frame = Any
"""A pandas table; its own types do not say whether a selection is a table or a column."""


class BatchPathSettings(LabSettings):
    """Settings of `hessian_batch_path`."""

    sources: tuple[Source, ...] = Field(SOURCES, min_length=1, description="what the nets are trained on")
    classes: int = Field(10, ge=2, le=10, description="number of classes, as far as a source has them")
    width: int = Field(48, ge=2, le=256, description="hidden neurons per layer; the GPT-2 of counting has a third of it")
    rows: int = Field(400, ge=32, le=5000, description="training rows at most")
    small: int = Field(16, ge=1, description="rows of a small batch; a large one is all rows")
    steps: int = Field(1000, ge=1, description="steps of each training, and of the continued training")

    @model_validator(mode="after")
    def _small_is_smaller(self) -> BatchPathSettings:
        most = min(self.rows, COUNTING_ROWS if "counting" in self.sources else self.rows)
        if 2 * self.small > most:
            raise ValueError(f"a small batch of {self.small} is no small part of all {most} rows; give at most half of them")
        return self


@lab(version=1, paper="Sagun+17 1706.04454", minutes=1, group="curvature")
def hessian_batch_path(settings: BatchPathSettings) -> Result:
    """Training from one start with small batches and with all rows at once, and the straight lines between what comes out.

    `table`: loss (nats) and accuracy on training and test rows along four paths, mean over seeds. `direct`: small- to large-batch
    solution. `continued`: small-batch solution to the large-batch one after as many more steps with small batches, as the paper
    does it. `own`: large-batch solution to that continuation of it. `other_start`: the control, two small-batch solutions from different
    starts. `barriers`: per path and seed max over alpha of L(alpha) - [(1 - alpha) L(0) + alpha L(1)], and `apart`: the distance of
    the ends as a share of that from the start to the small-batch solution. `ends`: loss, accuracy and the largest eigenvalue of the
    Hessian of the training loss at every solution. Plain SGD; Adam for the transformer of `counting`, which plain SGD does not train.
    """
    jobs: list[tuple[Source, int]] = [(source, seed) for source in settings.sources for seed in settings.all_seeds]
    along: list[dict[str, Any]] = []
    barriers: list[dict[str, Any]] = []
    ends: list[dict[str, Any]] = []
    for source, seed in progress(jobs, lambda job: f"{job[0]}, seed {job[1]}"):
        given, test = _drawn(source, settings, seed)
        start, solutions = _solutions(given, settings, seed)
        for name, net in solutions.items():
            seen = {split: _measured(net, rows) for split, rows in (("train", given), ("test", test))}
            row = {f"{what}_{split}": float(s.mean(what)) for split, s in seen.items() for what in ("loss", "accuracy")}
            ends.append({"source": source, "seed": seed, "solution": name, **row, "lambda_1": _sharpness(given, net, seed)})
        lines = {
            "direct": ("small", "large"),
            "continued": ("small", "large_continued"),
            "own": ("large", "large_continued"),
            "other_start": ("small", "other_start"),
        }
        travelled = distance(weights_of(start), weights_of(solutions["small"]))
        for path, (a, b) in lines.items():
            apart = distance(weights_of(solutions[a]), weights_of(solutions[b])) / travelled
            at = {"source": source, "path": path, "seed": seed}
            for split, rows in (("train", given), ("test", test)):
                found = _line(solutions[a], solutions[b], rows)
                for what, values in found.items():
                    points = zip(_alphas().tolist(), values.tolist(), strict=True)
                    along += [
                        {**at, "split": split, "measure": what, "alpha": x, "value": y, "n": len(rows)} for x, y in points
                    ]
                high, peak = barrier(found["loss"], _alphas())
                dip, _ = barrier(1 - found["accuracy"], _alphas())
                here = {"barrier": float(high), "peak": float(peak), "dip": float(dip), "apart": apart, "n": len(rows)}
                barriers.append({**at, "split": split, **here})
    frames = {name: pd.DataFrame(rows) for name, rows in (("along", along), ("barriers", barriers), ("ends", ends))}
    metrics, expected = _headline(frames["barriers"], frames["ends"])
    return Result(
        name="hessian_batch_path",
        tables={"table": _table(frames["along"]), **frames, "expectations": expectations(expected)},
        headline=tuple(metrics),
        limits=(
            "A straight line without a barrier joins two solutions; one with a barrier does not part them: a curve may join them.",
            "Both trainings start from the same weights. Solutions from different starts are not matched neuron by neuron.",
            f"A barrier is a maximum over {POINTS} points of the line, ends included.",
            f"Intervals are over {settings.seeds} seeds alone, and with few seeds too narrow.",
        ),
    )


def _alphas() -> Float[np.ndarray, " points"]:
    return np.linspace(0, 1, POINTS)


def _drawn(source: Source, settings: BatchPathSettings, seed: int) -> tuple[Problem, Problem]:
    k = min(settings.classes, MOST_CLASSES[source])
    return tuple(problem(source, k, settings.rows, seed, split) for split in ("train", "test"))  # pyright: ignore[reportReturnType]


def _solutions(given: Problem, settings: BatchPathSettings, seed: int) -> tuple[nn.Module, dict[str, nn.Module]]:
    """The start and four solutions; all that is random but the order of batches comes with the start."""
    width = max(2, settings.width // 3 // 2 * 2) if given.source == "counting" else settings.width
    start, other = given.net(width, seed), given.net(width, stream(seed, "other start"))
    small = _train(start, given, settings.small, settings.steps, stream(seed, "small"))
    large = _train(start, given, len(given), settings.steps, seed)
    continued = _train(large, given, settings.small, settings.steps, stream(seed, "continued"))
    elsewhere = _train(other, given, settings.small, settings.steps, stream(seed, "elsewhere"))
    return start, {"small": small, "large": large, "large_continued": continued, "other_start": elsewhere}


def _train(start: nn.Module, given: Problem, size: int, steps: int, seed: int) -> nn.Module:
    """Trained on, on a copy."""
    net, rate = copy.deepcopy(start), RATES[given.source]
    counting = given.source == "counting"
    optimizer = torch.optim.Adam(net.parameters(), lr=rate) if counting else torch.optim.SGD(net.parameters(), lr=rate)
    steps = min(steps, COUNTING_STEPS) if counting else steps
    for rows in islice(batches(len(given), size, seed), steps):
        optimizer.zero_grad()
        F.cross_entropy(net(given.inputs[rows]), given.targets[rows]).backward()
        optimizer.step()
    return net


@dataclass(frozen=True)
class _Seen:
    loss: Tensor
    accuracy: Tensor

    def mean(self, what: str) -> float:
        return float(getattr(self, what).mean())


@torch.no_grad()
def _measured(net: nn.Module, given: Problem) -> _Seen:
    outputs = net(given.inputs)
    return _Seen(
        F.cross_entropy(outputs, given.targets, reduction="none"), (outputs.argmax(-1) == given.targets).to(torch.float64)
    )


def _line(a: nn.Module, b: nn.Module, given: Problem) -> dict[str, Float[np.ndarray, " points"]]:
    work, ends = copy.deepcopy(a), (weights_of(a), weights_of(b))
    found: dict[str, list[float]] = {"loss": [], "accuracy": []}
    for alpha in _alphas().tolist():
        put(work, between(*ends, alpha))
        seen = _measured(work, given)
        for what, values in found.items():
            values.append(seen.mean(what))
    return {what: np.array(values) for what, values in found.items()}


def _sharpness(given: Problem, net: nn.Module, seed: int) -> float:
    """The largest eigenvalue of the Hessian of the training loss."""
    return float(extreme_pairs(hessian(given.objective(net)), 1, block=1, seed=seed).values[0])


def _table(along: Frame) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    names = ["source", "path", "split", "measure", "alpha"]
    for key, some in along.groupby(names, sort=False):
        m = over_seeds(str(key[3]), some["value"].tolist(), int(some["n"].min()))
        ends = {"value": m.value, "low": m.low, "high": m.high, "n": m.n, "seeds": m.seeds}
        rows.append({**dict(zip(names, key, strict=True)), **ends})
    return pd.DataFrame(rows)


def _headline(barriers: Frame, ends: Frame) -> tuple[list[Metric], list[Expectation]]:
    metrics: list[Metric] = []
    lines: list[Expectation] = []
    train = barriers[barriers["split"] == "train"]
    for source in dict.fromkeys(train["source"]):
        n = int(train[train["source"] == source]["n"].min())
        for path in PATHS:
            some = train[(train["source"] == source) & (train["path"] == path)]
            height = over_seeds(f"barrier_{path}_{source}", some["barrier"].tolist(), n, "nats")
            metrics.append(over_seeds(f"apart_{path}_{source}", some["apart"].tolist(), n, "share of the way from the start"))
            metrics += [height, over_seeds(f"dip_{path}_{source}", some["dip"].tolist(), n, "accuracy lost")]
            if path in ("direct", "continued", "own"):
                said = {"direct": "no barrier directly", "continued": "no barrier after continued training"}
                lines.append(Expectation(f"{source}: {said.get(path, 'continuing stays in the basin')}", height, high=FLAT))
        for solution in ("small", "large", "large_continued"):
            some = ends[(ends["source"] == source) & (ends["solution"] == solution)]
            metrics.append(over_seeds(f"loss_{solution}_{source}", some["loss_train"].tolist(), n, "nats"))
            metrics.append(over_seeds(f"lambda_1_{solution}_{source}", some["lambda_1"].tolist(), n, "largest eigenvalue"))
    return metrics, lines
