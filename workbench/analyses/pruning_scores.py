"""Which ranking finds what hides a lost ability: all scores of one kind of unit side by side, and how far they agree.

Every ranking chooses its own number of units, and the best ranking is chosen, on examples other than those that judge it; the
control is chosen among random orders in the same way.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from pydantic import Field
from scipy.stats import rankdata

from workbench.analyses.pruning import choose_k, classes_of, curve, headline_of, k_grid, recovered, request
from workbench.analyses.pruning import evidence as pruning_evidence
from workbench.analysis import Settings, analysis
from workbench.measures import correct_answers, draw, floors, proportion, proportion_row, role_of, shares
from workbench.models.scores import SCORES, order_of, random_order, score_units
from workbench.models.units import UnitKind, units_of
from workbench.results import Evidence, Metric, Result
from workbench.statistics import normal_quantile
from workbench.subjects import Pair

MOST_TESTED = 400
"""Test examples per set where no number is asked for: there are a dozen curves to draw."""


class PruningScoresSettings(Settings):
    """Settings of `pruning_scores`."""

    units: UnitKind = Field("neurons", description="what is removed")
    max_units: int = Field(40, ge=1, description="largest number of removed units; the grid below it is geometric")
    score_examples: int = Field(512, ge=16, description="examples for the scores, drawn apart from all others")
    random_draws: int = Field(10, ge=10, description="random orders of the units that serve as the control")
    n: int | None = Field(
        None, ge=16, description=f"test examples per set; the pair's own number, at most {MOST_TESTED}, when empty"
    )
    control_examples: int = Field(200, ge=16, description="examples (at most) for every choice and for random units")
    probes: int = Field(32, ge=1, description="random probes of the second derivatives, for the score obd")


@analysis(version=2, holds=900, passes=330, paper="Jain+23 §D; 2402.05162")
def pruning_scores(pair: Pair, settings: PruningScoresSettings) -> Result:
    """Accuracy of the tuned model as units are removed in the order of every score that is defined for them.

    The scores, and which end of each goes first, are those of `workbench.models.scores`; all look at the tuned model's loss on
    O_PT at C_Te = 0. Three independent draws: `score` ranks, `select` chooses, `test` judges. Per score: `recovered`, the share of
    the lost accuracy that comes back at the K with the largest accuracy on `select`; `area`, the mean of that share over all K
    of the curve, on the scale log(1 + K), which involves no choice; and what is left of O_FT where it was trained.

    The headline is that of `pruning`, for the score whose best accuracy on `select` is largest. Its control is fair to that
    choice: the one among the random orders that does best on `select` at its own best K.

    `correlations`: Spearman's rank correlation over all units between two scores, each turned so that larger goes first. The
    interval is Bonett and Wright's (2000), as if units were drawn independently, which those of one model are not.
    """
    n, tuned, units = settings.n or min(pair.n, MOST_TESTED), pair.tuned, units_of(pair.tuned, settings.units)
    few = min(n, settings.control_examples)
    pt, ft = (pair.capability, shares(pair, pair.capability)[0]), (pair.tuned_on, shares(pair, pair.tuned_on)[-1])
    asked = request(pair, units, settings.score_examples, settings.probes)
    scores = {s: score_units(s, asked) for s, score in SCORES.items() if units.word in score.words and s != "random"}
    orders = {("random", i + 1): random_order(len(units), pair.seed, i) for i in range(settings.random_draws)}
    orders = {**{(name, 0): order_of(name, values) for name, values in scores.items()}, **orders}
    grid = k_grid(min(settings.max_units, len(units)))
    selection, test, trained = draw(pair, *pt, few, "select"), draw(pair, *pt, n), draw(pair, *ft, n)

    rows: list[dict[str, Any]] = []
    right: dict[tuple[str, int], np.ndarray] = {}
    right_ft: dict[str, np.ndarray] = {}
    best: dict[tuple[str, int], tuple[float, int]] = {}

    def add(name: str, index: int, what: tuple[str, float], found: list[np.ndarray]) -> np.ndarray:
        at = {"ranking": name, "draw": index, "capability": what[0], "role": role_of(pair, what[0]), "share": what[1]}
        rows.extend({**at, "k": k, **proportion_row(values)} for k, values in zip(grid, found, strict=True))
        return np.stack(found)

    for (name, index), order in orders.items():
        on_select = [c.mean() for c in curve(tuned, selection, order, grid, units)]
        best[name, index] = max(on_select), choose_k(grid, on_select)
        right[name, index] = add(name, index, pt, curve(tuned, test if index == 0 else test[:few], order, grid, units))
        if index == 0:
            right_ft[name] = add(name, index, ft, curve(tuned, trained, order, grid, units))
    base = correct_answers(pair.base, test)

    def first(among: list[tuple[str, int]]) -> tuple[str, int]:
        return max(among, key=lambda key: best[key][0])

    chosen, control = first([key for key in orders if key[1] == 0]), first([key for key in orders if key[1] > 0])
    k, places = best[chosen][1], {k: i for i, k in enumerate(grid)}
    correct = {(*pt, k): right[chosen][places[k]] for k in grid} | {(*ft, k): right_ft[chosen[0]][places[k]] for k in grid}
    answers, classes = classes_of(pair, test, units, orders[chosen][:k])
    chance = max(floors(pair, test).values(), default=0.0)
    table, metrics = _compare(pair, grid, right, right_ft, best, base, chance)
    result = Result(
        name="pruning_scores",
        tables={
            "table": pd.DataFrame(rows),
            "scores": table,
            "correlations": correlations(scores),
            "classes": answers,
        },
        headline=(
            *headline_of(pair, correct, right[control][[places[best[control][1]]]], base, k, chance, units.word),
            *(proportion(name, largest, pair.seed, "share of predictions") for name, largest in classes.items()),
            *metrics,
        ),
        limits=(
            f"The headline follows the ranking {chosen[0]}, the best of {len(scores)} on separate examples; its control is the "
            f"best of {settings.random_draws} random orders there.",
            "No recovery by any ranking is no sign that the ability is gone.",
            "Units of one model are not independent: the intervals of the rank correlations are a guide only.",
        ),
        provenance={"capability": pair.capability, "tuned_on": pair.tuned_on},
    )
    return replace(result, evidence=evidence(result))


def _compare(
    pair: Pair,
    grid: tuple[int, ...],
    right: dict[tuple[str, int], np.ndarray],
    right_ft: dict[str, np.ndarray],
    best: dict[tuple[str, int], tuple[float, int]],
    base: np.ndarray,
    chance: float,
) -> tuple[pd.DataFrame, list[Metric]]:
    """Per score and for the mean of the random orders: what came back, and what was left of O_FT."""
    rows: list[dict[str, Any]] = []
    metrics: list[Metric] = []
    weights = area_weights(grid)
    for name in dict.fromkeys(name for name, _ in right):
        mine = [key for key in right if key[0] == name]
        n = right[mine[0]].shape[1]
        at = {key: grid.index(best[key][1]) for key in mine}
        before, top = right[mine[0]][0], base[:n]
        measured = {
            "recovered": np.mean([right[key][at[key]] for key in mine], axis=0),
            "area": np.mean([weights @ right[key] for key in mine], axis=0),
        }
        for quantity, values in measured.items():
            metric = recovered(f"{quantity}_{name}", values, before, top, chance, pair.seed)
            metrics.append(metric)
            rows.append({"score": name, "quantity": quantity, **_row(metric)})
        if name in right_ft:
            rows.append({"score": name, "quantity": "left of O_FT", **proportion_row(right_ft[name][at[mine[0]]])})
        number = float(np.mean([best[key][1] for key in mine]))
        rows.append(
            {"score": name, "quantity": "units", "value": number, "low": number, "high": number, "n": n, "unit": "units"}
        )
    how = {name: "largest" if score.largest_first else "smallest" for name, score in SCORES.items()}
    table = pd.DataFrame(rows)
    why = [SCORES[name].why for name in table["score"]]
    return table.assign(first=[how[name] for name in table["score"]], why=why), metrics


def _row(metric: Metric) -> dict[str, Any]:
    return {key: getattr(metric, key) for key in ("value", "low", "high", "n", "unit")}


def area_weights(grid: tuple[int, ...]) -> Float[np.ndarray, " points"]:
    """Weights, which sum to one, of a curve's mean over log(1 + K) by the trapezoidal rule."""
    at = np.log1p(grid)
    widths = np.diff(at) / 2
    weights = np.zeros(len(grid))
    weights[:-1] += widths
    weights[1:] += widths
    return weights / weights.sum()


def correlations(scores: dict[str, Any]) -> pd.DataFrame:
    """Spearman's correlation of every two scores over the units, each turned so that larger goes first.

    A score that is the same for all units correlates with nothing: NaN.
    """
    names = list(scores)
    ranks = np.stack([rankdata(v.double().numpy() * (1 if SCORES[s].largest_first else -1)) for s, v in scores.items()])
    units = ranks.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.atleast_2d(np.corrcoef(ranks))
        # Standard error of Fisher's z for ranks [Bonett & Wright 2000].
        half = normal_quantile(0.95) * np.sqrt((1 + found**2 / 2) / (units - 3)) if units > 3 else np.full_like(found, np.nan)
        z = np.arctanh(np.clip(found, -1, 1))
        low, high = np.tanh(z - half), np.tanh(z + half)
    return pd.DataFrame(
        {
            "score": a,
            "other": b,
            "value": found[i, j],
            "low": low[i, j],
            "high": high[i, j],
            "n": units,
            "unit": "rank correlation",
        }
        for i, a in enumerate(names)
        for j, b in enumerate(names)
    )


def evidence(result: Result) -> tuple[Evidence, ...]:
    """One line, by the thresholds of `pruning`: whether the chosen ranking beats the random order that was chosen alike."""
    return pruning_evidence(result)
