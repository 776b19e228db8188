"""Is logistic regression at huge steps the batch perceptron, and does a higher loss mean a faster solution?

All rules and theorems are those of [2412.08424], read in full. For signed rows z_i = y_i a_i the loss is the mean of
log(1 + exp(-z_i . theta)) (nats), and every rule starts from theta = 0 and stops when all margins z_i . theta are positive.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from pydantic import Field, field_validator
from scipy.special import expit

from workbench.lab import Expectation, LabSettings, expectations, lab, over_seeds, progress
from workbench.results import Metric, Result
from workbench.seeds import numpy_generator

Rows = Float[np.ndarray, "n d"]
Margins = Float[np.ndarray, " n"]
Point = Float[np.ndarray, " d"]
Method = Literal["lr_gd", "normalized_lr_gd", "batch_perceptron", "normalized_batch_perceptron"]

TABLE_1 = {
    ("normalized_lr_gd", 100.0): 2,
    ("normalized_lr_gd", 10.0): 2,
    ("normalized_lr_gd", 1.0): 16,
    ("normalized_lr_gd", 0.1): 157,
    ("lr_gd", 100.0): 308,
}
"""Iterations on the worst-case set of 1000 rows [2412.08424 Table 1]."""
TABLE_1_ROWS = 1000
SEPARATION, RANDOM_ROWS, RANDOM_WIDTH = 0.05, 100, 10
"""Of random sets: the shift along the separator, rows, and dimensions."""
OF_SMOOTHNESS = (1.0, 1e4, 1e8)
"""Steps on random sets, in units of 1/L, where L is the largest curvature of the loss."""
LIMIT_STEP, LIMIT_ITERATIONS, LIMIT_DISTANCE = 1e12, 60, 1e-12
"""The step at which theta / step is compared with the perceptron's iterate, for how long, and how far apart they may be."""


class PerceptronSettings(LabSettings):
    """Settings of `perceptron`."""

    rows: tuple[int, ...] = Field((10, 100, 1000), min_length=1, description="rows of the worst-case sets, increasing")
    steps: tuple[float, ...] = Field((100, 10, 1, 0.1), min_length=1, description="steps of Normalized LR+GD")
    plain_steps: tuple[float, ...] = Field((1, 100, 1e4, 1e8), min_length=1, description="steps of LR+GD")
    most: int = Field(20_000, ge=1, description="iterations after which a rule counts as not having solved it")

    @field_validator("rows", mode="after")
    @classmethod
    def _two_rows(cls, rows: tuple[int, ...]) -> tuple[int, ...]:
        if min(rows) < 2 or list(rows) != sorted(set(rows)):
            raise ValueError("must be increasing numbers of at least 2 rows, one of each class")
        return rows

    @field_validator("steps", "plain_steps", mode="after")
    @classmethod
    def _positive(cls, steps: tuple[float, ...]) -> tuple[float, ...]:
        if not all(math.isfinite(step) and step > 0 for step in steps):
            raise ValueError("must be finite and more than 0")
        return steps


@dataclass(frozen=True)
class Data:
    """Signed rows, and a unit separator that says how well they can be told apart."""

    name: str
    signed: Rows
    separator: Point

    @property
    def radius2(self) -> float:
        """R^2, the largest squared length of a row."""
        return float(np.square(self.signed).sum(1).max())

    @property
    def margin(self) -> float:
        """The smallest margin under the separator; at most the best there is, so that bounds made with it hold."""
        return float((self.signed @ self.separator).min())

    @property
    def smoothness(self) -> float:
        """L, the largest eigenvalue that the Hessian of the loss can have: that of Z^T Z / 4n."""
        return float(np.linalg.norm(self.signed, 2)) ** 2 / (4 * len(self.signed))


def worst_case(n: int) -> Data:
    """One point (.5, -1) with label +1 and n - 1 copies of (-.5, -1) with label -1; R^2 = 1.25, margin .5 [2412.08424 §5]."""
    signed = np.tile([0.5, 1.0], (n, 1))
    signed[0] = (0.5, -1.0)
    return Data("worst case", signed, np.array([1.0, 0.0]))


def two_points() -> Data:
    """(1, -1) with label +1 and (-1, -4) with label -1: one huge step raises the loss without bound [2412.08424 Thm 4.1]."""
    separator = np.array([5.0, 2.0]) / math.sqrt(29)
    return Data("two points", np.array([[1.0, -1.0], [1.0, 4.0]]), separator)


def random_separable(n: int, d: int, seed: int) -> Data:
    """Rows of independent standard normal numbers, moved away from a random separator by `SEPARATION`."""
    generator = numpy_generator(seed, "separable", n, d)
    separator = generator.standard_normal(d)
    separator /= np.linalg.norm(separator)
    rows = generator.standard_normal((n, d))
    labels = np.where(rows @ separator >= 0, 1.0, -1.0)
    return Data("random", labels[:, None] * rows + SEPARATION * separator, separator)


# --- the rules: from signed rows and their margins to what is added to theta


def lr_gd(signed: Rows, margins: Margins, step: float) -> Point:
    """Gradient descent on the mean logistic loss."""
    return step / len(signed) * (expit(-margins) @ signed)


def normalized_lr_gd(signed: Rows, margins: Margins, step: float) -> Point:
    """The same times beta = 1 / mean(sigmoid(-margin)): not a gradient of unit length [2412.08424 §6]."""
    weights = expit(-margins)
    return step * (weights @ signed) / weights.sum()


def batch_perceptron(signed: Rows, margins: Margins, step: float = 1.0) -> Point:
    """The mean over all rows of those on the wrong side; a row of margin 0 counts half, as in the limit of `lr_gd`."""
    return step / len(signed) * (_wrong(margins) @ signed)


def normalized_batch_perceptron(signed: Rows, margins: Margins, step: float = 1.0) -> Point:
    """The mean over those on the wrong side alone.

    The paper divides by their number; here it is by their weights' sum, which differs only where margins are 0 and is what
    `normalized_lr_gd` tends to.
    """
    weights = _wrong(margins)
    return step * (weights @ signed) / weights.sum()


def _wrong(margins: Margins) -> Margins:
    return (margins < 0) + 0.5 * (margins == 0)


RULES: dict[Method, Callable[[Rows, Margins, float], Point]] = {
    "lr_gd": lr_gd,
    "normalized_lr_gd": normalized_lr_gd,
    "batch_perceptron": batch_perceptron,
    "normalized_batch_perceptron": normalized_batch_perceptron,
}


@dataclass(frozen=True)
class Run:
    """A rule on a set: how long it took, and what it went through."""

    iterations: int
    """Updates until all margins were positive; as many as were allowed where `solved` is false."""
    solved: bool
    losses: list[float] = field(default_factory=list[float])
    """Mean loss (nats) before each update and at the end."""
    accuracies: list[float] = field(default_factory=list[float])
    """Share of rows with a positive margin."""


def solve(data: Data, method: Method, step: float = 1.0, most: int = 20_000) -> Run:
    """Run a rule from theta = 0 until all rows are on the right side."""
    rule, signed = RULES[method], data.signed
    theta = np.zeros(signed.shape[1])
    losses: list[float] = []
    accuracies: list[float] = []
    for t in range(most + 1):
        margins = signed @ theta
        losses.append(float(np.logaddexp(0, -margins).mean()))
        accuracies.append(float((margins > 0).mean()))
        if accuracies[-1] == 1:
            return Run(t, True, losses, accuracies)
        if t < most:
            theta = theta + rule(signed, margins, step)
    return Run(most, False, losses, accuracies)


def bound(data: Data, method: Method, step: float) -> float:
    """Iterations that a theorem allows [2412.08424 Thms 3.3, 6.1]; infinite where there is none for the rule."""
    n, ratio = len(data.signed), data.radius2 / data.margin**2
    if method == "batch_perceptron":
        return n * ratio
    if method == "normalized_batch_perceptron":
        return ratio
    return ratio + 2 * math.log(2 * n - 1) / (step * data.margin**2) if method == "normalized_lr_gd" else math.inf


def distance_to_perceptron(data: Data, step: float = LIMIT_STEP, iterations: int = LIMIT_ITERATIONS) -> float:
    """The largest |theta / step - theta of the batch perceptron| over so many updates of both (Theorem 3.2: it vanishes)."""
    theirs, ours = np.zeros(data.signed.shape[1]), np.zeros(data.signed.shape[1])
    furthest = 0.0
    for _ in range(iterations):
        ours = ours + lr_gd(data.signed, data.signed @ ours, step)
        theirs = theirs + batch_perceptron(data.signed, data.signed @ theirs)
        furthest = max(furthest, float(np.abs(ours / step - theirs).max()))
    return furthest


@lab(version=1, paper="Logistic regression at large steps 2412.08424", minutes=0.2, group="dynamics")
def perceptron(settings: PerceptronSettings) -> Result:
    """Iterations of four rules on the paper's worst-case sets, its two-point set, and random separable sets.

    `table`: per set, rule and step the iterations (`value`, over seeds on random sets), the theorem's `bound` (infinite where there
    is none), the highest loss
    after the start, and the share `solved`. `runs`: each run. `curves`: loss and accuracy at every iteration
    of the largest worst-case set and the first random one.
    """
    jobs: list[Job] = []
    worst = [worst_case(n) for n in settings.rows]
    for data in (*worst, two_points()):
        jobs += _jobs(data, settings.seed, "lr_gd", settings.plain_steps)
        jobs += _jobs(data, settings.seed, "normalized_lr_gd", settings.steps)
        jobs += _perceptrons(data, settings.seed)
    random = [(seed, random_separable(RANDOM_ROWS, RANDOM_WIDTH, seed)) for seed in settings.all_seeds]
    for seed, data in random:
        jobs += _jobs(data, seed, "lr_gd", OF_SMOOTHNESS, 1 / data.smoothness, "/L")
        jobs += _jobs(data, seed, "normalized_lr_gd", OF_SMOOTHNESS, 1 / data.smoothness, "/L")
        jobs += _perceptrons(data, seed)
    runs: list[dict[str, Any]] = []
    curves: list[pd.DataFrame] = []
    for data, seed, method, step, label in progress(jobs, lambda job: f"{job[0].name}, {job[2]}, step {job[4]}"):
        run = solve(data, method, step, settings.most)
        at = {"set": data.name, "n": len(data.signed), "method": method, "step": label}
        highest = max(run.losses[1:])
        measured = {"value": run.iterations, "solved": run.solved, "bound": bound(data, method, step), "highest_loss": highest}
        runs.append({**at, "seed": seed, **measured})
        if seed == settings.seed and (data is worst[-1] or data.name == "random"):
            seen = {"iteration": np.arange(len(run.losses)), "loss": run.losses, "accuracy": run.accuracies}
            curves.append(pd.DataFrame({**at, **seen}))
    frame = pd.DataFrame(runs)
    distance = max(distance_to_perceptron(data) for _, data in random)
    metrics, lines = _headline(frame, distance)
    return Result(
        name="perceptron",
        tables={
            "table": _table(frame),
            "runs": frame,
            "curves": pd.concat(curves, ignore_index=True),
            "expectations": expectations(lines),
        },
        headline=tuple(metrics),
        limits=(
            "The sets are small and separable; nothing here is about data that no hyperplane separates.",
            "`Solved` is about training rows: no rule's generalisation is compared.",
            "On random sets bounds use the separator that made them, not the best one: they hold, but are loose.",
            f"A rule that has not solved a set stops after {settings.most:,} iterations, and that number stands for it.",
        ),
    )


Job = tuple[Data, int, Method, float, str]
"""A set, its seed, a rule, its step, and what that is called."""


def _jobs(data: Data, seed: int, method: Method, steps: tuple[float, ...], unit: float = 1, name: str = "") -> list[Job]:
    return [(data, seed, method, step * unit, f"{step:g}{name}") for step in steps]


def _perceptrons(data: Data, seed: int) -> list[Job]:
    return [(data, seed, "batch_perceptron", 1.0, "any"), (data, seed, "normalized_batch_perceptron", 1.0, "any")]


def _table(runs: Any) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for (name, n, method, step), some in runs.groupby(["set", "n", "method", "step"], sort=False):
        m = over_seeds("iterations", some["value"].tolist(), int(n))
        at = {"set": name, "n": n, "method": method, "step": step}
        more = {"bound": float(some["bound"].max()), "highest_loss": float(some["highest_loss"].median())}
        ends = {"value": m.value, "low": m.low, "high": m.high, "seeds": m.seeds}
        rows.append({**at, **ends, **more, "solved": float(some["solved"].mean())})
    return pd.DataFrame(rows)


def _headline(runs: Any, distance: float) -> tuple[list[Metric], list[Expectation]]:
    metrics: list[Metric] = []
    lines: list[Expectation] = []

    def line(says: str, metric: Metric, low: float = -math.inf, high: float = math.inf) -> None:
        metrics.append(metric)
        lines.append(Expectation(says, metric, low, high))

    worst = runs[(runs["set"] == "worst case") & (runs["n"] == TABLE_1_ROWS)]
    for (method, step), expected in TABLE_1.items():
        found = worst[(worst["method"] == method) & (worst["step"] == f"{step:g}")]
        if len(found):
            metric = over_seeds(f"iterations_{method}_{step:g}", found["value"].tolist(), TABLE_1_ROWS, "iterations")
            line(f"{method} at step {step:g} solves 1000 worst-case rows as in Table 1", metric, expected, expected)
    within = (runs["solved"] & (runs["value"] <= runs["bound"]))[np.isfinite(runs["bound"])]
    line("no run needs more than its theorem allows", over_seeds("within_bound", [float(within.mean())], len(within)), 1, 1)
    limit = over_seeds("distance_to_perceptron", [distance], RANDOM_ROWS)
    line(f"theta / step at step {LIMIT_STEP:g} is the batch perceptron", limit, high=LIMIT_DISTANCE)
    plain = runs[(runs["set"] == "random") & (runs["method"] == "lr_gd")].set_index(["step", "seed"])
    small, large = (plain.loc[f"{unit:g}/L"] for unit in (OF_SMOOTHNESS[0], OF_SMOOTHNESS[-1]))
    n = RANDOM_ROWS
    faster = over_seeds("iterations_ratio", (large["value"] / small["value"]).tolist(), n, "largest / smallest step")
    line("on random sets the largest step needs fewer iterations", faster, high=1)
    higher = over_seeds(
        "loss_ratio_log10", np.log10(large["highest_loss"] / small["highest_loss"]).tolist(), n, "powers of ten"
    )
    line("and has the higher loss on the way", higher, low=0)
    normalized = runs[(runs["set"] == "random") & (runs["method"] == "normalized_lr_gd")].set_index(["step", "seed"])
    slower = (normalized.loc[f"{OF_SMOOTHNESS[-1]:g}/L"]["value"] / large["value"]).tolist()
    metrics.append(over_seeds("normalized_ratio", slower, n, "normalized / plain, largest step, random sets"))
    return metrics, lines
