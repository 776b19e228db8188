"""What the loss looks like around each model: its sharpest directions, its most negative ones, and the density of all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field
from scipy.special import stdtrit
from transformers import PreTrainedModel

from workbench.analysis import Settings, analysis
from workbench.checkpoint_choice import checkpoints
from workbench.curvature.density import FULL_BELOW, Density
from workbench.curvature.keeping import FolderKeeper
from workbench.curvature.measured import Effort, Spectrum, measure, products_of
from workbench.curvature.objective import of_model
from workbench.curvature.outliers import count_outliers
from workbench.errors import UserError
from workbench.examples import Examples
from workbench.measures import DRAWS, certain, derived, draw, shares
from workbench.models.checkpoints import load_model
from workbench.models.fingerprint import check_unchanged, weights_sha256
from workbench.results import Evidence, Metric, Result
from workbench.statistics import bootstrap_mean
from workbench.subjects import Pair, Question, Trajectory
from workbench.workplace import Meter, workplace

FLAT = 1e-3
"""Eigenvalues below this share of the largest, in size, count as the bulk at zero [Sagun+17 1706.04454 §3]."""
TRAININGS = ("finetune", "revived")
MEASURES = (
    "lambda_max",
    "lambda_min",
    "outliers",
    "trace",
    "negative",
    "residual_share",
    "frobenius",
    "flat",
    "loss",
    "gradient_norm",
    "asymmetry",
    "parameters",
)
"""Of every model, in the order in which they are told: all models side by side, measure by measure."""


class SpectrumSettings(Settings):
    """Settings of `spectrum`."""

    n: int = Field(
        128, ge=1, description="test examples that the loss is the mean of; all at once, so that H is that of one batch"
    )
    on: Literal["answers", "text"] = Field(
        "answers", description="loss of the answers, or of all tokens that training had as targets"
    )
    top: int = Field(10, ge=1, le=200, description="largest eigenvalues; they are taken out of the density and placed exactly")
    bottom: int = Field(2, ge=1, le=50, description="smallest eigenvalues; these converge slowly")
    steps: int = Field(60, ge=4, le=400, description="Lanczos steps of each probe of the density")
    probes: int = Field(4, ge=1, le=100, description="random vectors of the density; the intervals rest on them")
    exact: bool = Field(False, description="all eigenvalues instead of a density (10,000 parameters at most)")
    points: int = Field(0, ge=0, le=40, description="checkpoints of fine-tuning and reviving that are measured as well")
    only: Literal["pt", "ft", "both"] = Field(
        "both", description="loss of the ability that may be lost, of the trained one, or both"
    )


def _fits(settings: SpectrumSettings, question: Question, blocks: int) -> None:
    del question, blocks
    if settings.points == 1:
        raise UserError("spectrum: points 1 is one checkpoint, which is no path; write 0 for none, or at least 2.")


@analysis(
    version=1,
    n=128,
    passes=20000,
    holds=1200,
    paper="Sagun+17 1706.04454; Ghorbani+19 1901.10159; Papyan 2019 1901.08244",
    group="curvature",
    uses=("revived", "never_had_it"),
    check=_fits,
)
def spectrum(pair: Pair, settings: SpectrumSettings) -> Result:
    """Eigenvalues of the Hessian H of the mean loss (nats), for base, tuned, revived and never-had-it model.

    `role` `pt` is the loss of the ability that may be lost, at C_Te = 0, `ft` that of the one that was trained. Main table: per model
    and role `lambda_max`, `lambda_min`, `trace`, `frobenius`, `flat` (share of eigenvalues below 1e-3 of the largest),
    `negative` (share of the absolute eigenvalues' sum below zero), `outliers` (the declared gap rule), `residual_share`
    = ||H - G||_F / ||H||_F with the Gauss-Newton matrix G, `loss`, `gradient_norm`, `asymmetry`. `eigenvalues`: both ends, each with its
    residual ||Hv - lambda v|| and whether it converged. `density`: nodes and weights as they are, `probe` -1 for
    eigenvalues that are placed exactly. `path_...`: the same at checkpoints.

    Intervals: of eigenvalues over resampled examples, to first order; of trace, norm and shares over probes, for this one batch.

    Raises:
        UserError: products that are not symmetric, more parameters than `exact` can do, or too few checkpoints.
    """
    found = _Found()
    _work(pair.seed, settings, effort_of(settings), list(_jobs(pair, settings)), found)
    return _result(pair.capability, pair.tuned_on, settings, found)


def effort_of(settings: SpectrumSettings) -> Effort:
    """How much work settings ask for."""
    return Effort(settings.top, settings.bottom, settings.steps, settings.probes, settings.exact)


Job = tuple[dict[str, Any], Callable[[], PreTrainedModel], Examples]
"""`(where it stands, its model, its data)`."""


def _roles(pair: Pair, settings: SpectrumSettings) -> dict[str, tuple[str, Examples]]:
    """Names and data of the losses; one where the ability that was trained is the one that may be lost."""
    wanted = {"pt": pair.capability, "ft": pair.tuned_on}
    if pair.tuned_on == pair.capability or settings.only != "both":
        wanted = {role: name for role, name in wanted.items() if role == ("pt" if settings.only == "both" else settings.only)}
    return {role: (name, draw(pair, name, shares(pair, name)[0], settings.n)) for role, name in wanted.items()}


def _jobs(pair: Pair, settings: SpectrumSettings) -> Iterator[Job]:
    models: dict[str, PreTrainedModel] = dict(pair.states)
    if pair.never_had_it is not None:
        models["never_had_it"] = pair.never_had_it
    for role, (capability, examples) in _roles(pair, settings).items():
        at = {"role": role, "capability": capability}
        for name, model in models.items():
            yield {"model": name, **at}, lambda model=model: model, examples
        for training, of in _trainings(pair) if settings.points else ():
            for checkpoint in checkpoints(of, settings.points, (), "spectrum"):
                where = {"training": training, "step": checkpoint.step, **at}
                yield where, lambda path=checkpoint.path: load_model(path, pair.base.device), examples


def _trainings(pair: Pair) -> Iterator[tuple[str, Trajectory]]:
    if pair.trajectory is not None:
        yield "finetune", pair.trajectory
    if "revived" in pair.arms:
        yield "revived", pair.arms["revived"]


class _Found:
    """Rows as they come."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.ends: list[dict[str, Any]] = []
        self.nodes: list[dict[str, Any]] = []
        self.metrics: list[Metric] = []
        self.notes: list[str] = []


def _work(seed: int, settings: SpectrumSettings, effort: Effort, jobs: list[Job], found: _Found) -> None:
    """Measure one after another; what is done of one is kept where there is a place for it."""
    place = workplace()
    meter: Meter | None = None
    for where, model, examples in jobs:
        objective = of_model(model(), examples, settings.on)
        if effort.exact and objective.size > FULL_BELOW:
            raise UserError(
                f"spectrum: exact asks for all {objective.size:,} eigenvalues, and {FULL_BELOW:,} are the most; write exact: false."
            )
        meter = meter or Meter(products_of(effort, objective.size) * len(jobs))
        name = "-".join(str(value) for value in where.values()).replace("/", "_")
        keeper = FolderKeeper(place.folder, f"{name}-") if place.folder else None
        _add(found, where, measure(objective, effort, seed, keeper, meter.tick), seed)


def _add(found: _Found, where: dict[str, Any], seen: Spectrum, seed: int) -> None:
    """Everything about one place as rows; of a pair's models also as headline numbers."""
    n, scale = len(np.unique(seen.objective.owners.numpy())), float(seen.top.values[0])
    found.notes += seen.objective.notes
    for end, pairs in (("top", seen.top), ("bottom", seen.bottom)):
        for rank, (value, residual, sure) in enumerate(
            zip(pairs.values, pairs.residuals, pairs.converged, strict=True), start=1
        ):
            low, high = np.percentile(seen.top_draws[rank - 1], [2.5, 97.5]) if end == "top" else (np.nan, np.nan)
            shown = {"end": end, "rank": rank, "eigenvalue": float(value), "low": float(low), "high": float(high), "n": n}
            found.ends.append({**where, **shown, "residual": float(residual), "converged": bool(sure)})
    found.nodes += [{**where, **row} for row in _nodes(seen.density)]
    tag = "_".join(str(where[key]) for key in ("model", "role")) if "model" in where else ""
    for metric in _numbers(seen, n, scale, seed):
        found.rows.append(
            {
                **where,
                "measure": metric.metric,
                "value": metric.value,
                "low": metric.low,
                "high": metric.high,
                "n": n,
                "unit": metric.unit,
            }
        )
        if tag:
            found.metrics.append(replace(metric, metric=f"{metric.metric}_{tag}"))


def _numbers(seen: Spectrum, n: int, scale: float, seed: int) -> Iterator[Metric]:
    """Numbers of one spectrum; their intervals are over examples (eigenvalues) or over probes."""
    yield derived("lambda_max", scale, seen.top_draws[0], n, "nats")
    bottom = certain("lambda_min", float(seen.bottom.values[0]), n, "nats")
    # A Ritz value lies above the eigenvalue that it is on its way to.
    yield bottom if seen.bottom.converged[0] else replace(bottom, bound="upper")
    of, flat = seen.density, FLAT * scale
    yield _total("trace", of, lambda x: x, n, "nats")
    squares = _total("frobenius", of, np.square, n, "nats")
    root = {end: math.sqrt(max(0.0, getattr(squares, end))) for end in ("value", "low", "high")}
    yield replace(squares, **root, draws=tuple(np.sqrt(np.maximum(squares.draws, 0)).tolist()))
    yield _divided(_total("flat", of, lambda x: np.abs(x) < flat, n, ""), of.size, "share of the eigenvalues")
    below, size = (_each(of, f) for f in (lambda x: np.maximum(-x, 0), np.abs))
    yield _over_probes("negative", below / size, n, "share of the absolute eigenvalues' sum", exact=not len(of.nodes))
    apart = count_outliers(seen.top.values, of.size)
    outliers = certain("outliers", float(apart.count), n, "eigenvalues")
    # Where the last one that is known still stands apart there may be more.
    yield replace(outliers, bound="lower") if apart.count == len(seen.top.values) - 1 < of.size // 2 else outliers
    yield derived("residual_share", seen.residual_share, seen.residual_draws, n, "share of ||H||_F")
    yield certain("loss", seen.loss, n, "nats")
    yield certain("gradient_norm", seen.gradient_norm, n, "nats")
    yield certain("asymmetry", seen.asymmetry, n, "share of ||H||")
    yield certain("parameters", float(of.size), n, "that vary")


Function = Callable[[np.ndarray], np.ndarray]


def _each(of: Density, function: Function) -> np.ndarray:
    """What each probe says of a sum over all eigenvalues; the placed ones are in each."""
    exactly = float(function(of.deflated).sum())
    return exactly + of.size * (of.weights * function(of.nodes)).sum(1) if len(of.nodes) else np.array([exactly])


def _over_probes(name: str, each: np.ndarray, n: int, unit: str, exact: bool = False) -> Metric:
    """The mean with its t-interval; without a width where nothing was drawn, and unknown where a single probe was."""
    value = float(each.mean())
    if exact:
        return certain(name, value, n, unit)
    half = float(stdtrit(len(each) - 1, 0.975)) * float(each.std(ddof=1)) / math.sqrt(len(each)) if len(each) > 1 else math.nan
    # Draws only serve to pool seeds.
    draws = value + (bootstrap_mean(each, DRAWS, 0) - value if len(each) > 1 else np.zeros(DRAWS))
    return Metric(name, value, value - half, value + half, n, unit, draws=tuple(draws.tolist()))


def _total(name: str, of: Density, function: Function, n: int, unit: str) -> Metric:
    return _over_probes(name, _each(of, function), n, unit, exact=not len(of.nodes))


def _nodes(of: Density) -> Iterator[dict[str, Any]]:
    """Point masses as they are; those that are placed exactly have no probe."""
    for probe, (nodes, weights) in enumerate(zip(of.nodes, of.weights, strict=True)):
        for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
            yield {"node": node, "weight": weight / len(of.nodes), "probe": probe}
    for value in of.deflated.tolist():
        yield {"node": value, "weight": 1 / of.size, "probe": -1}


def _divided(metric: Metric, by: float, unit: str) -> Metric:
    draws = tuple(x / by for x in metric.draws)
    return replace(metric, value=metric.value / by, low=metric.low / by, high=metric.high / by, unit=unit, draws=draws)


def _result(capability: str, tuned_on: str, settings: SpectrumSettings, found: _Found) -> Result:
    models, paths = [[row for row in found.rows if key in row] for key in ("model", "step")]
    tables = {"table": pd.DataFrame(models)}
    for name, rows in (("eigenvalues", found.ends), ("density", found.nodes)):
        tables[name] = pd.DataFrame([row for row in rows if "model" in row])
        if paths:
            tables[f"path_{name}"] = pd.DataFrame([row for row in rows if "step" in row])
    if paths:
        tables["path"] = pd.DataFrame(paths)
    unsure = sum(not row["converged"] for row in found.ends)
    limits = [
        f"H is that of {settings.n} examples and says nothing of others; an eigenvalue's interval resamples these, to first order in "
        "how far its vector turns.",
        "An eigenvalue counts nats per squared step of the weights: models of other sizes or parametrisations are not held against one "
        "another by it.",
        *dict.fromkeys(found.notes),
    ]
    if unsure:
        limits.insert(
            0, f"{unsure} of {len(found.ends)} eigenvalues did not converge; the table says which, and how far off each can be."
        )
    if settings.probes < 2 and not settings.exact:
        limits.append("One probe gives no interval: those of trace, norm and shares have no width.")
    result = Result(
        name="spectrum",
        tables=tables,
        headline=tuple(sorted(found.metrics, key=lambda m: MEASURES.index(_measure(m.metric)))),
        limits=tuple(limits),
        provenance={"capability": capability, "tuned_on": tuned_on},
    )
    return replace(result, evidence=evidence(result))


def _measure(name: str) -> str:
    return max((m for m in MEASURES if name.startswith(m)), key=len)


def evidence(result: Result) -> tuple[Evidence, ...]:
    """One line that takes no side: how sharp the loss is at each model."""
    found = {m.metric: m for m in result.headline}
    pt = str(result.provenance.get("capability", "O_PT"))
    names = {"model": "the model", "base": "base", "tuned": "tuned", "revived": "revived", "never_had_it": "never had it"}
    shown = [(text, found[f"lambda_max_{name}_pt"]) for name, text in names.items() if f"lambda_max_{name}_pt" in found]
    if not shown:
        return ()
    first = shown[min(1, len(shown) - 1)][1]
    text = f"The loss of {pt} is sharpest along one direction by " + ", ".join(
        f"{m.value:.3g} [{m.low:.3g}, {m.high:.3g}] ({text})" for text, m in shown
    )
    numbers = (first.metric, first.value, first.low, first.high, first.n)
    return (Evidence(result.name, *numbers, "neutral", f"{text} nats per squared step; this takes no side.", pt, first.bound),)


def spectrum_of(model: PreTrainedModel, examples: Examples, *, seed: int = 0, capability: str = "", **settings: Any) -> Result:
    """The same of a single model on given examples, which are all taken: `wb.spectrum(pair.tuned, pair.examples("count_a"), top=20)`.

    Args:
        model: a causal language model.
        examples: what the loss is the mean of.
        seed: of probes and resampling.
        capability: what the examples ask for, for the figure's words.
        **settings: of `SpectrumSettings`; `n`, `only` and `points` mean nothing here.

    Raises:
        UserError: as `spectrum`.
    """
    read = spectrum.settings({**settings, "n": len(examples)})
    with check_unchanged(model):
        found = _Found()
        _work(
            seed,
            read,
            effort_of(read),
            [({"model": "model", "role": "pt", "capability": capability}, lambda: model, examples)],
            found,
        )
    result = _result(capability, capability, read, found)
    facts = {"seed": seed, "base_sha256": weights_sha256(model), "dtype": str(model.dtype).removeprefix("torch.")}
    return replace(
        result, settings=read.model_dump(mode="json"), provenance={**result.provenance, **facts, "version": spectrum.version}
    )
