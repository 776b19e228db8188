"""What fine-tuning has to do with curvature: sharp directions of either ability's loss, before, after, and revived."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field

from workbench.analysis import Settings, analysis
from workbench.curvature._block_spectra import block_spectra, block_table, heterogeneity_table, mean_distances
from workbench.curvature._example_sets import ANY, POSITIVE, SHARE, example_sets, metric, ratio, spread
from workbench.curvature._sharp_directions import ENDS, SharpDirections
from workbench.curvature._sharpness_path import highest, path, trainings
from workbench.curvature.subspaces import random_overlap, random_share
from workbench.errors import UserError
from workbench.measures import certain
from workbench.models.anatomy import is_known
from workbench.results import Evidence, Metric, Result
from workbench.subjects import Pair

UNIT = "nats per squared weight"
BLOCK_TOLERANCE = 1e-2
"""Of the ten sharpest directions of a block, which are there to set the unit of its spectrum."""


class TuningCurvatureSettings(Settings):
    """Settings of `tuning_curvature`."""

    n: int = Field(192, ge=16, description="test examples per ability, parted into the sets")
    resamples: int = Field(3, ge=1, le=20, description="sets of examples; intervals are over them, and none with one")
    k: int = Field(5, ge=1, le=50, description="sharpest directions")
    points: int = Field(5, ge=2, description="checkpoints of each training at which sharpness is measured")
    probes: int = Field(4, ge=1, description="random vectors per trace and set")
    random_draws: int = Field(2, ge=1, description="random steps per step and set that serve as the control")
    block_steps: int = Field(32, ge=2, description="steps of the quadrature of each block's spectrum")
    block_probes: int = Field(2, ge=0, description="random vectors of each block's spectrum; 0 for no blocks")
    tolerance: float = Field(
        1e-3, gt=0, le=0.1, description="largest residual of an eigenpair, relative to the largest eigenvalue"
    )
    precision: Literal["float32", "float64"] = Field(
        "float32", description="of all products; double takes about three times as long"
    )


@analysis(
    version=1,
    holds=800,
    n=192,
    passes=2800,
    paper="Sagun+17 1706.04454; Zhang+24 2402.16788",
    group="curvature",
    uses=("revived", "never_had_it"),
)
def tuning_curvature(pair: Pair, settings: TuningCurvatureSettings) -> Result:
    """The Hessian of the answers' mean loss, of O_PT at C_Te = 0 and of O_FT where it was trained, at each model of the pair.

    The examples are parted into `sets` of `batch` examples each; every curvature is that of the mean loss of one set, and tables give
    the mean over sets with a t-interval. `n` = batch x sets.

    `table`: the top eigenvalues of each model (`role`: whose loss), their residuals ||Hv - lambda v||, and the share of sets on which
    they converged. `models`: loss, sharpness (the top eigenvalue), trace, mean curvature (trace / parameters), gradient norm.
    `overlaps`: mean squared cosine of the principal angles between the top-k subspaces of two models on the same examples; `random`:
    exactly what random subspaces have; a model with itself (`other examples`): on the next set, the most that can be expected, with
    the range of these pairs, which are not independent.
    `directions`: `share` = share of a direction's squared norm inside the top-k subspace (`chance` = k / parameters), `curvature`
    = v.Hv / v.v, also over sharpness and over mean curvature (which far from a minimum may be near 0 or below).
    Directions: `finetuning` (tuned - start), `reviving` (revived - tuned),
    `teaching` (the control: the same reverse fine-tuning of the model that never had the ability), both losses' gradients, and `random_*`:
    Gaussian steps that are in every parameter as long as that one. `path`: sharpness along trainings on the first set alone;
    `random`: fine-tuning's start after such a random step. `blocks`, `heterogeneity`: the Hessian's diagonal blocks for O_PT's
    loss on the first set, and JS0, the Jensen-Shannon divergence of their spectra, each divided by its 10th largest eigenvalue;
    `floor`: between two halves of one block's probes; `half`: JS0 of quadratures of half the steps.

    Curvature says how the loss bends around a model, and does not tell masked from erased.

    Raises:
        UserError: fewer than 4 examples a set, or models that differ in shape.
    """
    if settings.n // settings.resamples < 4:
        raise UserError(
            f"tuning_curvature: {settings.n} examples in {settings.resamples} sets leave fewer than 4 for each; raise n or lower resamples."
        )
    sets = example_sets(pair, settings.n, settings.resamples)
    dtype = torch.float64 if settings.precision == "float64" else torch.float32
    draws = settings.random_draws
    sharp = SharpDirections(pair, sets, settings.k, settings.tolerance, settings.probes, draws, dtype)
    sharp.measure()
    way = path(sharp, settings.points)
    tables = {
        "table": sharp.eigenvalues(),
        "models": sharp.model_table(),
        "overlaps": sharp.overlap_table(),
        "directions": sharp.direction_table(),
        "path": way,
    }
    blocks = _blocks(sharp, settings)
    headline = [*_models(sharp), *_overlaps(sharp), *_directions(sharp), *_path(way, sharp)]
    for name, table in blocks.items():
        tables[name] = table
    if "heterogeneity" in blocks:
        for model in ("base", "tuned"):
            means = mean_distances(blocks["heterogeneity"].query("model == @model"))
            names = {
                "js0": f"heterogeneity_{model}",
                "half": f"heterogeneity_half_{model}",
                "floor": f"heterogeneity_floor_{model}",
            }
            headline += [_single(names[measure], value, sets.batch) for measure, value in means.items()]
    result = Result(
        name="tuning_curvature",
        tables=tables,
        headline=tuple(headline),
        limits=_limits(sharp, settings),
        provenance={"capability": pair.capability, "tuned_on": pair.tuned_on},
    )
    return replace(result, evidence=evidence(result))


def _blocks(sharp: SharpDirections, settings: TuningCurvatureSettings) -> dict[str, pd.DataFrame]:
    if not settings.block_probes or not is_known(sharp.pair.base):
        return {}
    at, n = {**sharp.examples.at("pt"), "sets": 1}, sharp.examples.batch
    found: dict[str, list[pd.DataFrame]] = {"blocks": [], "heterogeneity": []}
    for name in ("base", "tuned"):
        spectra = block_spectra(
            sharp.models[name],
            sharp.examples.sets["pt"][0],
            steps=settings.block_steps,
            probes=settings.block_probes,
            tolerance=max(settings.tolerance, BLOCK_TOLERANCE),
            dtype=sharp.dtype,
            seed=sharp.pair.seed,
        )
        found["blocks"].append(block_table(name, spectra, at, n))
        found["heterogeneity"].append(heterogeneity_table(name, spectra, at, n))
    return {name: pd.concat(tables, ignore_index=True) for name, tables in found.items()}


def _models(sharp: SharpDirections) -> list[Metric]:
    """Sharpness of every model for either loss, and how many times the base's fine-tuning's end has."""
    found: list[Metric] = []
    for role in sharp.examples.sets:
        each = {model: sharp.sharpness(model, role) for model in sharp.models}
        found += [metric(f"sharpness_{model}_{role}", values, sharp.n, UNIT, POSITIVE) for model, values in each.items()]
        found.append(ratio(f"sharper_{role}", each["tuned"] / each["base"], sharp.n, "times the base's sharpness"))
    return found


def _overlaps(sharp: SharpDirections) -> list[Metric]:
    unit, k = "mean squared cosine", min(sharp.k, sharp.size)
    found: list[Metric] = []
    for (a, b, role), values in sharp.overlaps.items():
        name = f"overlap_{a}_{b}_{role}" if a != b else f"overlap_ceiling_{a}_{role}"
        found.append(
            metric(name, np.array(values), sharp.n, unit, SHARE) if a != b else spread(name, np.array(values), sharp.n, unit)
        )
    return [*found, certain("overlap_random", random_overlap(sharp.size, k, k)[0], sharp.n, unit)]


def _directions(sharp: SharpDirections) -> list[Metric]:
    """Shares and curvature of every step where it begins and where it ends, of its random twin, and of the gradients."""
    found: list[Metric] = []
    unit = "share of the squared norm"
    for model, role, direction in sharp.numbers:
        step = direction.removeprefix("random_")
        if step in ENDS:
            where = f"{direction}_at_{model}_{role}"
            curvature = sharp.per_set(model, role, direction, "curvature / sharpness")
            found.append(metric(f"curvature_{where}", curvature, sharp.n, "of the sharpness", ANY))
        elif direction == f"gradient_{role}":
            where = f"gradient_at_{model}_{role}"
        else:
            continue
        found.append(metric(f"share_{where}", sharp.per_set(model, role, direction, "share"), sharp.n, unit, SHARE))
    return [*found, certain("share_chance", random_share(sharp.size, min(sharp.k, sharp.size))[0], sharp.n, unit)]


def _path(way: pd.DataFrame, sharp: SharpDirections) -> list[Metric]:
    trained = [name for name in dict.fromkeys(way["training"].tolist()) if name != "random"]
    return [
        _single(f"highest_{training}_{role}", highest(way, training, role), sharp.examples.batch, UNIT)
        for training in trained
        for role in sharp.examples.sets
    ]


def _single(name: str, value: float, n: int, unit: str = "nats") -> Metric:
    """A number of one set, without an interval."""
    return certain(name, value, n, unit) if math.isfinite(value) else metric(name, np.array([value]), n, unit)


def _limits(sharp: SharpDirections, settings: TuningCurvatureSettings) -> tuple[str, ...]:
    pair = sharp.pair
    converged = [bool(x) for pairs in sharp.values.values() for x in pairs.converged]
    found = [
        f"Every curvature is that of the mean loss of {sharp.examples.batch} examples; that of more is less sharp. Intervals are "
        f"over {sharp.examples.count} such sets, which share no draw"
        + ("." if sharp.examples.count > 1 else "; one set has none."),
        "Path, blocks and heterogeneity rest on the first set alone and have no interval over examples.",
        "JS0 falls as the quadrature gets finer: what changes from half the steps to all of them is not resolved.",
        "Sharpness, shares and overlaps depend on how the model is parameterized: rescaled weights change them while the function stays.",
        "Where eigenvalues k and k + 1 are close the top-k subspace is arbitrary; its overlap with itself on other examples shows that.",
    ]
    if not all(converged):
        found.append(
            f"{len(converged) - sum(converged)} of {len(converged)} eigenpairs did not converge; the table says which."
        )
    if "never_had_it" in sharp.models:
        found.append(
            "The control is of another pretraining: neurons are not matched first, so that its overlap is near chance by itself."
        )
    if sharp.left_out:
        found.append("The control that never had the ability differs in shape and was left out.")
    missing = [name for name in ("finetune", "revived") if name not in trainings(pair)]
    if missing:
        found.append(f"No checkpoints of {' and '.join(missing)} were kept, so that nothing is said of the way there.")
    if not is_known(pair.base):
        found.append("The parts of this architecture are not known: no blocks.")
    elif settings.block_probes == 1:
        found.append("With one probe per block nothing says how much of JS0 is noise.")
    if sharp.dtype == torch.float32:
        found.append("Products are in float32, good to about 1e-6 of the sharpness: smaller curvatures are noise.")
    if pair.start is not pair.base:
        found.append("Fine-tuning did not start from the base: its difference begins at another model.")
    return tuple(found)


def evidence(result: Result) -> tuple[Evidence, ...]:
    """One line that takes no side: where fine-tuning's step lies in the curvature of O_PT's loss, beside chance and controls."""
    found = {m.metric: m for m in result.headline}
    pt = str(result.provenance.get("capability", "O_PT"))
    share = found.get("share_finetuning_at_base_pt")
    if share is None or share.bound == "undefined":
        none = found["sharpness_base_pt"]
        text = "Fine-tuning changed no weight: there is no direction to look at."
        return (Evidence(result.name, none.metric, none.value, none.low, none.high, none.n, "uninformative", text, pt),)
    chance, random = found["share_chance"], found["share_random_finetuning_at_base_pt"]
    bends, straight = found["curvature_finetuning_at_base_pt"], found["curvature_random_finetuning_at_base_pt"]
    text = (
        f"Of fine-tuning's step {_percent(share.value)} [{_percent(share.low)}, {_percent(share.high)}] lies in the base's sharpest "
        f"directions of {pt} (chance {_percent(chance.value)}, random steps of equal length {_percent(random.value)}); the loss bends "
        f"along it by {bends.value:.2g} of the sharpness (random steps: {straight.value:.2g})"
    )
    kept, most = found.get("overlap_base_tuned_pt"), found.get("overlap_ceiling_base_pt")
    if kept is not None and most is not None:
        text += f". They overlap with the tuned model's by {kept.value:.2f}, with the base's own on other examples by {most.value:.2f}"
    return (
        Evidence(
            result.name, share.metric, share.value, share.low, share.high, share.n, "neutral", text + ".", pt, share.bound
        ),
    )


def _percent(value: float) -> str:
    return f"{100 * value:.2g} %"
