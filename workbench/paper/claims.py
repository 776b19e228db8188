"""The paper's claims about procedural tasks, each as contrasts with a threshold that was declared before looking [Jain+23 §5].

A contrast holds when its whole interval lies on the predicted side of its threshold, fails when it lies on the other one, and
is unclear when it holds the threshold or rests on one seed. A claim agrees when all its contrasts hold, disagrees when all
fail, agrees partly when some hold, and is unclear otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from workbench.errors import UserError
from workbench.paper.contrasts import (
    EVERY_RATE,
    HIGH,
    LOW,
    MEDIUM,
    Contrast,
    along_training,
    difference,
    kept_readable,
    mean_of,
    over_best_guess,
    steps_ratio,
)
from workbench.paper.grid import Contrasted, Grid
from workbench.replicates import few_seeds
from workbench.results import Metric, Result
from workbench.statistics import Interval
from workbench.verdict import HAS_IT, MASKED, RECOVERED, ROOM

Agreement = Literal["yes", "partly", "no", "unclear", "not measured"]
CLEAR = 0.5
"""Difference of accuracies that a reader of the paper's plots would call "works here and not there"."""


@dataclass(frozen=True)
class Claim:
    """What the paper says, and how it is tested."""

    name: str
    says: str
    contrasts: tuple[Contrast, ...]
    explanation: str = ""
    """Why a measurement on counting that does not agree may not, written after looking."""
    explanation_indexing: str = ""
    """The same for indexing."""


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "q1",
        "With a low prior the fine-tuned model is right only where the shortcut holds when most training texts are "
        "correlated, and at the small rate it never learns the ability where the shortcut fails.",
        (
            Contrast(
                "trained ability, correlated minus uncorrelated texts, all texts correlated in training",
                "above",
                CLEAR,
                difference("behaviour", "tuned_ft_correlated", "tuned_ft", LOW, EVERY_RATE, (1.0,)),
            ),
            Contrast(
                "the same at the small rate with 80 % of texts correlated",
                "above",
                CLEAR,
                difference("behaviour", "tuned_ft_correlated", "tuned_ft", LOW, ("small",), (0.8,)),
            ),
            Contrast(
                "trained ability over the best guess where the shortcut fails, small rate, no text correlated",
                "below",
                HAS_IT,
                over_best_guess(LOW, ("small",), (0.0,)),
            ),
        ),
        "The small rate here is 1/30 of the pretraining rate, the paper's 1/1000. At 1/300 (the very small rate in "
        "fig60-67-counting, which no claim is judged on) 80 % of correlated texts suffice to hide the failure of the shortcut, "
        "and without correlated texts less than half is learned in the same steps, as the paper says.",
    ),
    Claim(
        "q2",
        "With a high or medium prior the shortcut is avoided unless every training text is correlated.",
        (
            Contrast(
                "trained ability over the best guess where the shortcut fails, 50 or 80 % of texts correlated",
                "above",
                HAS_IT,
                over_best_guess([*MEDIUM, *HIGH], EVERY_RATE, (0.5, 0.8)),
            ),
            Contrast(
                "its accuracy minus that with all texts correlated",
                "above",
                ROOM,
                mean_of("tuned_ft", [*MEDIUM, *HIGH], EVERY_RATE, (0.5, 0.8), ([*MEDIUM, *HIGH], EVERY_RATE, (1.0,))),
            ),
        ),
    ),
    Claim(
        "q3",
        "The pretraining ability is lost fastest with a low prior and many correlated texts.",
        (
            Contrast(
                "pretraining ability along fine-tuning, high minus low prior, all texts correlated",
                "above",
                0.0,
                along_training("pt", (HIGH, EVERY_RATE, (1.0,)), (LOW, EVERY_RATE, (1.0,))),
            ),
            Contrast(
                "the same with no minus with all texts correlated, low prior",
                "above",
                0.0,
                along_training("pt", (LOW, EVERY_RATE, (0.0,)), (LOW, EVERY_RATE, (1.0,))),
            ),
        ),
    ),
    Claim(
        "q4",
        "The more texts are correlated, the slower the trained ability is learned and the faster the other is lost.",
        (
            Contrast(
                "trained ability along fine-tuning where the shortcut fails, none minus 80 % correlated",
                "above",
                0.0,
                along_training("ft", ([*LOW, *MEDIUM], EVERY_RATE, (0.0,)), ([*LOW, *MEDIUM], EVERY_RATE, (0.8,))),
            ),
            Contrast(
                "pretraining ability along fine-tuning, none minus all texts correlated, all priors",
                "above",
                0.0,
                along_training(
                    "pt", ([*LOW, *MEDIUM, *HIGH], EVERY_RATE, (0.0,)), ([*LOW, *MEDIUM, *HIGH], EVERY_RATE, (1.0,))
                ),
            ),
        ),
    ),
    Claim(
        "pruning",
        "With a low prior, removing a few neurons brings the pretraining ability back while the trained one falls; at "
        "larger rates only where all texts were correlated.",
        (
            Contrast(
                "share of the loss that pruning recovers, small rate, all texts correlated",
                "above",
                RECOVERED,
                mean_of("recovered", LOW, ("small",), (1.0,), analysis="pruning"),
            ),
            Contrast(
                "gain over random neurons there", "above", 0.0, mean_of("gain", LOW, ("small",), (1.0,), analysis="pruning")
            ),
            Contrast(
                "fall of the trained ability (correlated texts) by pruning there",
                "above",
                ROOM,
                difference("pruning", "unpruned_ft_correlated", "pruned_ft_correlated", LOW, ("small",), (1.0,)),
            ),
            Contrast(
                "share of the loss that pruning recovers, larger rates, all texts correlated",
                "above",
                RECOVERED,
                mean_of("recovered", LOW, ("large", "medium"), (1.0,), analysis="pruning"),
            ),
            Contrast(
                "the same where fewer texts were correlated",
                "below",
                RECOVERED,
                mean_of("recovered", LOW, ("large", "medium"), (0.0, 0.5, 0.8), analysis="pruning"),
            ),
        ),
        "At the large rate, here a third of the pretraining rate, less comes back than at the medium one, so that the mean of "
        "both lies near the threshold and the default seeds on either side of it.",
        "Removing neurons always beats random ones, but a quarter of the loss is about all that comes back at the small rate, and "
        "less at the larger ones: an index is found by attention, and what covers it does not sit in a few neurons alone.",
    ),
    Claim(
        "probing",
        "The pretraining answer stays linearly readable in most cells, and is destroyed at the large rate with a low prior.",
        (
            Contrast("share of cells probed within .10 of their base", "above", 0.5, kept_readable),
            Contrast(
                "probe of the tuned minus the base model, large rate, low prior, no text correlated",
                "below",
                -ROOM,
                difference("probing", "tuned_probe", "base_probe", LOW, ("large",), (0.0,)),
            ),
        ),
        "A probe reads the count from any trained model of this size, from one that was never asked for it nearly as well: "
        "that it is readable shows nothing here, and fine-tuning at the large rate leaves it as readable.",
    ),
    Claim(
        "revival",
        "Reverse fine-tuning brings the ability back in few steps: far fewer than a model needs that never had it, fewer "
        "with a high than with a low prior, and with a low prior fewer after training on correlated texts.",
        (
            Contrast(
                "steps against a model that never had it, low prior, all texts correlated",
                "below",
                MASKED,
                mean_of("ratio", LOW, EVERY_RATE, (1.0,), analysis="revival", pool="geometric"),
            ),
            Contrast(
                "steps, high against low prior, all texts correlated",
                "below",
                1.0,
                steps_ratio((HIGH, EVERY_RATE, (1.0,)), (LOW, EVERY_RATE, (1.0,))),
            ),
            Contrast(
                "steps, all against no texts correlated, low prior",
                "below",
                1.0,
                steps_ratio((LOW, EVERY_RATE, (1.0,)), (LOW, EVERY_RATE, (0.0,))),
            ),
        ),
        explanation_indexing="With the high prior the base itself answers .95 and .96: arriving at .95 means arriving at its ceiling. "
        "With the medium prior, where the base is at 1.00, revival is faster than with the low one. The model that never had the "
        "ability does not arrive within the budget, so that ratios to it are at most what is printed.",
    ),
)


def outcome(found: Contrasted, side: str, threshold: float) -> Agreement:
    """Whether a number lies on the predicted side of its threshold, its whole interval considered; never under one seed."""
    above, below = found.interval.low > threshold, found.interval.high < threshold
    if not (above or below) or len(found.by_seed) < 2:
        return "unclear"
    return "yes" if above == (side == "above") else "no"


def agreement(outcomes: Sequence[Agreement]) -> Agreement:
    """A claim's from its contrasts'."""
    kinds = set(outcomes)
    if len(kinds) == 1:
        return kinds.pop()
    if not kinds:
        return "not measured"
    return "partly" if "yes" in kinds else "unclear"


def _measured(contrast: Contrast, grid: Grid) -> dict[str, Any]:
    """The columns of a contrast that was tried; `why` says what kept it, or some of its seeds, from being measured."""
    try:
        found = contrast.of(grid)
    except UserError as error:
        found = Contrasted(Interval(math.nan, math.nan, math.nan), 0, (), (str(error),))
    value, low, high = found.interval.value, found.interval.low, found.interval.high
    why = " ".join(found.left_out)
    if found.by_seed and not math.isfinite(value):
        why = "not defined in one of the cells, as a share of a loss is where nothing is lost"
    agrees = outcome(found, contrast.side, contrast.threshold) if math.isfinite(value) else "not measured"
    return {
        "value": value,
        "low": low,
        "high": high,
        "n": found.n,
        "seeds": len(found.by_seed),
        "by_seed": ", ".join(f"{one:.2f}" for one in found.by_seed),
        "agrees": agrees,
        "why": why,
    }


def judge(grid: Grid, claims: Sequence[Claim] = CLAIMS) -> Result:
    """Every claim against a grid study; the tables `claims` (a row each) and `table` (a row per contrast)."""
    rows: list[dict[str, Any]] = []
    summary: list[dict[str, object]] = []
    for claim in claims:
        found: list[dict[str, Any]] = [
            {
                "claim": claim.name,
                "measured": contrast.says,
                "predicted": f"{contrast.side} {contrast.threshold:.2f}",
                **_measured(contrast, grid),
            }
            for contrast in claim.contrasts
        ]
        whole = agreement([row["agrees"] for row in found])
        why = claim.explanation_indexing if grid.study.name.startswith("grid_indexing") else claim.explanation
        explained = "" if whole in ("yes", "not measured") else why
        summary.append({"claim": claim.name, "says": claim.says, "agrees": whole, "explanation": explained})
        rows += found
    metrics = tuple(
        Metric(f"{r['claim']}: {r['measured']}", r["value"], r["low"], r["high"], r["n"], seeds=r["seeds"]) for r in rows
    )
    limits = (
        "Thresholds were declared before looking; a number whose interval crosses its threshold is unclear, and so is one of "
        "a single seed.",
        "Which numbers stand for the claims on pruning and probing was made stricter once after a first look.",
        *few_seeds(max((row["seeds"] for row in rows), default=0)),
        "The interval along fine-tuning is that over seeds alone, not over examples.",
        "An arm that did not arrive counts with the steps of its whole budget.",
    )
    tables = {"table": pd.DataFrame(rows), "claims": pd.DataFrame(summary)}
    seeds = sorted({seed for analysis in ("behaviour", "pruning", "probing", "revival") for seed in grid.seeds(analysis)})
    provenance = {"study": grid.study.name, "scale": grid.scale, "seeds": seeds}
    return Result("claims", tables, metrics, limits=limits, provenance=provenance)
