"""What of the Hessian's spectrum grows with the width of a net at fixed data, the bulk at zero or the outliers?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import Field, model_validator

from workbench.curvature.density import full_spectrum
from workbench.curvature.objective import Objective
from workbench.curvature.operators import gauss_newton, hessian
from workbench.curvature.outliers import count_outliers
from workbench.curvature.small_problems import MOST_CLASSES, SOURCES, Source, problem, train_to
from workbench.lab import Expectation, LabSettings, expectations, lab, over_seeds, progress
from workbench.results import Metric, Result
from workbench.seeds import torch_generator
from workbench.statistics import hierarchical

ZERO = 1e-3
"""An eigenvalue is of the bulk at zero below this share of the largest, in size."""
SAME = 0.2
"""Expected change, at most, of each of the k largest eigenvalues from the narrowest to the widest net, as a share."""
GROWS = 0.8
"""Expected share, at least, of the added parameters that adds to the bulk at zero."""
NARROW = 3 / 8
"""The GPT-2 of counting has this share of the width: it has more parameters per width, and dearer products."""


Frame = Any
"""A pandas table; its own types do not say whether a selection is a table or a column."""


class WidthSettings(LabSettings):
    """Settings of `hessian_width`."""

    sources: tuple[Source, ...] = Field(SOURCES, min_length=1, description="what the nets are trained on")
    classes: int = Field(4, ge=2, le=10, description="number of classes k; counting has at most 5")
    widths: tuple[int, ...] = Field((8, 16, 32), min_length=2, description="hidden neurons per layer, increasing")
    rows: int = Field(400, ge=32, le=5000, description="training rows at most")
    loss: float = Field(0.1, gt=0, description="training ends at this mean loss (nats)")
    steps: int = Field(3000, ge=1, description="training steps at most")

    @model_validator(mode="after")
    def _widths_differ(self) -> WidthSettings:
        for source in self.sources:
            own = [_width(source, width) for width in self.widths]
            if own != sorted(set(own)) or own[0] < 2:
                raise ValueError(
                    f"widths {list(self.widths)} make nets of widths {own} for {source}; give increasing ones that differ more"
                )
        return self


def _width(source: Source, width: int) -> int:
    """Of a source's nets; two heads of equal size in the GPT-2 of counting, and at least 4, below which it does not learn."""
    return 2 * max(2, round(width * NARROW / 2)) if source == "counting" else width


@lab(version=1, paper="Sagun+17 1706.04454", minutes=4, group="curvature")
def hessian_width(settings: WidthSettings) -> Result:
    """The whole spectrum of the Hessian of the training loss for nets of several widths, all trained to the same loss.

    `table`: per source and width, means over seeds of `zero` (eigenvalues of the bulk at zero), `nonzero` (all others), `outliers`
    (gap rule), `tangent` (mean squared gradient of an output) and `lambda_1` to `lambda_k`, k classes. `runs`: each net, with its
    parameters, the share of negative eigenvalue mass, the distance of Hessian and Gauss-Newton matrix (`residual_share`), and the
    `asymmetry` of the computed matrix. `spectrum`: every eigenvalue of every net.
    """
    jobs: list[tuple[Source, int, int]] = [
        (source, width, seed) for source in settings.sources for width in settings.widths for seed in settings.all_seeds
    ]
    runs: list[dict[str, Any]] = []
    spectra: list[pd.DataFrame] = []
    for source, width, seed in progress(jobs, lambda job: f"{job[0]}, width {job[1]}, seed {job[2]}"):
        k = min(settings.classes, MOST_CLASSES[source])
        given = problem(source, k, settings.rows, seed)
        net = given.net(_width(source, width), seed)
        trained = train_to(net, given, settings.loss, settings.steps)
        objective = given.objective(net)
        matrix = hessian(objective)
        whole = full_spectrum(matrix)
        values, asymmetry = whole.values[::-1].copy(), whole.asymmetry
        zero = int((np.abs(values) < ZERO * values[0]).sum())
        at = {"source": source, "width": width, "seed": seed}
        row: dict[str, Any] = {**at, "parameters": len(values), "zero": zero, "nonzero": len(values) - zero}
        row |= {
            "outliers": count_outliers(values).count,
            "negative_share": float(-values[values < 0].sum() / np.abs(values).sum()),
        }
        row |= {"smallest": float(values[-1] / values[0]), "asymmetry": asymmetry, "k": k}
        row |= {f"lambda_{i + 1}": float(values[i]) for i in range(k)}
        probe = _probe(objective.size, seed)
        distance = float(((matrix @ probe) - (gauss_newton(objective) @ probe)).norm() / (matrix @ probe).norm())
        row |= {
            "residual_share": distance,
            "tangent": tangent(objective, seed),
            "loss": trained.loss,
            "accuracy": trained.accuracy,
            "steps": trained.steps,
        }
        runs.append({**row, "n": len(given)})
        spectra.append(pd.DataFrame({**at, "index": np.arange(1, len(values) + 1), "value": values}))
    frame = pd.DataFrame(runs)
    metrics, lines = _headline(frame)
    return Result(
        name="hessian_width",
        tables={
            "table": _table(frame),
            "runs": frame,
            "spectrum": pd.concat(spectra, ignore_index=True),
            "expectations": expectations(lines),
        },
        headline=tuple(metrics),
        limits=(
            f"`At zero` means less than {ZERO:g} of the largest eigenvalue: where that moves, so does the border.",
            "All nets stop at the same loss, not at the same number of steps; at another loss the numbers are others.",
            "Widths are of nets of one kind and one initialisation; how eigenvalues scale with width depends on both: "
            "`tangent_ratio` says by how much the squared gradients of the outputs, the scale of the Gauss-Newton matrix, change with it.",
            f"Intervals are over the seeds {', '.join(map(str, sorted(set(frame['seed']))))} alone, and with few seeds too narrow.",
        ),
    )


def tangent(objective: Objective, seed: int, draws: int = 64) -> float:
    """Mean over rows and outputs of the squared length of an output's gradient: the scale of the Gauss-Newton matrix.

    Estimated without bias by random signs s, since E ||J^T s||^2 is the sum over all outputs of their squared gradients.
    """
    generator, (part,) = torch_generator(seed, "signs"), objective.parts
    with objective.differentiable():
        outputs = objective.outputs(part)
        found: list[float] = []
        for _ in range(draws):
            signs = torch.randint(2, outputs.shape, generator=generator).to(outputs) * 2 - 1
            pulled = objective.flat(objective.slopes(outputs, grad_outputs=signs, retain_graph=True))
            found.append(float(pulled.square().sum()) / outputs.numel())
    return float(np.mean(found))


def _probe(size: int, seed: int) -> torch.Tensor:
    return torch.randn(size, 16, generator=torch_generator(seed, "residual"), dtype=torch.float64)


def _table(runs: Frame) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for (source, width), some in runs.groupby(["source", "width"], sort=False):
        k = int(some["k"].iloc[0])
        for measure in ("zero", "nonzero", "outliers", "tangent", *(f"lambda_{i + 1}" for i in range(k))):
            m = over_seeds(measure, some[measure].tolist(), int(some["n"].min()))
            ends = {"value": m.value, "low": m.low, "high": m.high, "n": m.n, "seeds": m.seeds}
            parameters = int(some["parameters"].iloc[0])
            rows.append({"source": source, "width": width, "parameters": parameters, "measure": measure, **ends})
    return pd.DataFrame(rows)


def _headline(runs: Frame) -> tuple[list[Metric], list[Expectation]]:
    """Per source: the bulk's share of added parameters, and how the leading eigenvalues change, widest over narrowest."""
    metrics: list[Metric] = []
    lines: list[Expectation] = []
    for (source,), some in runs.groupby(["source"], sort=False):
        n, k = int(some["n"].min()), int(some["k"].iloc[0])
        by_width = some.sort_values("width").set_index(["width", "seed"])
        narrow, wide = (by_width.loc[w] for w in (some["width"].min(), some["width"].max()))
        taken = (wide["zero"] - narrow["zero"]) / (wide["parameters"] - narrow["parameters"])
        zero = over_seeds(f"zero_taken_{source}", taken.tolist(), n, "share of added parameters")
        metrics.append(zero)
        lines.append(Expectation(f"{source}: added parameters join the bulk at zero", zero, low=GROWS))
        for i in range(1, k + 1):
            name = f"lambda_{i}"
            ratio = _ratio(f"{name}_ratio_{source}", (wide[name] / narrow[name]).tolist(), n)
            metrics.append(ratio)
            lines.append(Expectation(f"{source}: {name} stays", ratio, 1 - SAME, 1 + SAME))
        metrics.append(_ratio(f"tangent_ratio_{source}", (wide["tangent"] / narrow["tangent"]).tolist(), n))
        metrics.append(over_seeds(f"outliers_change_{source}", (wide["outliers"] - narrow["outliers"]).tolist(), n, "outliers"))
        metrics.append(over_seeds(f"asymmetry_{source}", [float(some["asymmetry"].max())], n, "share of the norm, worst net"))
    return metrics, lines


def _ratio(name: str, by_seed: list[float], n: int) -> Metric:
    """The geometric mean over seeds."""
    found = hierarchical([[value] for value in by_seed], "geometric")
    low, high = (found.low, found.high) if len(by_seed) > 1 else (float("nan"), float("nan"))
    return Metric(
        name, found.value, low, high, n, "widest / narrowest", pool="geometric", seeds=len(by_seed), draws=tuple(by_seed)
    )
