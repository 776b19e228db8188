"""Does descent sharpen the loss until its own step is as large as stability allows, and Adam likewise in its own metric?

Sharpness is the largest eigenvalue of the Hessian of the full-batch loss (mean squared error over all entries). A quadratic of larger
sharpness than the threshold makes the method diverge: 2 / lr for gradient descent [Cohen+21 2103.00065], (2 + 2 b) / lr for heavy ball
with momentum b, and (2 + 2 b1) / ((1 - b1) lr) for Adam, 38 / lr at b1 = .9, of P^-1/2 H P^-1/2 with P = diag(sqrt(v_hat) + eps),
as if P stood still [Cohen+22 2207.14484 §2; both recalled]. For fixed P that follows by algebra and is bracketed here on a quadratic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor, nn

from workbench.curvature.lanczos import extreme_pairs
from workbench.curvature.objective import Objective, Part
from workbench.curvature.operators import hessian
from workbench.errors import UserError
from workbench.lab import Expectation, LabSettings, expectations, lab, over_seeds, progress
from workbench.results import Metric, Result
from workbench.seeds import numpy_generator, stream, torch_generator

Method = Literal["gd", "heavy_ball", "adam"]
METHODS: tuple[Method, ...] = ("gd", "heavy_ball", "adam")

INPUTS, OUTPUTS, ROWS = 8, 2, 64
MOMENTUM, B1, B2, EPSILON = 0.9, 0.9, 0.999, 1e-7
SETTLED = 1 / 3
"""Readings count from this share of the steps on: before, sharpness rises, overshoots and swings."""
AT_EDGE = {"gd": (0.98, 1.02), "heavy_ball": (0.95, 1.05), "adam": (0.9, 1.1)}
"""Expected range of the mean ratio of sharpness to threshold. Adam's metric moves, heavy ball swings further."""
UNIT = "sharpness / threshold"
"""Of most of what is measured."""
BELOW = 1.0
"""The ratio that a small rate must never exceed."""
BRACKET = 1e-3
"""How closely the edge of a quadratic is found."""
DIVERGED = 1e3
"""A loss above this, of targets of variance about 1, is a training that has diverged."""
TOLERANCE = 1e-5
"""Relative residual of the sharpness."""


class EdgeSettings(LabSettings):
    """Settings of `edge_of_stability`."""

    rates: tuple[float, ...] = Field((0.2, 0.4, 0.8), description="learning rates of gradient descent")
    small_rate: float = Field(0.02, gt=0, description="a rate at which descent is never at its edge: the control")
    momentum_rates: tuple[float, ...] = Field((0.2, 0.4), description="learning rates of heavy ball; none for none")
    adam_rates: tuple[float, ...] = Field((0.003, 0.01), description="learning rates of Adam; none for none")
    adam_small_rate: float = Field(3e-4, gt=0, description="the control among Adam's rates")
    steps: int = Field(3000, ge=10, description="full-batch steps")
    every: int = Field(50, ge=1, description="steps between two readings of the sharpness")
    hidden: int = Field(24, ge=1, le=200, description="neurons in each of the two hidden layers")

    @field_validator("rates", "momentum_rates", "adam_rates", mode="after")
    @classmethod
    def _positive(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if not all(math.isfinite(rate) and rate > 0 for rate in rates):
            raise ValueError("must be finite and more than 0")
        return rates


@dataclass(frozen=True)
class Problem:
    """Rows `[64, 8]` and targets `[64, 2]`: sin(2 x_0) and x_1 x_2."""

    inputs: Float[Tensor, "n d"]
    targets: Float[Tensor, "n v"]

    def loss(self, net: nn.Module) -> Tensor:
        """Mean squared error over all entries."""
        return (net(self.inputs) - self.targets).square().mean()


def problem(generator: torch.Generator) -> Problem:
    """Gaussian inputs and their targets."""
    x = torch.randn(ROWS, INPUTS, generator=generator, dtype=torch.float64)
    return Problem(x, torch.stack([(2 * x[:, 0]).sin(), x[:, 1] * x[:, 2]], dim=1))


def tanh_net(hidden: int, seed: int) -> nn.Module:
    """Linear, tanh, linear, tanh, linear, in double precision, with torch's own starting weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = (nn.Linear(INPUTS, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, OUTPUTS))
        return nn.Sequential(*layers).double()


def threshold(method: Method, rate: float) -> float:
    """The sharpness (for Adam, the preconditioned one) from which a quadratic makes the method diverge."""
    if method == "gd":
        return 2 / rate
    return (2 + 2 * MOMENTUM) / rate if method == "heavy_ball" else (2 + 2 * B1) / ((1 - B1) * rate)


def preconditioner(optimizer: torch.optim.Optimizer) -> Float[Tensor, " n"] | None:
    """Adam's P as a flat vector, its bias corrections included; None before its first step and for methods that have none."""
    pieces: list[Tensor] = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if "exp_avg_sq" not in state:
                return None
            b1, b2 = group["betas"]
            t = float(state["step"])
            root = (state["exp_avg_sq"] / (1 - b2**t)).sqrt() + group["eps"]
            pieces.append((root * (1 - b1**t)).reshape(-1))
    return torch.cat(pieces)


class Sharpness:
    """The largest eigenvalue along a training, each search starting from the last eigenvector."""

    def __init__(self, net: nn.Module, given: Problem) -> None:
        self.net, self.outputs = net, given.targets.shape[1]
        self.objective = Objective(net, [Part(given.inputs, given.targets)], "squared_error")
        self.vectors: Tensor | None = None

    def __call__(self, metric: Float[Tensor, " n"] | None = None) -> float:
        """At the net's present weights; of P^-1/2 H P^-1/2 with `metric` = P.

        Raises:
            UserError: no convergence.
        """
        self.objective.put(self.objective.flat([p.detach() for p in self.net.parameters()]))
        matrix = hessian(self.objective)
        if metric is not None:
            matrix = matrix.scaled(metric.rsqrt())
        pairs = extreme_pairs(matrix, 1, tolerance=TOLERANCE, start=self.vectors)
        if not pairs.converged[0]:
            raise UserError(
                f"the sharpness has a residual of {pairs.residuals[0]:g} beside {pairs.scale:g}; give a smaller rate."
            )
        self.vectors = pairs.vectors
        return float(pairs.values[0]) / self.outputs  # the objective sums over a row's outputs


def optimizer_of(method: Method, net: nn.Module, rate: float) -> torch.optim.Optimizer:
    """Full-batch optimizers as torch has them."""
    if method == "adam":
        return torch.optim.Adam(net.parameters(), lr=rate, betas=(B1, B2), eps=EPSILON)
    return torch.optim.SGD(net.parameters(), lr=rate, momentum=MOMENTUM if method == "heavy_ball" else 0)


def descend(net: nn.Module, given: Problem, method: Method, rate: float, steps: int, every: int) -> pd.DataFrame:
    """Train in place; rows `step loss sharpness ratio`, the ratio to the threshold, before the step.

    Adam has no P before its first step; there both are NaN. A training whose loss exceeds `DIVERGED` ends with a row of that loss and NaN.
    """
    optimizer, measure = optimizer_of(method, net, rate), Sharpness(net, given)
    rows: list[dict[str, float]] = []
    for step in range(steps + 1):
        loss = given.loss(net)
        if step % every == 0:
            value = loss.item()
            if not value <= DIVERGED:
                rows.append({"step": step, "loss": math.inf, "sharpness": math.nan, "ratio": math.nan})
                break
            metric = preconditioner(optimizer)
            found = math.nan if method == "adam" and metric is None else measure(metric)
            rows.append({"step": step, "loss": value, "sharpness": found, "ratio": found / threshold(method, rate)})
        if step < steps:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return pd.DataFrame(rows)


def quadratic_edge(
    curvatures: Float[np.ndarray, " d"], metric: Float[np.ndarray, " d"], steps: int = 20_000, precision: float = BRACKET
) -> tuple[float, float]:
    """Rates between which theta -= lr H theta / P turns from converging to diverging, H and P diagonal, by running it and halving.

    Both times the largest eigenvalue of P^-1 H: for the theorem to hold, 2 lies between them.
    """
    largest = float((curvatures / metric).max())

    def diverges(ratio: float) -> bool:
        factor = 1 - ratio / largest * curvatures / metric
        theta = np.ones_like(curvatures)
        for _ in range(steps):
            theta = factor * theta
            size = float(np.abs(theta).max())
            if size > 1e6 or size < 1e-6:
                return size > 1
        return float(np.abs(theta).max()) > 1

    return _bisect(diverges, 1.0, 3.1, precision)


def _bisect(true_above: Callable[[float], bool], low: float, high: float, precision: float) -> tuple[float, float]:
    while high - low > precision:
        middle = (low + high) / 2
        low, high = (low, middle) if true_above(middle) else (middle, high)
    return low, high


@lab(version=1, paper="Edge of stability Cohen+21 2103.00065", minutes=1, group="dynamics")
def edge_of_stability(settings: EdgeSettings) -> Result:
    """Sharpness along full-batch training of a small tanh net, against what each method's step allows, with small rates as controls.

    `table`: per method and rate, over seeds: `ratio` (mean of sharpness / threshold from a third of the steps on), `highest` (over
    all steps), `start` (at step 0), `loss` (the last) and `diverged` (share of seeds, which the other measures leave out).
    `course`: every reading of every seed.
    """
    chosen: dict[Method, tuple[float, ...]] = {
        "gd": (settings.small_rate, *settings.rates),
        "heavy_ball": settings.momentum_rates,
        "adam": (settings.adam_small_rate, *settings.adam_rates) if settings.adam_rates else (),
    }
    jobs: list[tuple[Method, float, int]] = [
        (method, rate, seed) for method in METHODS for rate in chosen[method] for seed in settings.all_seeds
    ]
    courses: list[pd.DataFrame] = []
    for method, rate, seed in progress(jobs, lambda job: f"{job[0]}, lr {job[1]:g}, seed {job[2]}"):
        net = tanh_net(settings.hidden, stream(seed, "weights"))
        given = problem(torch_generator(seed, "inputs"))
        control = rate in (settings.small_rate, settings.adam_small_rate) and rate == min(chosen[method])
        course = descend(net, given, method, rate, settings.steps, settings.every)
        courses.append(course.assign(method=method, rate=rate, seed=seed, control=control, threshold=threshold(method, rate)))
    frame = pd.concat(courses, ignore_index=True)
    measured = _measured(frame, settings)
    metrics, lines = _headline(measured, settings)
    return Result(
        name="edge_of_stability",
        tables={"table": _table(measured), "course": frame, "expectations": expectations(lines)},
        headline=tuple(metrics),
        limits=(
            f"One net, {ROWS} rows, full batches: minibatch noise, which holds sharpness below the edge, is left out.",
            "Training at the edge is chaotic: a change of 1e-15 of one weight changes single readings by some per cent before they settle.",
            "Adam's threshold takes its preconditioner for fixed, which it is not.",
            "That a net sits at its edge does not say that this is why it generalises, or that it must.",
        ),
    )


Measured = dict[tuple[Method, float, bool], dict[str, Metric]]
"""By method, rate, and whether it is a control."""


def _measured(course: Any, settings: EdgeSettings) -> Measured:
    found: Measured = {}
    for (method, rate, control), some in course.groupby(["method", "rate", "control"], sort=False):
        gone = some.groupby("seed")["loss"].max() == math.inf
        some = some[~some["seed"].map(gone)]
        late = some[some["step"] >= SETTLED * settings.steps]
        by_seed = {
            "ratio": late.groupby("seed")["ratio"].mean(),
            "highest": some.groupby("seed")["ratio"].max(),
            "start": some[some["step"] == 0].groupby("seed")["ratio"].mean(),
            "loss": some[some["step"] == some["step"].max()].groupby("seed")["loss"].mean(),
            "diverged": gone.astype(float),
        }
        found[method, rate, control] = {
            name: over_seeds(f"{name}_{method}_{rate:g}", values.tolist(), ROWS, "" if name in ("loss", "diverged") else UNIT)
            for name, values in by_seed.items()
        }
    return found


def _table(measured: Measured) -> pd.DataFrame:
    rows = [
        {"method": method, "rate": rate, "control": control, "measure": name}
        | {"value": m.value, "low": m.low, "high": m.high, "n": m.n, "seeds": m.seeds}
        for (method, rate, control), by_name in measured.items()
        for name, m in by_name.items()
    ]
    return pd.DataFrame(rows)


def _headline(measured: Measured, settings: EdgeSettings) -> tuple[list[Metric], list[Expectation]]:
    metrics: list[Metric] = []
    lines: list[Expectation] = []
    for (method, rate, control), by_name in measured.items():
        metric = by_name["highest" if control else "ratio"]
        metrics.append(metric)
        low, high = (0.0, BELOW) if control else AT_EDGE[method]
        where = "stays below" if control else "is at"
        lines.append(Expectation(f"{method}, lr {rate:g}: the sharpness {where} the threshold", metric, low, high))
    generator = numpy_generator(settings.seed, "quadratic")
    low, high = quadratic_edge(generator.uniform(0.1, 3, 8), generator.uniform(0.2, 5, 8))
    for name, end, limits in (("low", low, (2 - BRACKET, 2.0)), ("high", high, (2.0, 2 + BRACKET))):
        metric = over_seeds(f"quadratic_edge_{name}", [end], 8, "lr times the largest eigenvalue")
        metrics.append(metric)
        lines.append(Expectation(f"a preconditioned quadratic turns at 2: {name} end of the bracket", metric, *limits))
    return metrics, lines
