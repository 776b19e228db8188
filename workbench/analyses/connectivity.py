"""Is there a barrier between the models: loss and accuracy on lines and curves between them, and along the fine-tuning's vector."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from workbench.analyses._landscape import Landscape, Line, Path, Point, name_of
from workbench.analyses.pruning import control_draws
from workbench.analysis import Settings, analysis
from workbench.measures import DRAWS, certain, derived, draw, proportion
from workbench.models.weight_paths import barrier, rise, train_middle, weights_of
from workbench.results import Direction, Evidence, Metric, Result
from workbench.statistics import bootstrap_mean, wilson
from workbench.subjects import Pair
from workbench.verdict import ROOM

BEYOND = (-1.0, -0.75, -0.5, -0.25, 1.25, 1.5, 1.75, 2.0)
"""Multiples of the fine-tuning's vector outside the line between its ends [2212.04089]."""
RANDOM_AT = (1.0, 2.0)
"""Multiples of random vectors of equal length; their sign is random, so that 1 stands for -1 as well."""
CONNECTED = 0.02
"""Models between which the accuracy dips by less than this on the straight line are linearly connected [Frankle+20 §3]."""
LINES: tuple[Line, ...] = (
    ("start", "tuned"),
    ("base", "tuned"),
    ("tuned", "revived"),
    ("base", "revived"),
    ("base", "never_had_it"),
)
"""`start` where fine-tuning did not start from the base."""
CURVED: Line = ("base", "revived")
"""Both of its ends have O_PT."""


class ConnectivitySettings(Settings):
    """Settings of `connectivity`."""

    points: int = Field(11, ge=5, le=41, description="points on each line, the ends included")
    n: int = Field(300, ge=16, description="test examples per set")
    steps: int = Field(150, ge=0, description="training steps of the curve's middle point; 0 for no curve")
    lr: float = Field(1e-3, gt=0, description="learning rate (Adam) of the curve's middle point, at the start")
    batch_size: int = Field(64, ge=1, description="texts per training step of the curve")
    score_examples: int = Field(
        1024, ge=16, description="texts that the curve is trained on, drawn independently of all others"
    )
    random_draws: int = Field(10, ge=10, description="random vectors that serve as the control")
    control_examples: int = Field(200, ge=16, description="examples (at most) for random vectors and for choosing a multiple")


@analysis(
    version=2,
    holds=600,
    n=300,
    passes=117,
    paper="2505.22310; Garipov+18 1802.10026; Frankle+20 1912.05671; Ilharco+23 2212.04089",
    group="weights",
    uses=("revived", "never_had_it"),
)
def connectivity(pair: Pair, settings: ConnectivitySettings) -> Result:
    """Loss (nats) and accuracy of O_PT at C_Te = 0 and of O_FT where it was trained, on paths between the models.

    `table`: `line` is `A to B`, A and B among base, tuned, revived, never_had_it (the control: pretrained alike, but never on
    O_PT) and start (where fine-tuning did not start from the base). `straight`: weights (1 - alpha) A + alpha B; that of the
    fine-tuning goes beyond its ends, start + alpha (tuned - start) [task arithmetic, 2212.04089]. `bezier`: a quadratic curve whose
    middle point was trained on O_PT, on other texts [1802.10026]. `random`: steps as long as the fine-tuning's in every parameter.

    `barriers`: `barrier` = max over alpha of L(alpha) - [(1 - alpha) L(0) + alpha L(1)] [2505.22310], `peak` = its alpha, `dip` =
    the same of the error rate, `optimism` = how much taking the maximum anew in each draw adds on average. `distances`: ||A - B||,
    and as a share of ||A||. `both`: accuracies at the alpha at which the worse of both is best on texts of split `select`.

    One valley or two says how far training went, and does not tell masked from erased.
    """
    land = Landscape(pair, settings.n, settings.control_examples)
    lines = [line for line in LINES if land.has(line)]
    grid = np.round(np.linspace(0, 1, settings.points), 6).tolist()
    vector = lines[0]
    for line in lines:
        land.straight(line, grid)
    land.straight(vector, BEYOND)
    land.random(vector, RANDOM_AT, settings.random_draws)
    if settings.steps and CURVED in lines:
        a, b = (weights_of(land.models[name]) for name in CURVED)
        texts = draw(pair, *land.texts["pt"], settings.score_examples, "score")
        steps, lr, size = settings.steps, settings.lr, settings.batch_size
        middle = train_middle(pair.base, a, b, texts, steps=steps, lr=lr, batch_size=size, seed=pair.seed)
        land.curve(CURVED, middle, grid)
    every: list[tuple[Line, Path]] = [(line, "straight") for line in lines]
    if any(point.path == "bezier" for point in land.found):
        every.append((CURVED, "bezier"))
    rows, metrics = _barriers(land, every)
    distances = land.distances(lines)
    result = Result(
        name="connectivity",
        tables={"table": land.table(), "barriers": pd.DataFrame(rows), "distances": distances},
        headline=(*_headline(metrics, vector), *_arithmetic(land, vector), *_lengths(distances)),
        limits=(
            "A barrier is a maximum over points, so that noise can only raise it; `optimism` says by how much resampling does.",
            "No barrier means that the models are joined for this ability, not that they compute it alike.",
            "Neurons and heads are not matched first: two models may be joined by a line that the straight one is not.",
        ),
        provenance={"capability": pair.capability, "tuned_on": pair.tuned_on},
    )
    return replace(result, evidence=evidence(result))


Metrics = dict[tuple[Line, Path, str, str], Metric]
"""`(line, path, role, barrier or dip)`."""


def _barriers(land: Landscape, paths: list[tuple[Line, Path]]) -> tuple[list[dict[str, Any]], Metrics]:
    """Table of the barriers of both abilities on all paths, and the same as numbers with draws (the maximum taken in each)."""
    rows: list[dict[str, Any]] = []
    metrics: Metrics = {}
    for line, path in paths:
        label = "_".join(line) + ("" if path == "straight" else f"_{path}")
        for role, (capability, share) in land.texts.items():
            alphas, seen = land.along(line, path, role)
            loss, error = (np.stack(v, axis=1) for v in ([o.loss for o in seen], [1 - o.right for o in seen]))
            high, peak = barrier(loss.mean(0), alphas)
            drawn = bootstrap_mean(loss, DRAWS, land.resampled[role])
            highs, peaks = barrier(drawn, alphas)
            dip, _ = barrier(error.mean(0), alphas)
            dips, _ = barrier(bootstrap_mean(error, DRAWS, land.resampled[role]), alphas)
            n, more = len(loss), float(np.mean(highs - rise(drawn, alphas)[:, alphas == peak][:, 0]))
            at = {"line": name_of(line), "path": path, "role": role, "capability": capability, "share": share, "n": n}
            metrics[line, path, role, "barrier"] = derived(f"barrier_{label}_{role}", float(high), highs, n, "nats")
            drop = derived(f"dip_{label}_{role}", float(dip), dips, n, "accuracy lost")
            # Where every answer is right the resampled ones are too; n texts still leave room for a dip.
            metrics[line, path, role, "dip"] = replace(drop, high=max(drop.high, float(wilson(float(dip) * n, n)[1])))
            for what in ("barrier", "dip"):
                m = metrics[line, path, role, what]
                rows.append({**at, "measure": what, "value": m.value, "low": m.low, "high": m.high, "unit": m.unit})
            low, top = np.percentile(peaks, [2.5, 97.5]).tolist()
            rows.append({**at, "measure": "peak", "value": float(peak), "low": low, "high": top, "unit": "share of the way"})
            rows.append({**at, "measure": "optimism", "value": more, "low": more, "high": more, "unit": "nats"})
    return rows, metrics


def _headline(metrics: Metrics, vector: Line) -> list[Metric]:
    """Barriers of O_PT, dips where both ends have it or are pretrained, O_FT on the fine-tuning's line, what the curve saves."""
    compared = (CURVED, ("base", "never_had_it"))
    found = [m for (line, _, role, what), m in metrics.items() if role == "pt" and (what == "barrier" or line in compared)]
    found.append(metrics[vector, "straight", "ft", "barrier"])
    if (CURVED, "bezier", "pt", "barrier") in metrics:
        flat, curved = (metrics[CURVED, path, "pt", "barrier"] for path in ("straight", "bezier"))
        saved = np.asarray(flat.draws) - np.asarray(curved.draws)
        found.append(derived("barrier_saved", flat.value - curved.value, saved, flat.n, "nats"))
    return found


def _arithmetic(land: Landscape, vector: Line) -> list[Metric]:
    """Accuracies at declared multiples of the fine-tuning's vector, and at the one chosen for both abilities."""
    found: list[Metric] = []
    best = land.best_of_both(vector)
    for name, alpha in (("negated", -1.0), ("start", 0.0), ("tuned", 1.0), ("doubled", 2.0), ("both", best)):
        for role, seed in land.resampled.items():
            found.append(proportion(f"{name}_{role}", land.found[Point(vector, "straight", alpha, role)].right, seed))
    if "start" in land.models:
        found.append(proportion("base_pt", land.found[Point(("base", "tuned"), "straight", 0.0, "pt")].right, land.pair.seed))
    else:
        found.append(replace(next(m for m in found if m.metric == "start_pt"), metric="base_pt"))
    random = np.stack([o.right for point, o in land.found.items() if point.path == "random" and point.alpha == 1])
    return [
        *found,
        certain("both_alpha", best, land.few, "multiple of the change"),
        derived("random_pt", float(random.mean()), control_draws(random, land.pair.seed), random.shape[1], "accuracy"),
    ]


def _lengths(distances: pd.DataFrame) -> list[Metric]:
    rows = distances[distances["measure"] == "relative_distance"]
    return [
        certain("distance_" + str(line).replace(" to ", "_"), float(value), 0, "share of the weights' norm")
        for line, value in zip(rows["line"], rows["value"], strict=True)
    ]


def evidence(result: Result) -> tuple[Evidence, ...]:
    """One line that takes no side: whether the revived model lies in the valley of the base. Uninformative where nothing was lost."""
    found = {m.metric: m for m in result.headline}
    pt = str(result.provenance.get("capability", "O_PT"))
    base, tuned = found["base_pt"], found["tuned_pt"]
    dip, height = found.get("dip_base_revived_pt"), found.get("barrier_base_revived_pt")

    def line(shown: Metric, direction: Direction, text: str) -> tuple[Evidence, ...]:
        numbers = (shown.metric, shown.value, shown.low, shown.high, shown.n)
        return (Evidence(result.name, *numbers, direction, text, pt, shown.bound),)

    if base.value - tuned.value < ROOM:
        text = (
            f"The tuned model is within {ROOM} of the base on {pt}: there is no loss that could have led into another valley."
        )
        return line(tuned, "uninformative", text)
    if dip is None or height is None:
        text = f"There is no revived model, so nothing says whether {pt} comes back in the valley that it was lost from."
        return line(tuned, "uninformative", text)
    joined = (
        "they are linearly connected"
        if dip.high < CONNECTED
        else "they are not linearly connected"
        if dip.low >= CONNECTED
        else "whether they are linearly connected stays open"
    )
    text = (
        f"On the straight line from the base to the revived model the accuracy of {pt} dips by {dip.value:.2f} "
        f"[{dip.low:.2f}, {dip.high:.2f}] and its loss rises by {height.value:.2f} nats: {joined}"
    )
    if "dip_base_revived_bezier_pt" in found:
        text += f"; on a trained curve it dips by {found['dip_base_revived_bezier_pt'].value:.2f}"
    if "dip_base_never_had_it_pt" in found:
        text += f" (base and a model of other pretraining: {found['dip_base_never_had_it_pt'].value:.2f})"
    if "distance_start_tuned" in found:
        text += "; the tuned model did not start from this base, so that two pretrainings lie between them"
    return line(dip, "neutral", f"{text}.")
