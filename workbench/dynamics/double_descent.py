"""Is the peak of double descent the data's doing, or what an optimizer does when it gets there?

Random ReLU features Z = ReLU(X W) / sqrt p, W ~ N(0, 1/D), with least squares on the second layer. The claim of [2312.03951], of which
abstract and author's summary were read: a peak is seen only where the optimizer reaches a minimum of low loss; what worsens the
condition number kappa = s_max / s_min or slows descent removes it. Gradient descent from 0 needs no training: after T steps of
size eta its coefficients are those of the minimum-norm solution times 1 - (1 - eta s^2)^T, for each singular value s of Z.
The paper's data and sizes are not known; those here are ours: a linear teacher with noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from pydantic import Field, field_validator

from workbench.lab import Expectation, LabSettings, expectations, lab, over_seeds, progress
from workbench.results import Metric, Result
from workbench.seeds import numpy_generator
from workbench.statistics import hierarchical

Values = Float[np.ndarray, " k"]
Arm = Literal["min_norm", "gd", "heavy_ball", "adam", "rescaled_gd", "zero"]

PEAK = 10.0
"""The least that the error of the minimum-norm solution at p = n must exceed that of the widest net, as a factor."""
SLOW = 1000
"""Steps at which descent is expected to show no peak."""
FILTER_ERROR = 1e-8
"""What filter and actual descent may differ by, in predictions on test rows."""
MOMENTUM = 0.9
ADAM = {"rate": 1e-2, "b1": 0.9, "b2": 0.999, "epsilon": 1e-8}
"""Adam of the same number of steps as `SLOW`."""
SPREAD = 2.0
"""Powers of ten over which the columns of rescaled features are spread: the same span, another conditioning."""


class DoubleDescentSettings(LabSettings):
    """Settings of `double_descent`."""

    seeds: int = Field(10, ge=1, le=100, description="seeds of data and features, whose median errors are compared")
    rows: int = Field(100, ge=10, le=2000, description="training rows n")
    inputs: int = Field(20, ge=1, description="dimension D of the inputs")
    features: tuple[int, ...] = Field((10, 30, 60, 80, 90, 95, 100, 105, 110, 120, 150, 300, 1000), min_length=3)
    noise: float = Field(0.1, ge=0, description="variance of the noise on the labels; a label's own is 1")
    steps: tuple[float, ...] = Field((1e2, 1e3, 1e4, 1e6), min_length=1, description="steps of gradient descent")
    test: int = Field(1000, ge=10, description="test rows, whose labels have no noise")

    @field_validator("features", mode="after")
    @classmethod
    def _increasing(cls, features: tuple[int, ...]) -> tuple[int, ...]:
        if list(features) != sorted(set(features)) or features[0] < 1:
            raise ValueError("must be increasing numbers of features, at least 1")
        return features


@dataclass(frozen=True)
class Draw:
    """Features and labels of training and test rows."""

    features: Float[np.ndarray, "n p"]
    labels: Float[np.ndarray, " n"]
    test_features: Float[np.ndarray, "m p"]
    test_labels: Float[np.ndarray, " m"]

    def errors(self, second: Float[np.ndarray, " p"]) -> tuple[float, float]:
        """Mean squared error of a second layer on training and on test rows."""
        train = np.square(self.features @ second - self.labels).mean()
        return float(train), float(np.square(self.test_features @ second - self.test_labels).mean())


def draw(p: int, settings: DoubleDescentSettings, seed: int) -> Draw:
    """Data are the same for all p of a seed; so are the first features."""
    generator = numpy_generator(seed, "rows", settings.rows, settings.inputs)
    teacher = generator.standard_normal(settings.inputs)
    teacher /= np.linalg.norm(teacher)
    x = generator.standard_normal((settings.rows, settings.inputs))
    labels = x @ teacher + math.sqrt(settings.noise) * generator.standard_normal(settings.rows)
    test = generator.standard_normal((settings.test, settings.inputs))
    first = numpy_generator(seed, "features").standard_normal((p, settings.inputs)).T / math.sqrt(settings.inputs)
    train_features, test_features = (np.maximum(rows @ first, 0) / math.sqrt(p) for rows in (x, test))
    return Draw(train_features, labels, test_features, test @ teacher)


# --- what an optimizer does to each singular direction


def gd_filter(s: Values, eta: float, steps: float) -> Values:
    """1 - (1 - eta s^2)^T: the share of the minimum-norm coefficient that T steps of descent from 0 reach."""
    x = eta * s**2
    slow = x < 0.5  # where 1 - x would lose what is small
    return np.where(slow, -np.expm1(steps * np.log1p(-np.where(slow, x, 0))), 1 - (1 - x) ** steps)


def heavy_ball_filter(s: Values, eta: float, steps: int, momentum: float = MOMENTUM) -> Values:
    """The same for v = momentum v + gradient, theta -= eta v: the error of each direction by its own recursion."""
    error, velocity = np.ones_like(s), np.zeros_like(s)
    for _ in range(steps):
        velocity = momentum * velocity + s**2 * error
        error = error - eta * velocity
    return 1 - error


def filtered(data: Draw, by: Callable[[Values], Values]) -> Float[np.ndarray, " p"]:
    """The second layer with the coefficient of each singular direction times its filter; of ones, the minimum-norm solution."""
    u, s, vt = np.linalg.svd(data.features, full_matrices=False)
    return vt.T @ (by(s) * (u.T @ data.labels) / s)


def descend(data: Draw, eta: float, steps: int) -> Float[np.ndarray, " p"]:
    """Gradient descent itself from 0, on half the squared error summed over rows."""
    second = np.zeros(data.features.shape[1])
    for _ in range(steps):
        second = second - eta * (data.features.T @ (data.features @ second - data.labels))
    return second


def adam(data: Draw, steps: int = SLOW) -> Float[np.ndarray, " p"]:
    """Adam on the mean squared error, which has no filter: it follows no singular direction."""
    rate, b1, b2, epsilon = (ADAM[name] for name in ("rate", "b1", "b2", "epsilon"))
    second, m, v = (np.zeros(data.features.shape[1]) for _ in range(3))
    for t in range(1, steps + 1):
        slope = 2 / len(data.labels) * (data.features.T @ (data.features @ second - data.labels))
        m, v = b1 * m + (1 - b1) * slope, b2 * v + (1 - b2) * slope**2
        second = second - rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + epsilon)
    return second


def rescaled(data: Draw) -> Draw:
    """Columns times 10^0 to 10^-SPREAD: the same functions can be had, at a worse condition number."""
    scale = np.logspace(0, -SPREAD, data.features.shape[1])
    return Draw(data.features * scale, data.labels, data.test_features * scale, data.test_labels)


@lab(version=1, paper="Role of optimisation in double descent 2312.03951", minutes=0.6, group="dynamics")
def double_descent(settings: DoubleDescentSettings) -> Result:
    """Test error against the number of features: minimum-norm solution, gradient descent of several lengths, momentum, Adam.

    `table`: per `features`, `arm` and `steps` (infinite for the minimum-norm solution) the median `value` of the test error over seeds, its
    quartiles as `low` and `high`, and the median training loss. `runs`: the same by seed. `conditions`: kappa of plain and
    rescaled features, median over seeds.
    """
    runs: list[dict[str, Any]] = []
    conditions: list[dict[str, Any]] = []
    jobs = [(p, seed) for p in settings.features for seed in settings.all_seeds]
    for p, seed in progress(jobs, lambda job: f"{job[0]} features, seed {job[1]}"):
        data = draw(p, settings, seed)
        worse = rescaled(data)
        s, other = (np.linalg.svd(x.features, compute_uv=False) for x in (data, worse))
        conditions.append({"features": p, "seed": seed, "kappa": s[0] / s[-1], "rescaled": other[0] / other[-1]})
        eta = 1 / s[0] ** 2
        reached: list[tuple[Arm, float, tuple[float, float]]] = [
            ("zero", 0, data.errors(np.zeros(p))),
            ("min_norm", math.inf, data.errors(filtered(data, np.ones_like))),
            ("heavy_ball", SLOW, data.errors(filtered(data, lambda s, eta=eta: heavy_ball_filter(s, eta, SLOW)))),
            ("adam", SLOW, data.errors(adam(data))),
        ]
        for steps in settings.steps:
            reached.append(("gd", steps, data.errors(filtered(data, lambda s, eta=eta, t=steps: gd_filter(s, eta, t)))))
            slow = filtered(worse, lambda s, eta=1 / other[0] ** 2, t=steps: gd_filter(s, eta, t))
            reached.append(("rescaled_gd", steps, worse.errors(slow)))
        at = {"features": p, "seed": seed}
        runs += [{**at, "arm": arm, "steps": steps, "value": test, "train": train} for arm, steps, (train, test) in reached]
    frame = pd.DataFrame(runs)
    kappa = pd.DataFrame(conditions)
    metrics, lines = _headline(frame, kappa, settings)
    return Result(
        name="double_descent",
        tables={
            "table": _table(frame, settings.rows),
            "runs": frame,
            "conditions": kappa.groupby("features")[["kappa", "rescaled"]].median().reset_index(),
            "expectations": expectations(lines),
        },
        headline=tuple(metrics),
        limits=(
            "Linear teacher, Gaussian inputs, least squares on random features: nothing of nets whose features are learned.",
            "Descent stopped early is a regulariser; that it has no peak says nothing of which solution one should want.",
            "Test labels are without noise; errors are medians over seeds, for at p = n the mean is that of the worst seed.",
            "Adam's rate is one rate; its curve depends on it.",
        ),
    )


def _table(runs: Any, n: int) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for (arm, steps, p), some in runs.groupby(["arm", "steps", "features"], sort=False):
        low, value, high = (float(x) for x in some["value"].quantile([0.25, 0.5, 0.75]))
        at = {"arm": arm, "steps": steps, "features": p}
        ends = {"value": value, "low": low, "high": high, "n": n, "seeds": len(some)}
        rows.append({**at, **ends, "train": float(some["train"].median())})
    return pd.DataFrame(rows)


def _headline(runs: Any, kappa: Any, settings: DoubleDescentSettings) -> tuple[list[Metric], list[Expectation]]:
    """Peaks as factors: the error at a number of features over that of others, by seed."""
    metrics: list[Metric] = []
    lines: list[Expectation] = []
    n = settings.rows
    error = runs.pivot_table(index="seed", columns=["arm", "steps", "features"], values="value")
    features = list(settings.features)
    near = [p for p in features if 0.6 * n <= p <= 1.5 * n]

    def line(says: str, metric: Metric, low: float = -math.inf, high: float = math.inf) -> None:
        metrics.append(metric)
        lines.append(Expectation(says, metric, low, high))

    best = error["min_norm"][math.inf].idxmax(axis=1)
    line("the minimum-norm error peaks at p = n", over_seeds("peak_at", (best / n).tolist(), n, "features / rows"), 0.9, 1.1)
    if n in features:
        factor = error["min_norm"][math.inf][n] / error["min_norm"][math.inf][features[-1]]
        line("and is there many times that of the widest net", _ratio("peak_factor", factor, n), low=PEAK)
    if SLOW in settings.steps and near:
        worst = error["gd"][SLOW][near].max(axis=1)
        says = f"gradient descent of {SLOW} steps has no peak: its worst near p = n over the minimum norm's at p = {near[0]}"
        line(says, _ratio("gd_peak", worst / error["min_norm"][math.inf][near[0]], n), high=1)
    widest = kappa.pivot_table(index="seed", columns="features", values="kappa").idxmax(axis=1)
    at = over_seeds("kappa_at", (widest / n).tolist(), n, "features / rows")
    line("the condition number is largest at p = n", at, 0.9, 1.1)
    if n in features:
        for steps in settings.steps:
            metric = _ratio(f"rescaled_{steps:g}", error["rescaled_gd"][steps][n] / error["gd"][steps][n], n)
            metrics.append(metric)
            if steps == max(settings.steps):
                lines.append(Expectation("worse conditioning lowers what is left of the peak", metric, high=1))
    data = draw(near[0] if near else features[0], settings, settings.seed)
    eta, steps = float(1 / np.linalg.norm(data.features, 2) ** 2), SLOW
    away = data.test_features @ (filtered(data, lambda s: gd_filter(s, eta, steps)) - descend(data, eta, steps))
    line("the filter is gradient descent", over_seeds("filter_error", [float(np.abs(away).max())], n), high=FILTER_ERROR)
    return metrics, lines


def _ratio(name: str, by_seed: Any, n: int) -> Metric:
    """The geometric mean over seeds of a ratio of test errors."""
    values = [float(value) for value in by_seed]
    found = hierarchical([[value] for value in values], "geometric")
    low, high = (found.low, found.high) if len(values) > 1 else (math.nan, math.nan)
    return Metric(name, found.value, low, high, n, "ratio", pool="geometric", seeds=len(values), draws=tuple(values))
