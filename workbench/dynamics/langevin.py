"""Does the average of a hot Langevin chain find a direction that its last iterate does not, and is it the partial trace's?

The dynamics of [2603.06028] on the unit sphere: theta <- normalise(theta + h beta P drift + sqrt(2 h) P xi), with P the projection
away from theta and xi standard normal; the estimate is the direction of the time average. Of the paper the abstract alone was read:
its rule and its claim (the average needs fewer samples than the last iterate, d^ceil(k/2) against d^(k-1)) are certain, its constants
and experiments are not known, and no number here is the paper's. That the average tends to the partial trace as beta -> 0
follows by algebra (the drift's mean over the sphere is proportional to it) and is checked.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from workbench.dynamics.sphere import Chains, chance, cosine, cube, partial_trace, run_chains, single_index, symmetric_noise
from workbench.lab import Expectation, LabSettings, expectations, lab, over_seeds, progress
from workbench.results import Metric, Result
from workbench.seeds import torch_generator
from workbench.statistics import wilson

FOUND = 0.5
"""The overlap with the planted direction from which it counts as found."""
CHANCE_WITHIN = 0.1
"""The last iterate's mean |overlap| is at chance within this share of it."""
ALONG_TRACE = 0.9
"""The cosine of average and partial trace, at least, at the temperatures of `betas`."""
COLD_LIMIT = 0.99
"""The same between mirrored chains at the smallest beta."""
SINGLE_INDEX = "single index"
"""The name of that problem."""


class LangevinSettings(LabSettings):
    """Settings of `langevin`."""

    d: int = Field(30, ge=2, le=100, description="dimension of the tensor of order 3")
    steps: int = Field(100_000, ge=10, description="steps of a chain")
    betas: tuple[float, ...] = Field((0.3, 1.0), min_length=1, description="inverse temperatures")
    ratio: float = Field(3, gt=0, description="signal strength lambda / d^(3/4)")
    small_beta: float = Field(0.02, gt=0, description="inverse temperature of the mirrored chains of the check beta -> 0")
    samples: float = Field(1, gt=0, description="samples of the single-index model, in units of d^2")
    map_d: tuple[int, ...] = Field((8, 12, 16, 24), description="dimensions of the success map; none for no map")
    map_ratios: tuple[float, ...] = Field((0.5, 1, 2, 3, 4), description="lambda / d^(3/4) of the map")
    map_steps: int = Field(20_000, ge=10, description="steps of each chain of the map")
    map_draws: int = Field(8, ge=1, description="tensors drawn for each dimension of the map")


@lab(version=1, paper="Langevin averaging 2603.06028", minutes=2, group="dynamics")
def langevin(settings: LangevinSettings) -> Result:
    """Spherical Langevin dynamics of tensor PCA (order 3) and of a single-index model: average iterate against last, and partial trace.

    `table`: per problem, beta, and `estimate` (`average`, `last`, `partial_trace`) the |overlap| with the planted direction, and the
    cosine of average and partial trace (`along_trace`). `runs`: the same by seed. `course`: overlaps of the iterate and of the running
    average along the first seed's chains. `map`: shares of tensors on which the average (or another estimate) succeeds.
    """
    runs: list[dict[str, Any]] = []
    courses: list[pd.DataFrame] = []
    maps: list[pd.DataFrame] = []
    jobs = ["tensor PCA", SINGLE_INDEX, *settings.map_d]
    for job in progress(jobs, lambda job: job if isinstance(job, str) else f"map, d = {job}"):
        if job == "tensor PCA":
            found = _tensor_pca(settings)
        elif job == SINGLE_INDEX:
            found = _single_index(settings)
        else:
            maps.append(_map(settings, int(job)))
            continue
        runs += found[0]
        courses.append(found[1])
    frame = pd.DataFrame(runs)
    table = _table(frame, settings.d)
    metrics, lines = _headline(frame, settings)
    columns = ["d", "ratio", "estimate", "value", "low", "high", "n", "seeds"]
    return Result(
        name="langevin",
        tables={
            "table": table,
            "runs": frame,
            "course": pd.concat(courses, ignore_index=True),
            "map": pd.concat(maps, ignore_index=True) if maps else pd.DataFrame(columns=columns),
            "expectations": expectations(lines),
        },
        headline=tuple(metrics),
        limits=(
            "Of the paper the abstract alone was read: these are its dynamics and its claim, with constants of our own.",
            "The last iterate is averaged in size over the second half of the steps; at another beta or longer, it may find the direction.",
            f"One dimension ({settings.d}) says nothing of how the needed samples grow; the map covers a factor of "
            f"{max(settings.map_d, default=1) / min(settings.map_d, default=1):g} in dimension.",
            "The partial trace costs one pass over the tensor: where the average only follows it, the chain is the dearer way.",
        ),
    )


def _planted(d: int, seed: int, *labels: str | int) -> Float[Tensor, " d"]:
    drawn = torch.randn(d, generator=torch_generator(seed, "planted", d, *labels), dtype=torch.float64)
    return drawn / drawn.norm()


Found = tuple[list[dict[str, Any]], pd.DataFrame]


def _tensor_pca(settings: LangevinSettings) -> Found:
    """Chains at all betas with signal, without, and mirrored ones at the small beta, on one noise tensor per seed."""
    d, seeds = settings.d, settings.all_seeds
    strength = settings.ratio * d**0.75
    noise = torch.stack([symmetric_noise(d, torch_generator(seed, "noise", d)) for seed in seeds])
    planted = torch.stack([_planted(d, seed) for seed in seeds])
    betas = [*settings.betas, settings.betas[0], settings.small_beta, -settings.small_beta]
    names = ["tensor PCA"] * len(settings.betas) + ["no signal"]
    strengths = [strength if name == "tensor PCA" else 0.0 for name in names] + [strength] * 2
    generators = [torch_generator(seed, "chain", d) for seed in seeds]
    chains = run_chains(noise, strengths, betas, planted, settings.steps, generators)
    rows: list[dict[str, Any]] = []
    courses: list[pd.DataFrame] = []
    for i, seed in enumerate(seeds):
        signal = strength * cube(planted[i])
        for c, name in enumerate(names):
            trace = partial_trace(noise[i] + (signal if name == "tensor PCA" else 0))
            rows += _measured(chains, i, c, trace, planted[i], {"problem": name, "beta": betas[c], "seed": seed})
            if i == 0:
                courses.append(_course(chains, i, c, planted[i], {"problem": name, "beta": betas[c], "seed": seed}))
        mirrored = chains.average[i, len(names)] - chains.average[i, len(names) + 1]
        at = {"problem": "tensor PCA, mirrored", "beta": settings.small_beta, "seed": seed}
        trace = partial_trace(noise[i] + signal)
        rows.append({**at, "estimate": "along_trace", "value": float(cosine(mirrored, trace))})
    return rows, pd.concat(courses, ignore_index=True)


def _single_index(settings: LangevinSettings) -> Found:
    d, seeds, n = settings.d, settings.all_seeds, round(settings.samples * settings.d**2)
    planted = torch.stack([_planted(d, seed, SINGLE_INDEX) for seed in seeds])
    tensors: list[Tensor] = []
    for goal, seed in zip(planted, seeds, strict=True):
        x = torch.randn(n, d, generator=torch_generator(seed, "inputs", d, n), dtype=torch.float64)
        z = x @ goal
        tensors.append(single_index(x, (z**3 - 3 * z) / math.sqrt(6)))
    generators = [torch_generator(seed, "chain", SINGLE_INDEX, d) for seed in seeds]
    betas = list(settings.betas)
    chains = run_chains(torch.stack(tensors), [0.0] * len(betas), betas, planted, settings.steps, generators)
    rows: list[dict[str, Any]] = []
    courses: list[pd.DataFrame] = []
    for i, seed in enumerate(seeds):
        for c, beta in enumerate(betas):
            at = {"problem": SINGLE_INDEX, "beta": beta, "seed": seed}
            rows += _measured(chains, i, c, partial_trace(tensors[i]), planted[i], at)
            if i == 0:
                courses.append(_course(chains, i, c, planted[i], at))
    return rows, pd.concat(courses, ignore_index=True)


def _measured(chains: Chains, i: int, c: int, trace: Tensor, planted: Tensor, at: dict[str, Any]) -> list[dict[str, Any]]:
    average = chains.average[i, c]
    found = {
        "average": float(cosine(average, planted).abs()),
        "last": float(chains.last[i, c]),
        "partial_trace": float(cosine(trace, planted).abs()),
        "along_trace": float(cosine(average, trace)),
    }
    return [{**at, "estimate": name, "value": value} for name, value in found.items()]


def _course(chains: Chains, i: int, c: int, planted: Tensor, at: dict[str, Any]) -> pd.DataFrame:
    frames: list[pd.DataFrame] = []
    for name, points in (("last", chains.seen), ("average", chains.running)):
        overlap = cosine(points[:, i, c], planted.expand_as(points[:, i, c]))
        frames.append(pd.DataFrame({**at, "estimate": name, "step": chains.at, "value": overlap.numpy()}))
    return pd.concat(frames, ignore_index=True)


def _map(settings: LangevinSettings, d: int) -> pd.DataFrame:
    """Tensors of one dimension at all signal strengths, at the first beta; chains of one tensor share its noise."""
    many = range(settings.map_draws)
    noise = torch.stack([symmetric_noise(d, torch_generator(settings.seed, "map noise", d, i)) for i in many])
    planted = torch.stack([_planted(d, settings.seed, "map", i) for i in many])
    strengths = [ratio * d**0.75 for ratio in settings.map_ratios]
    generators = [torch_generator(settings.seed, "map chain", d, i) for i in many]
    chains = run_chains(noise, strengths, [settings.betas[0]] * len(strengths), planted, settings.map_steps, generators, 1)
    rows: list[dict[str, Any]] = []
    for c, ratio in enumerate(settings.map_ratios):
        traces = torch.stack([partial_trace(x + strengths[c] * cube(v)) for x, v in zip(noise, planted, strict=True)])
        found = {
            "average": cosine(chains.average[:, c], planted).abs(),
            "last": chains.last[:, c],
            "partial_trace": cosine(traces, planted).abs(),
        }
        for name, overlaps in found.items():
            found_in = int((overlaps >= FOUND).sum())
            low, high = wilson(found_in, len(many))
            ends = {"value": found_in / len(many), "low": float(low), "high": float(high)}
            rows.append({"d": d, "ratio": ratio, "estimate": name, **ends, "n": len(many), "seeds": 1})
    return pd.DataFrame(rows)


def _table(runs: Any, d: int) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for (problem, beta, estimate), some in runs.groupby(["problem", "beta", "estimate"], sort=False):
        m = over_seeds(estimate, some["value"].tolist(), d)
        at = {"problem": problem, "beta": beta, "estimate": estimate}
        rows.append(
            {**at, "value": m.value, "low": m.low, "high": m.high, "n": d, "seeds": m.seeds, "least": some["value"].min()}
        )
    return pd.DataFrame(rows)


def _headline(runs: Any, settings: LangevinSettings) -> tuple[list[Metric], list[Expectation]]:
    metrics: list[Metric] = []
    lines: list[Expectation] = []
    by_kind = runs.groupby(["problem", "beta", "estimate"])["value"].agg(list)
    n, at_chance = settings.d, chance(settings.d)

    def line(
        says: str, name: str, problem: str, beta: float, estimate: str, low: float, high: float = math.inf, by: float = 1
    ) -> None:
        metric = over_seeds(name, [value / by for value in by_kind[problem, beta, estimate]], n)
        metrics.append(metric)
        lines.append(Expectation(says, metric, low, high))

    near = (1 - CHANCE_WITHIN, 1 + CHANCE_WITHIN)
    for problem, short in (("tensor PCA", "pca"), (SINGLE_INDEX, "index")):
        for beta in settings.betas:
            end = f"{short}_{beta:g}"
            line(
                f"{problem}, beta {beta:g}: the average finds the direction", f"average_{end}", problem, beta, "average", FOUND
            )
            says = f"{problem}, beta {beta:g}: the average lies along the partial trace"
            line(says, f"along_trace_{end}", problem, beta, "along_trace", ALONG_TRACE)
        beta, end = settings.betas[0], f"{short}_{settings.betas[0]:g}"
        says = f"{problem}, beta {beta:g}: the last iterate is at chance (ratio to it)"
        line(says, f"last_{end}", problem, beta, "last", *near, at_chance)
    beta = settings.betas[0]
    line(
        "without signal the average is no further than chance (ratio to it)",
        "average_null",
        "no signal",
        beta,
        "average",
        0,
        2,
        at_chance,
    )
    says = "as beta -> 0 the average's direction is the partial trace's"
    line(says, "mirrored_along_trace", "tensor PCA, mirrored", settings.small_beta, "along_trace", COLD_LIMIT)
    return metrics, lines
