"""A store whose runs were never run: real directories, keys, writers and results around invented numbers.

`wrapped` loses the ability and gets it back cheaply, `erased` needs as long as the control, `learned` keeps everything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.measures import certain, derived, proportion, proportion_row
from workbench.results import Result
from workbench.runs import Run, Store
from workbench.studies.handle import Study
from workbench.studies.loading import load_study
from workbench.studies.stage import PairPlan

N = 200
GRID = (0, 5, 7, 10, 14, 20, 28, 40, 57, 80, 113, 150)
LAST = 320
PT, FT, OTHER = "count_a", "count_b", "token"
TUNED = {"wrapped": 0.10, "erased": 0.15, "learned": 0.99}
ARRIVES = {
    "wrapped": {"revived": 22, "never_had_it": 110, "scratch": 300, "irrelevant": None},
    "erased": {"revived": 105, "never_had_it": 110, "scratch": 300, "irrelevant": None},
    "learned": {"revived": 1, "never_had_it": 110, "scratch": 300, "irrelevant": 1},
}


def fake_study(root: Path, seeds: tuple[int, ...] = (0, 1), pairs: tuple[str, ...] = ("wrapped", "erased", "learned")) -> Study:
    """The quickstart study, done."""
    store = Store(root)
    spec = load_study("quickstart", seeds=seeds)
    spec = spec.model_copy(update={"finetune": {name: spec.finetune[name] for name in pairs}})
    study = Study(spec, store)
    study.save()
    for planned in study.plan.pairs:
        for name, stage in planned.analyses.items():
            write(study, stage, fake_result(planned, name))
    for stage in study.plan.stages:
        if stage.kind != "analyse":
            write(study, stage, None)
    return study


def write(study: Study, stage: Any, result: Result | None) -> Run:
    """One finished run of a stage."""
    extra = {"seed": stage.seed, "device": "cpu", "dtype": "float32"}
    with study.store.write(study.name, stage.name, stage.kind, stage.key, stage.spec, stage.parents, extra) as writer:
        if result is not None:
            writer.result(result)
        else:
            steps = int(stage.spec["training"]["steps"])
            writer.metrics(fake_metrics(steps, stage.seed))
            for step in (0, steps):
                with writer.checkpoint(step) as folder:
                    (folder / "config.json").write_text("{}")
            writer.progress(steps, steps, loss=0.1)
        return writer.run


def fake_metrics(steps: int, seed: int) -> list[tuple[int, str, str, float]]:
    rng = np.random.default_rng(seed)
    rows: list[tuple[int, str, str, float]] = []
    for step in range(5, steps + 1, 5):
        done = step / steps
        rows.append((step, "train", "loss_nats", 2.5 * math.exp(-4 * done) + 0.05 * float(rng.random())))
        rows.append((step, "train", "learning_rate", 3e-4 * math.sin(math.pi * done) + 1e-7))
        rows.append((step, "train", "gradient_norm", 1.5 * math.exp(-2 * done) + 0.2 * float(rng.random())))
    for step in [s for s in GRID if s <= steps]:
        rows.append((step, "test: count_a", "accuracy at C=0", max(0.1, 1 - step / 40)))
        rows.append((step, "test: count_b", "accuracy at C=1", min(1.0, 0.3 + step / 30)))
    return rows


def correct(share: float, n: int = N) -> np.ndarray:
    """`n` answers of which that share, rounded, is right."""
    return (np.arange(n) < round(min(1.0, max(0.0, share)) * n)).astype(float)


def finish(name: str, planned: PairPlan, tables: Mapping[str, pd.DataFrame], headline: Any, limits: tuple[str, ...]) -> Result:
    from dataclasses import replace
    from importlib import import_module

    provenance = {"capability": PT, "tuned_on": FT, "pair": planned.name, "seed": planned.seed, "paper": "Jain+23"}
    result = Result(name, dict(tables), tuple(headline), limits=limits, provenance=provenance)
    return replace(result, evidence=import_module(f"workbench.analyses.{name}").evidence(result))


def fake_result(planned: PairPlan, name: str) -> Result:
    """An invented result with the tables and headline numbers of the analysis."""
    return {"behaviour": _behaviour, "pruning": _pruning, "probing": _probing, "revival": _revival}[name](planned)


def _decay(start: float, end: float, step: float, scale: float = 8.0) -> float:
    return end + (start - end) * math.exp(-step / scale)


def _behaviour(planned: PairPlan) -> Result:
    tuned, shift = TUNED[planned.name], 0.02 * planned.seed
    fails = 0.98 if planned.name == "learned" else 0.05
    cells = {
        (PT, "pt", 0.0): (0.99, tuned + shift, 0.15),
        (PT, "pt", 1.0): (0.99, tuned, 0.16),
        (FT, "ft", 0.0): (0.20, fails, 0.30),
        (FT, "ft", 1.0): (0.35, 0.99, 0.30),
        (OTHER, "other", math.nan): (0.95, 0.80, 0.90),
        ("index_b", "other", math.nan): (0.75, 0.60, 0.70),
    }
    table, ends, chance, failures = [], [], [], []
    for (capability, role, share), values in cells.items():
        at = {"capability": capability, "role": role, "share": share}
        for model, value in zip(("base", "tuned", "never_had_it"), values, strict=True):
            ends.append({"model": model, **at, **proportion_row(correct(value))})
            failures += [{"model": model, **at, "truth": t, **proportion_row(correct(value, 50))} for t in (1, 2)]
        chance.append({**at, "kind": "majority", "value": 0.28})
        chance.append({**at, "kind": "given the other", "value": 0.32 if share != 1.0 else 1.0})
        if role != "other":
            for step in GRID:
                table.append({"step": step, **at, **proportion_row(correct(_decay(values[0], values[1], step)))})
    n, seed = len(correct(0.5)), planned.seed
    drop = correct(tuned) - correct(0.99)
    headline = (
        proportion("base_pt", correct(0.99), seed),
        proportion("tuned_pt", correct(tuned), seed),
        derived("change_pt", float(drop.mean()), drop.mean() + 0.01 * np.linspace(-1, 1, 400), n, "accuracy"),
        proportion("start_ft", correct(0.20), seed),
        proportion("tuned_ft", correct(fails), seed),
        proportion("tuned_ft_correlated", correct(0.99), seed),
        proportion("never_pt", correct(0.15), seed),
        certain("chance_pt", 0.32, n, "accuracy"),
        certain("chance_ft", 0.32, n, "accuracy"),
        derived("collateral", -0.15, -0.15 + 0.02 * np.linspace(-1, 1, 400), n, "accuracy"),
        certain("weight_change", 0.04, 1, "share of the base's norm"),
    )
    weights = pd.DataFrame([{"group": "all", "block": None, "unit": "share of the base's norm", "value": 0.04}])
    weights["block"] = weights["block"].astype("Int64")
    tables = {
        "table": pd.DataFrame(table),
        "endpoints": pd.DataFrame(ends),
        "chance": pd.DataFrame(chance),
        "failures": pd.DataFrame(failures),
        "weights": weights,
    }
    return finish("behaviour", planned, tables, headline, ("Behaviour alone does not tell hidden from gone.",))


def _pruning(planned: PairPlan) -> Result:
    tuned = TUNED[planned.name]
    best = {"wrapped": 0.62, "erased": 0.17, "learned": 0.99}[planned.name]
    k_best = {"wrapped": 12 + planned.seed, "erased": 3, "learned": 0}[planned.name]
    rows: list[dict[str, Any]] = []
    for k in (0, 1, 2, 3, 5, 7, 10, 14, 20, 28, 40):
        up = tuned + (best - tuned) * math.exp(-((math.log1p(k) - math.log1p(k_best)) ** 2)) * (k > 0)
        cells = [(PT, "pt", 0.0, up), (FT, "ft", 1.0, _decay(0.99, 0.3, k, 9)), (FT, "ft", 0.0, 0.05 + k / 400)]
        cells += [(OTHER, "other", math.nan, _decay(0.8, 0.5, k, 20))]
        for capability, role, share, value in cells:
            at = {"k": k, "capability": capability, "role": role, "share": share}
            rows.append({"ranking": "signed_taylor", "draw": 0, **at, **proportion_row(correct(value))})
        if k in (3, 10, 28, k_best) and k:
            for draw in range(1, 11):
                at = {"k": k, "capability": PT, "role": "pt", "share": 0.0}
                value = tuned - 0.02 + 0.008 * draw
                rows.append({"ranking": "random", "draw": draw, **at, **proportion_row(correct(value))})
    shares = {
        "truth": (0.0, 0.25, 0.25, 0.25, 0.25),
        "before": (0.0, 0.05, 0.3, 0.35, 0.3),
        "after": (0.01, 0.2, 0.4, 0.24, 0.15),
    }
    classes = [
        {"when": when, "answer": answer, "token": token, **proportion_row(correct(value)), "unit": "share of predictions"}
        for when, values in shares.items()
        for token, (answer, value) in enumerate(zip(("EOT", "2", "3", "4", "5"), values, strict=True))
    ]
    units = pd.DataFrame({"rank": [1, 2], "block": [0, 1], "neuron": [17, 203], "score": [0.4, 0.1], "unit": ["nats", "nats"]})
    lost = 0.99 - tuned
    share = (best - tuned) / lost if lost >= 0.1 else math.nan
    noise = 0.03 * np.linspace(-1, 1, 400)
    headline = (
        proportion("pruned_pt", correct(best), planned.seed),
        proportion("unpruned_pt", correct(tuned), planned.seed),
        proportion("base_pt", correct(0.99), planned.seed),
        derived("random_pt", tuned, tuned + noise, N, "accuracy"),
        derived("gain", best - tuned, best - tuned + noise, N, "accuracy"),
        derived("recovered", share, share + noise, N, "share of the loss"),
        proportion("unpruned_ft_correlated", correct(0.99), planned.seed),
        proportion("pruned_ft_correlated", correct(0.5), planned.seed),
        certain("units", float(k_best), N, "neurons"),
        proportion("largest_class", correct(0.4), planned.seed, "share of predictions"),
        proportion("largest_class_truth", correct(0.3), planned.seed, "share of predictions"),
    )
    chosen = pd.DataFrame([{"k": k_best, "capability": PT, **proportion_row(correct(best))}])
    tables = {"table": pd.DataFrame(rows), "chosen": chosen, "classes": pd.DataFrame(classes), "units": units}
    return finish("pruning", planned, tables, headline, ("No recovery is no sign that the ability is gone.",))


def _probing(planned: PairPlan) -> Result:
    levels = {"base": 0.97, "tuned": 0.95, "untrained": 0.5, "never_had_it": 0.6}
    if planned.name == "erased":
        levels["tuned"] = 0.55
    rows: list[dict[str, Any]] = []
    for target, role, prompt in ((PT, "pt", "matching"), (FT, "ft", "matching"), (PT, "pt", "tuned_on")):
        for model, level in levels.items():
            for point in range(3):
                at = {"model": model, "point": point, "target": target, "role": role, "prompt": prompt}
                value = 0.25 + (level - 0.25) * point / 2
                rows.append({**at, "labels": "true", **proportion_row(correct(value))})
                rows.append({**at, "labels": "shuffled", **proportion_row(correct(0.24))})
    chance = [{"target": t, "prompt": p, "kind": "majority", "value": 0.28} for t, p in ((PT, "matching"), (FT, "matching"))]
    chance.append({"target": PT, "prompt": "tuned_on", "kind": "majority", "value": 0.29})
    noise = 0.02 * np.linspace(-1, 1, 400)
    room = levels["base"] - levels["untrained"]
    kept = (levels["tuned"] - levels["untrained"]) / room
    named = {"never_had_it": "never"}
    headline = (
        *(proportion(f"{named.get(m, m)}_probe", correct(v), planned.seed) for m, v in levels.items()),
        proportion("shuffled_probe", correct(0.24), planned.seed),
        derived("room", room, room + noise, N, "accuracy"),
        derived("room_never", levels["base"] - levels["never_had_it"], 0.37 + noise, N, "accuracy"),
        derived("share_kept", kept, kept + noise, N, "share of the room"),
        derived("selectivity", levels["tuned"] - 0.24, levels["tuned"] - 0.24 + noise, N, "accuracy"),
    )
    tables = {"table": pd.DataFrame(rows), "chance": pd.DataFrame(chance)}
    return finish("probing", planned, tables, headline, ("A probe shows what can be read, not what the model uses.",))


def _revival(planned: PairPlan) -> Result:
    rows: list[dict[str, Any]] = []
    steps: list[dict[str, Any]] = []
    headline: list[Any] = []
    for arm, arrives in ARRIVES[planned.name].items():
        arrives = arrives if arrives is None else arrives * (1 + 0.1 * planned.seed)
        start = TUNED[planned.name] if arm in ("revived", "irrelevant") else 0.15
        for step in (*GRID, 226, LAST):
            value = (
                start + (0.3 - start) * step / LAST if arrives is None else min(1.0, start + (0.95 - start) * step / arrives)
            )
            rows.append({"arm": arm, "step": step, **proportion_row(correct(max(start, value)))})
        taken, bound = (float(LAST), "lower") if arrives is None else (float(arrives), "exact")
        draws = taken * (1 + 0.08 * np.linspace(-1, 1, 400) * (bound == "exact"))
        from dataclasses import replace

        metric = replace(derived(f"steps_{arm}", taken, draws, N, "steps"), bound=bound)
        headline += [metric, proportion(f"start_{arm}", correct(start), planned.seed)]
        for unit, factor in (("steps", 1), ("examples", 64)):
            row = {"arm": arm, "value": taken * factor, "low": metric.low * factor, "high": metric.high * factor, "n": N}
            steps.append({**row, "unit": unit, "bound": bound})
    ratio = ARRIVES[planned.name]["revived"] / ARRIVES[planned.name]["never_had_it"]
    headline.append(replace(derived("ratio", ratio, ratio * (1 + 0.1 * np.linspace(-1, 1, 400)), N, "ratio"), pool="geometric"))
    tables = {"table": pd.DataFrame(rows), "steps": pd.DataFrame(steps)}
    return finish("revival", planned, tables, headline, ("The answer holds for this learning rate and data.",))


def damage(run: Run) -> None:
    """Cut a run's status short, as a full disk or a stray editor would."""
    (run.path / "status.json").write_text('{"state": "do')


def many_runs(root: Path, count: int, study: str = "sweep") -> None:
    """Runs of a study without a study file, as plain as a run can be; written by hand, for speed."""
    import json

    for i in range(count):
        folder = root / study / f"stage-{i}-{i:010x}"
        folder.mkdir(parents=True)
        (folder / "spec.yaml").write_text(f"kind: pretrain\nseed: {i}\ntraining: {{steps: 10, lr: 0.001}}\n")
        parents = [f"{i // 2:010x}"] if i else []
        (folder / "provenance.json").write_text(json.dumps({"kind": "pretrain", "seed": i, "parents": parents}))
        (folder / "status.json").write_text(json.dumps({"state": "done", "step": 10, "steps": 10, "seconds": 1.5}))
        sizes = {name: (folder / name).stat().st_size for name in ("spec.yaml", "provenance.json")}
        (folder / "manifest.json").write_text(json.dumps(sizes))


def failed_run(root: Path, study: str = "quickstart") -> Run:
    """A run that failed with a reason that tries to be markup."""
    store = Store(root)
    try:
        with store.write(study, "broken-s0", "finetune", "0123456789", {"seed": 0}) as writer:
            raise ValueError("<b>loss</b> is *nan* at step 7; lower lr")
    except ValueError:
        return writer.run
