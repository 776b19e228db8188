"""Do the outliers of the Hessian count the classes? Fixed nets on data of k clusters, k = 2 to 8."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field, field_validator
from torch import nn

from workbench.curvature.lanczos import extreme_pairs
from workbench.curvature.operators import hessian
from workbench.curvature.outliers import MOST, attribution, count_outliers, overlap, random_overlap, span
from workbench.curvature.small_problems import (
    MOST_CLASSES,
    SOURCES,
    Problem,
    Source,
    class_gradients,
    class_logits,
    problem,
    train_to,
)
from workbench.lab import Expectation, LabSettings, expectations, lab, over_seeds, progress
from workbench.results import Metric, Result

FOLLOWS = 0.8
"""Expected share of trainings, at least, with k - 1 or k outliers."""
SLOPE = (0.75, 1.25)
"""Expected outliers per class more."""
BELONGS = 0.5
"""Expected overlap, at least, of the outliers' eigenvectors with the span of the classes' mean gradients."""
ORDERED = "counting"
"""Its classes lie in an order on one line, so that one direction tells many of them apart: no expectation is held against it."""
RESIDUAL = 1e-4
"""Largest ||H v - lambda v|| / lambda_1 of a leading eigenpair; worse ones are refused. An eigenvalue's error is about its square."""

Frame = Any
"""A pandas table; its own types do not say whether a selection is a table or a column."""


class ClustersSettings(LabSettings):
    """Settings of `hessian_clusters`."""

    sources: tuple[Source, ...] = Field(SOURCES, min_length=1, description="what the nets are trained on")
    classes: tuple[int, ...] = Field((2, 3, 4, 5, 6, 7, 8), min_length=1, description="numbers of classes k")
    width: int = Field(32, ge=2, le=256, description="hidden neurons per layer; the GPT-2 of counting has a third of it")
    rows: int = Field(400, ge=32, le=5000, description="training rows at most")
    loss: float = Field(0.1, gt=0, description="training ends at this mean loss (nats)")
    steps: int = Field(800, ge=1, description="training steps at most")

    @field_validator("classes")
    @classmethod
    def _can_be_drawn(cls, classes: tuple[int, ...]) -> tuple[int, ...]:
        most = max(MOST_CLASSES.values())
        for k in classes:
            if not 2 <= k <= most:
                raise ValueError(f"{k} classes are not possible; give numbers from 2 to {most}")
        return classes


@lab(version=1, paper="Sagun+17 1706.04454; Papyan 2020 2008.11865", minutes=2, group="curvature")
def hessian_clusters(settings: ClustersSettings) -> Result:
    """Outliers by the gap rule (`workbench.curvature.outliers`) of the Hessian of the training loss, one net per k and seed.

    `table`: per source, arm and k the mean number of `outliers` over seeds. `runs`: each training, with its loss, the drop below its
    outliers, and the overlap of their eigenvectors with the k classes' mean gradients (`overlap_gradients`) and mean logits'
    gradients (`overlap_logits`), beside random subspaces of equal dimension. `eigenvalues`: the leading ones. `attribution`:
    squared cosine of each outlier's eigenvector with each class's mean-logit direction. Arm `control`: no clusters (all blobs in
    one place, or shuffled labels).
    """
    jobs: list[tuple[Source, str, int, int]] = [
        (source, arm, k, seed)
        for source in settings.sources
        for arm in ("classes", "control")
        for k in settings.classes
        if k <= MOST_CLASSES[source]
        for seed in settings.all_seeds
    ]
    runs: list[dict[str, Any]] = []
    leading: list[dict[str, Any]] = []
    shares: list[dict[str, Any]] = []
    for source, arm, k, seed in progress(jobs, lambda j: f"{j[0]} ({j[1]}), k = {j[2]}, seed {j[3]}"):
        given = problem(source, k, settings.rows, seed, control=arm == "control")
        net = given.net(_width(source, settings.width), seed)
        trained = train_to(net, given, settings.loss, settings.steps)
        values, vectors, residual, size = _leading(given, net, seed)
        found = count_outliers(values, size)
        at = {"source": source, "arm": arm, "k": k, "seed": seed}
        top = vectors[:, : found.count]
        runs.append({**at, "outliers": found.count, "drop": found.drop, **_overlaps(given, net, top, seed)})
        runs[-1] |= {"loss": trained.loss, "accuracy": trained.accuracy, "steps": trained.steps, "n": len(given)}
        runs[-1] |= {"parameters": size, "residual": residual}
        leading += [{**at, "index": i + 1, "value": value} for i, value in enumerate(values.tolist())]
        if arm == "classes":
            cosines = attribution(top, class_logits(given, net))
            shares += [{**at, "index": i + 1, "class": c, "value": float(v)} for (i, c), v in np.ndenumerate(cosines)]
    frame = pd.DataFrame(runs)
    metrics, lines = _headline(frame, settings)
    columns = ["source", "arm", "k", "seed", "index", "class", "value"]
    return Result(
        name="hessian_clusters",
        tables={
            "table": _table(frame),
            "runs": frame,
            "eigenvalues": pd.DataFrame(leading),
            "attribution": pd.DataFrame(shares, columns=pd.Index(columns)),
            "expectations": expectations(lines),
        },
        headline=tuple(metrics),
        limits=(
            f"A number of outliers depends on the rule: the last drop of a given factor among the leading {MOST} eigenvalues.",
            f"It depends on when training stops: here at {settings.loss:g} nats. Nearer to zero loss a few hard rows carry the Hessian, "
            "and more eigenvalues stand apart where k is small.",
            "Counts are classes in an order: one direction of the logits tells many of them apart, so that fewer outliers are due there.",
            f"Intervals are over {settings.seeds} seeds alone, and with few seeds too narrow.",
        ),
    )


def _width(source: Source, width: int) -> int:
    return max(2, width // 3 // 2 * 2) if source == "counting" else width


def _leading(given: Problem, net: nn.Module, seed: int) -> tuple[np.ndarray, np.ndarray, float, int]:
    """The `MOST` + 1 largest eigenvalues, largest first, with eigenvectors, their worst relative residual, and all parameters."""
    h = hessian(given.objective(net))
    found = extreme_pairs(h, min(MOST + 1, h.size - 1), block=1, tolerance=RESIDUAL, seed=seed, confirm=True)
    if not found.converged.all():
        worst = found.residuals.max() / found.scale
        raise ArithmeticError(f"eigenpairs did not converge: a residual of {worst:.1e} times the largest eigenvalue is left")
    return found.values, found.vectors.numpy(), float(found.residuals.max() / found.scale), h.size


def _overlaps(given: Problem, net: nn.Module, top: np.ndarray, seed: int) -> dict[str, float]:
    """Overlaps of the outliers' eigenvectors with both spans of classes, and the mean of random subspaces' of equal dimension."""
    gradients, logits = class_gradients(given, net), class_logits(given, net)
    random = random_overlap(top, span(gradients).shape[1], seed) if top.shape[1] else np.array([np.nan])
    return {
        "overlap_gradients": overlap(top, gradients),
        "overlap_logits": overlap(top, logits),
        "overlap_random": float(random.mean()),
        "overlap_random_high": float(np.percentile(random, 97.5)) if top.shape[1] else float("nan"),
    }


def _table(runs: Frame) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for (source, arm, k), some in runs.groupby(["source", "arm", "k"], sort=False):
        m = over_seeds("outliers", some["outliers"].tolist(), int(some["n"].min()))
        ends = {"value": m.value, "low": m.low, "high": m.high, "n": m.n, "seeds": m.seeds}
        rows.append({"source": source, "arm": arm, "k": k, "measure": "outliers", **ends, "loss": some["loss"].max()})
    return pd.DataFrame(rows)


def _headline(runs: Frame, settings: ClustersSettings) -> tuple[list[Metric], list[Expectation]]:
    metrics: list[Metric] = []
    lines: list[Expectation] = []
    for (source, arm), some in runs.groupby(["source", "arm"], sort=False):
        n, tail = int(some["n"].min()), f"{source}" if arm == "classes" else f"{source}_control"
        by_seed = [rows for _, rows in some.groupby("seed", sort=False)]
        follows = over_seeds(f"follows_{tail}", [float(_follows(rows).mean()) for rows in by_seed], n, "share of k")
        metrics.append(follows)
        slope = over_seeds(f"slope_{tail}", [_slope(rows) for rows in by_seed], n, "outliers per class")
        if len(settings.classes) > 1:
            metrics.append(slope)
        names = ("overlap_gradients", "overlap_logits", "overlap_random")
        overlaps = [over_seeds(f"{name}_{tail}", [float(r[name].mean()) for r in by_seed], n, "share") for name in names]
        if arm == "classes":
            metrics += overlaps
        if arm == "classes" and source != ORDERED:
            lines.append(Expectation(f"{source}: k - 1 or k outliers", follows, low=FOLLOWS))
            if len(settings.classes) > 1:
                lines.append(Expectation(f"{source}: outliers grow with k", slope, *SLOPE))
            lines.append(Expectation(f"{source}: outliers lie in the classes' mean gradients", overlaps[0], low=BELONGS))
    return metrics, lines


def _follows(runs: Frame) -> Frame:
    return (runs["outliers"] == runs["k"]) | (runs["outliers"] == runs["k"] - 1)


def _slope(runs: Frame) -> float:
    """Least squares of outliers on k."""
    return float(np.polyfit(runs["k"], runs["outliers"], 1)[0]) if runs["k"].nunique() > 1 else float("nan")
