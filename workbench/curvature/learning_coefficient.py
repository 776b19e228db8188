"""How degenerate is each model's loss: local learning coefficients by Langevin sampling, or the reason why there is none."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from transformers import PreTrainedModel

from workbench.analysis import Settings, analysis
from workbench.curvature.objective import of_model
from workbench.curvature.sgld import Calibration, Chains, Estimate, Rise, Sampler, calibrate, estimate, no_estimate, sample
from workbench.examples import Examples
from workbench.measures import DRAWS, draw, shares
from workbench.results import Evidence, Metric, Result
from workbench.seeds import numpy_generator, stream
from workbench.subjects import Pair

UNIT = "learning coefficient"
TRACE_POINTS = 100
"""Points of a chain's trace that are stored at most; each is the mean of those around it."""


class LearningCoefficientSettings(Settings):
    """Settings of `learning_coefficient`."""

    n: int = Field(256, ge=32, description="test examples behind each loss; the temperature follows from them")
    batch_size: int = Field(16, ge=1, description="examples of a step's minibatch")
    full: bool = Field(False, description="see all examples in every step")
    eps: tuple[float, ...] = Field((3e-6, 6e-6, 1.2e-5), min_length=2, description="step sizes to try; each needs a neighbour")
    gamma: tuple[float, ...] = Field(
        (5e3, 2e4), min_length=1, description="strengths of the localisation to try, weakest first"
    )
    beta: float | None = Field(None, gt=0, description="inverse temperature per example; 1 / log n when empty")
    chains: int = Field(4, ge=2, le=32, description="independent chains")
    burn: int = Field(60, ge=0, description="draws of each chain that are thrown away")
    draws: int = Field(140, ge=20, description="draws of each chain that count")
    every: int = Field(1, ge=1, description="steps behind a draw, which is their mean")


@dataclass(frozen=True)
class _Seen:
    """One model on one ability's loss."""

    loss: float
    estimate: Estimate
    chains: Chains | None


@analysis(
    version=1,
    holds=300,
    n=256,
    passes=950,
    paper="Lau+23 2308.12108; Watanabe 2013",
    group="curvature",
    uses=("revived", "never_had_it"),
)
def learning_coefficient(pair: Pair, settings: LearningCoefficientSettings) -> Result:
    """Local learning coefficients (LLC) of all models on the loss of O_PT (at C_Te = 0) and of O_FT (where it was trained).

    LLC = n beta (mean L_n(w) - L_n(w0)) over w near the model w0, in units of free energy per log n: d/2 for a regular model with d
    parameters, less where directions are flat. Step size and localisation are calibrated on the base and O_PT and then serve all
    models; a model whose chains fail a check, above all since w0 is no minimum of that loss, is `undefined`, with its reason.

    `table`: LLC (Student's t over chains) and loss per model and role. Controls: `never_had_it`, `untrained` (random weights).
    `checks`: R-hat, effective draws, drift, share of draws below the model, distance walked against the localisation's own radius,
    verdict, reason. `sweep`: the calibration. `traces`: n beta (L - L(w0)) by chain, thinned.
    """
    texts = {"pt": (pair.capability, shares(pair, pair.capability)[0]), "ft": (pair.tuned_on, shares(pair, pair.tuned_on)[-1])}
    sets = {role: draw(pair, *which, settings.n) for role, which in texts.items()}
    models: dict[str, PreTrainedModel] = dict(pair.states)
    if pair.never_had_it is not None:
        models["never_had_it"] = pair.never_had_it
    models["untrained"] = pair.untrained
    sweep, first = _calibrated(pair, sets["pt"], settings)
    seen: dict[tuple[str, str], _Seen] = {}
    for model, net in models.items():
        for role, examples in sets.items():
            is_first = (model, role) == ("base", "pt")
            seen[model, role] = first if is_first else _measured(net, examples, settings, sweep, _seed(pair, model, role))
    table, checks, traces = _tables(seen, texts, settings)
    chosen = sweep.chosen
    result = Result(
        name="learning_coefficient",
        tables={"table": table, "checks": checks, "sweep": _sweep(sweep), "traces": traces},
        headline=tuple(_metric(pair, *key, found.estimate, settings.n) for key, found in seen.items()),
        limits=(
            *((sweep.refusal,) if chosen is None else (_scale(chosen.sampler),)),
            "A model that was not trained on a loss stands at no minimum of it: its number is refused where its chains fall, and means "
            "little where they happen not to.",
            "Texts are fresh, so that a trained model is near, not at, the minimum of their loss: this lowers a regular model's number by "
            "a share of about 1 / log n.",
            "Steps of finite size and minibatches widen the stiffest directions; the sweep bounds this by neighbouring step sizes alone.",
            "Intervals are over chains from one starting point, on one set of texts: they know nothing of other texts or trainings.",
        ),
        provenance={"capability": pair.capability, "tuned_on": pair.tuned_on},
    )
    return replace(result, evidence=evidence(result))


def _scale(s: Sampler) -> str:
    return (
        f"Measured at n = {s.n}, n beta = {s.heat:.4g}, gamma = {s.gamma:g}, eps = {s.eps:g}: directions with a curvature far below "
        f"gamma / (n beta) = {s.gamma / s.heat:.3g} count as flat, and numbers at other settings are not comparable."
    )


def _seed(pair: Pair, model: str, role: str) -> int:
    return stream(pair.seed, "learning coefficient", model, role)


def _rise(model: PreTrainedModel, examples: Examples, settings: LearningCoefficientSettings) -> Rise:
    # Single precision: its rounding, 1e-7 of a loss, is far below a step's own noise.
    tokens = settings.batch_size * examples.tokens.shape[1]
    return Rise(of_model(model, examples, tokens=tokens, dtype=torch.float32))


def _calibrated(pair: Pair, examples: Examples, settings: LearningCoefficientSettings) -> tuple[Calibration, _Seen]:
    """The sweep on the base, and the base's own number: that of the setting which was chosen."""
    rise = _rise(pair.base, examples, settings)
    s = settings
    rest = Sampler(len(examples), s.eps[0], s.gamma[0], s.chains, s.burn, s.draws, s.every, s.beta, s.full)
    sweep = calibrate(rise, rise.centre, rest, s.eps, s.gamma, _seed(pair, "base", "pt"))
    chosen = sweep.chosen
    return sweep, _Seen(rise.loss, chosen.estimate, chosen.chains) if chosen else _refused(rise.loss)


def _refused(loss: float) -> _Seen:
    return _Seen(loss, no_estimate("no setting of the calibration on the base passes its checks"), None)


def _measured(
    model: PreTrainedModel, examples: Examples, settings: LearningCoefficientSettings, sweep: Calibration, seed: int
) -> _Seen:
    rise = _rise(model, examples, settings)
    if sweep.chosen is None:
        return _refused(rise.loss)
    chains = sample(rise, rise.centre, sweep.chosen.sampler, seed)
    return _Seen(rise.loss, estimate(chains), chains)


def _metric(pair: Pair, model: str, role: str, found: Estimate, n: int) -> Metric:
    name = f"llc_{model}_{role}"
    if not found.sound:
        return Metric(name, math.nan, math.nan, math.nan, n, UNIT, "undefined", draws=(math.nan,) * DRAWS)
    chains = found.chains
    t = numpy_generator(pair.seed, "interval", name).standard_t(chains - 1, DRAWS)
    draws = tuple(np.round(found.value + found.error * t, 6).tolist())
    return Metric(name, found.value, found.low, found.high, n, UNIT, draws=draws)


def _tables(
    seen: dict[tuple[str, str], _Seen], texts: dict[str, tuple[str, float]], settings: LearningCoefficientSettings
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    rows: list[dict[str, Any]] = []
    checks: list[dict[str, Any]] = []
    traces: list[pd.DataFrame] = []
    for (model, role), found in seen.items():
        capability, share = texts[role]
        at = {"model": model, "role": role, "capability": capability, "share": share}
        e, nan = found.estimate, math.nan
        ends = (e.value, e.low, e.high) if e.sound else (nan, nan, nan)
        for measure, three, unit in (("llc", ends, UNIT), ("loss", (found.loss,) * 3, "nats")):
            rows.append({**at, "measure": measure, **dict(zip(("value", "low", "high"), three, strict=True)), "n": settings.n})
            rows[-1]["unit"] = unit
        checks.append({**at, **_checked(e)})
        if found.chains is not None:
            traces.append(_thinned(found.chains).assign(model=model, role=role))
    empty = pd.DataFrame(columns=["chain", "draw", "llc", "kept", "model", "role"])
    return pd.DataFrame(rows), pd.DataFrame(checks), pd.concat(traces, ignore_index=True) if traces else empty


def _checked(e: Estimate) -> dict[str, Any]:
    """What speaks for a number; without a column `value`, so that pooling seeds keeps every row."""
    return {
        "estimate": e.value,
        "error": e.error,
        "r_hat": e.r_hat,
        "effective_draws": e.ess,
        "drift": e.drift,
        "drift_low": e.drift_low,
        "drift_high": e.drift_high,
        "below": e.below,
        "distance": e.distance,
        "radius": e.radius,
        "passes": e.sound,
        "reason": "; ".join(e.reasons),
    }


def _sweep(sweep: Calibration) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "eps": t.sampler.eps,
                "gamma": t.sampler.gamma,
                "n_beta": t.sampler.heat,
                **_checked(t.estimate),
                "chosen": t is sweep.chosen,
            }
            for t in sweep.trials
        ]
    )


def _thinned(chains: Chains) -> pd.DataFrame:
    """Means of a chain's trace over equal stretches, at the last draw of each; what was not sampled is left out."""
    c, total = chains.trace.shape
    wide = -(-total // TRACE_POINTS)
    rows: list[dict[str, Any]] = []
    for chain in range(c):
        for start in range(0, total, wide):
            end = min(start + wide, total)
            mean = float(chains.trace[chain, start:end].mean())
            if math.isfinite(mean):
                rows.append({"chain": chain, "draw": end, "llc": mean, "kept": start >= chains.sampler.burn})
    return pd.DataFrame(rows, columns=["chain", "draw", "llc", "kept"])


def evidence(result: Result) -> tuple[Evidence, ...]:
    """One line that takes no side: the base's number on O_PT, and those of the models that were trained towards their loss."""
    found = {m.metric: m for m in result.headline}
    pt, ft = (str(result.provenance.get(key, name)) for key, name in (("capability", "O_PT"), ("tuned_on", "O_FT")))
    base = found["llc_base_pt"]
    shown = [("base", "pt", pt), ("revived", "pt", pt), ("tuned", "ft", ft)]
    said = [
        f"{model} on {name} {m.value:.2f} [{m.low:.2f}, {m.high:.2f}]"
        if m.bound != "undefined"
        else f"{model} on {name} undefined"
        for model, role, name in shown
        if (m := found.get(f"llc_{model}_{role}"))
    ]
    numbers = (base.metric, base.value, base.low, base.high, base.n)
    some = any(m.bound != "undefined" for m in result.headline)
    text = f"Local learning coefficients: {', '.join(said)}."
    return (Evidence(result.name, *numbers, "neutral" if some else "uninformative", text, pt, base.bound),)
