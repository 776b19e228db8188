"""A grid study whose results were never measured: real directories and keys around numbers that are functions of the axes.

Everything below `said` is arithmetic that a test can do in its head: nothing depends on more than the prior, the rate, the
share of correlated texts, the length of pretraining and the seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.apps.fake_store import FT, OTHER, PT, N, correct, finish, write
from workbench.measures import derived, proportion_row
from workbench.paper.grid import Grid
from workbench.results import Metric, Result
from workbench.runs import Store
from workbench.statistics import bootstrap_mean
from workbench.studies.handle import Study
from workbench.studies.loading import parse_study
from workbench.studies.spec import StudySpec
from workbench.studies.stage import PairPlan

SPEC: dict[str, Any] = {
    "study": "small_grid",
    "seeds": [0, 1],
    "task": {"kind": "pcfg", "text_length": 12, "window": 6, "families": ["count", "token"]},
    "model": {"kind": "gpt2", "blocks": 2, "heads": 2, "width": 16},
    "evaluation": {"examples": 64, "final_examples": N},
    "pretrain": {
        "p99": {"operand_prior": {"a": 0.99, "b": 0.01}, "steps": 100, "lr": 3e-3},
        "p5": {"operand_prior": {"a": 0.5, "b": 0.3, "c": 0.2}, "steps": 100, "lr": 3e-3},
        "p99_short": {"operand_prior": {"a": 0.99, "b": 0.01}, "steps": 50, "lr": 3e-3},
        "never_had_it": {"operand_prior": {"b": 0.99, "c": 0.01}, "steps": 100, "lr": 3e-3},
    },
    "finetune": {
        "core": {
            "grid": {"from": ["p99", "p5"], "lr": [1e-3, 1e-4], "correlation.share": [0.0, 1.0]},
            "capability": "count_b",
            "correlation": {"with": "count_a", "offset": 1},
            "steps": 20,
        },
        "short": {
            "from": "p99_short",
            "capability": "count_b",
            "correlation": {"with": "count_a", "offset": 1, "share": 1.0},
            "steps": 20,
            "lr": 1e-3,
        },
    },
    "revive": {"capability": "count_a", "steps": 160, "lr": 5e-5, "other_rates": [5e-4]},
    "analyses": ["behaviour", "pruning", "probing", "revival"],
}
STEPS = (0, 10, 20)
REVIVAL_STEPS = (0, 5, 10, 20, 40, 80, 160)
DRAWS = 100
NEVER_STEPS = 160.0
"""Steps of the model that never had the ability, at the main rate."""


def name(start: str, rate: float, share: float) -> str:
    """A pair's name in the core."""
    return f"core,from={start},lr={rate},share={share}"


def said(prior: float, rate: float, share: float, short: bool = False, seed: int = 0) -> dict[str, float]:
    """The invented numbers of a cell.

    With the low prior (.99) `tuned_ft` falls by .8 and with the high one (.5) by .2 from no to all texts correlated; the
    smaller rate costs .1, seed 1 adds .02, shorter pretraining takes .05 off.
    """
    low, slow = prior >= 0.99, rate < 1e-3
    return {
        "tuned_ft": (0.85 - 0.8 * share if low else 0.9 - 0.2 * share) - 0.1 * slow * (not (low and share == 1)) + 0.02 * seed,
        "tuned_ft_correlated": 0.95,
        "tuned_pt": (0.2 - 0.1 * share if low else 0.8 - 0.3 * share) + 0.1 * slow + 0.02 * seed - 0.05 * short,
        "pruned_pt": 0.6 if share else 0.25,
        "recovered": 0.5 * share + 0.1,
        "gain": 0.3 * share - 0.1,
        "pruned_ft_correlated": 0.7,
        "tuned_probe": 0.95 - (0.4 if low and not slow and not share else 0.02),
        "base_probe": 0.95,
        "steps_revived": (40.0 if low else 10.0) * (1 if share else 2) * (1 + seed),
    }


def cell(planned: PairPlan) -> dict[str, float]:
    """The invented numbers of a planned pair."""
    base, tuned = planned.base.spec, planned.tuned.spec
    prior = base["protocol"]["settings"]["operand_prior"]["a"]
    share = planned.correlation.share if planned.correlation else 0.0
    short = base["training"]["steps"] < 100
    return said(prior, tuned["training"]["lr"], share, short, planned.seed)


def small_grid() -> StudySpec:
    """Two priors x two rates x two shares, and one pair with shorter pretraining."""
    return parse_study(SPEC)


def fake_grid(root: Path, spec: StudySpec | None = None, done: Callable[[PairPlan, str], bool] | None = None) -> Study:
    """The study with invented results of the analyses for which `done(pair, analysis)`; all of them when it is absent."""
    study = Study(spec or small_grid(), Store(root))
    study.save()
    for planned in study.plan.pairs:
        for analysis, stage in planned.analyses.items():
            if done is None or done(planned, analysis):
                write(study, stage, MAKERS[analysis](planned))
    return study


@cache
def right(name: str, value: float, seed: int) -> Metric:
    """An accuracy, its draws paired with those of all others under the seed."""
    row = proportion_row(correct(value))
    draws = tuple(np.round(bootstrap_mean(correct(value), DRAWS, seed), 6).tolist())
    return Metric(name, row["value"], row["low"], row["high"], N, "accuracy", draws=draws)


_DONE: list[Study] = []


def made_once(factory: pytest.TempPathFactory) -> Study:
    """The small grid with everything done, once for all folders of tests in a process; tests leave it as it is."""
    if not _DONE:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("os.fsync", lambda file: None)  # a store that a crash may take is good enough here
            _DONE.append(fake_grid(factory.mktemp("grid")))
    return _DONE[0]


def behaviour(planned: PairPlan) -> Result:
    """Straight lines from the base's accuracy to the tuned model's, so that the mean along training is that of the ends."""
    numbers, seed = cell(planned), planned.seed
    ends = {
        (PT, "pt", 0.0): (1.0, numbers["tuned_pt"]),
        (PT, "pt", 1.0): (1.0, numbers["tuned_pt"]),
        (FT, "ft", 0.0): (0.2, numbers["tuned_ft"]),
        (FT, "ft", 1.0): (0.3, numbers["tuned_ft_correlated"]),
        (OTHER, "other", float("nan")): (0.9, 0.5),
    }
    table, endpoints, chance = [], [], []
    for (capability, role, share), (start, end) in ends.items():
        at = {"capability": capability, "role": role, "share": share}
        for step in STEPS if role != "other" else ():
            value = start + (end - start) * step / STEPS[-1]
            table.append({"step": step, **at, **proportion_row(correct(value))})
        for model, value in (("base", start), ("tuned", end), ("never_had_it", 0.15)):
            endpoints.append({"model": model, **at, **proportion_row(correct(value))})
        chance.append({**at, "kind": "majority", "value": 0.3})
    tuned, before = correct(numbers["tuned_pt"]), correct(1.0)
    headline = (
        right("base_pt", 1.0, seed),
        right("tuned_pt", numbers["tuned_pt"], seed),
        derived("change_pt", float((tuned - before).mean()), (tuned - before).mean() + np.zeros(DRAWS), N, "accuracy"),
        right("start_ft", 0.2, seed),
        right("tuned_ft", numbers["tuned_ft"], seed),
        right("tuned_ft_correlated", numbers["tuned_ft_correlated"], seed),
        Metric("chance_pt", 0.3, 0.3, 0.3, N),
        Metric("chance_ft", 0.3, 0.3, 0.3, N),
    )
    tables = {"table": pd.DataFrame(table), "endpoints": pd.DataFrame(endpoints), "chance": pd.DataFrame(chance)}
    return finish("behaviour", planned, tables, headline, ())


def pruning(planned: PairPlan) -> Result:
    """Removing 10 units brings O_PT from the tuned to the pruned value; three random orders stay below."""
    numbers, seed = cell(planned), planned.seed
    rows: list[dict[str, Any]] = []
    for k in (0, 10):
        for capability, role, share, before, after in (
            (PT, "pt", 0.0, numbers["tuned_pt"], numbers["pruned_pt"]),
            (FT, "ft", 0.0, numbers["tuned_ft"], 0.1),
            (FT, "ft", 1.0, numbers["tuned_ft_correlated"], numbers["pruned_ft_correlated"]),
        ):
            at = {"k": k, "capability": capability, "role": role, "share": share}
            rows.append({"ranking": "signed_taylor", "draw": 0, **at, **proportion_row(correct(after if k else before))})
        for draw in (1, 2, 3) if k else ():
            at = {"k": k, "capability": PT, "role": "pt", "share": 0.0}
            rows.append({"ranking": "random", "draw": draw, **at, **proportion_row(correct(0.05 * draw))})
    noise = 0.02 * np.linspace(-1, 1, DRAWS)
    headline = (
        right("pruned_pt", numbers["pruned_pt"], seed),
        right("unpruned_pt", numbers["tuned_pt"], seed),
        right("base_pt", 1.0, seed),
        derived("random_pt", 0.1, 0.1 + noise, N, "accuracy"),
        derived("gain", numbers["gain"], numbers["gain"] + noise, N, "accuracy"),
        derived("recovered", numbers["recovered"], numbers["recovered"] + noise, N, "share of the loss"),
        right("unpruned_ft_correlated", numbers["tuned_ft_correlated"], seed),
        right("pruned_ft_correlated", numbers["pruned_ft_correlated"], seed),
        Metric("units", 10.0, 10.0, 10.0, N, "neurons"),
        right("largest_class", 0.4, seed),
        right("largest_class_truth", 0.3, seed),
    )
    return finish("pruning", planned, {"table": pd.DataFrame(rows)}, headline, ())


def probing(planned: PairPlan) -> Result:
    """Probes at the embedding read .3 from every model, at the last point each its own number."""
    numbers, seed = cell(planned), planned.seed
    levels = {"base": numbers["base_probe"], "tuned": numbers["tuned_probe"], "untrained": 0.5, "never_had_it": 0.6}
    rows: list[dict[str, Any]] = []
    for target, role, prompt in ((PT, "pt", "matching"), (FT, "ft", "matching"), (PT, "pt", "tuned_on")):
        for model, level in levels.items():
            for point, value in ((0, 0.3), (1, level)):
                at = {"model": model, "point": point, "target": target, "role": role, "prompt": prompt}
                rows.append({**at, "labels": "true", **proportion_row(correct(value))})
                rows.append({**at, "labels": "shuffled", **proportion_row(correct(0.2))})
    noise = 0.02 * np.linspace(-1, 1, DRAWS)
    short = {"never_had_it": "never"}
    headline = (
        *(right(f"{short.get(m, m)}_probe", v, seed) for m, v in levels.items()),
        right("shuffled_probe", 0.2, seed),
        derived("room", 0.45, 0.45 + noise, N, "accuracy"),
        derived("room_never", 0.35, 0.35 + noise, N, "accuracy"),
        derived("share_kept", 0.9, 0.9 + noise, N, "share of the room"),
        derived("selectivity", 0.7, 0.7 + noise, N, "accuracy"),
    )
    return finish("probing", planned, {"table": pd.DataFrame(rows)}, headline, ())


def revival(planned: PairPlan) -> Result:
    """Every arm is at .1 until it arrives and at 1 from there on; ten times the rate takes a fifth of the steps."""
    numbers, seed = cell(planned), planned.seed
    rows: list[dict[str, Any]] = []
    headline: list[Metric] = []
    for arm in planned.arms:
        which, _, rate = arm.partition("@")
        arrives = {"revived": numbers["steps_revived"], "never_had_it": NEVER_STEPS}.get(which, np.inf) / (5 if rate else 1)
        for step in REVIVAL_STEPS:
            rows.append({"arm": arm, "step": step, **proportion_row(correct(1.0 if step >= arrives else 0.1))})
        taken = min(arrives, float(REVIVAL_STEPS[-1]))
        draws = taken * (1 + 0.05 * np.linspace(-1, 1, DRAWS))
        found = derived(f"steps_{arm}", taken, draws, N, "steps")
        headline += [replace(found, bound="exact" if np.isfinite(arrives) else "lower", pool="geometric")]
        headline += [right(f"start_{arm}", 0.1, seed)]
    ratio = numbers["steps_revived"] / NEVER_STEPS
    headline.append(replace(derived("ratio", ratio, ratio * (1 + 0.05 * np.linspace(-1, 1, DRAWS)), N), pool="geometric"))
    return finish("revival", planned, {"table": pd.DataFrame(rows)}, tuple(headline), ())


MAKERS: dict[str, Callable[[PairPlan], Result]] = {
    "behaviour": behaviour,
    "pruning": pruning,
    "probing": probing,
    "revival": revival,
}


def changed(grid, analysis, metric, value, where=lambda pair, seed: True):
    """The grid with a headline number replaced."""
    results = dict(grid.read_results)
    for (pair, of, seed), result in grid.read_results.items():
        if of == analysis and seed is not None and where(pair, seed):
            headline = tuple(
                replace(m, value=value, draws=(value,) * 100) if m.metric == metric else m for m in result.headline
            )
            results[pair, of, seed] = replace(result, headline=headline)
    return Grid(grid.study, read_results=results)
