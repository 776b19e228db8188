"""How cheaply a lost ability comes back by reverse fine-tuning, against models that never had it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from workbench.analysis import Settings, analysis
from workbench.errors import UserError
from workbench.measures import DRAWS, derived, proportion, proportion_row
from workbench.results import Direction, Evidence, Metric, Result
from workbench.statistics import Crossing, bootstrap_crossings, ratio, ratio_draws, steps_to
from workbench.subjects import Pair, Trajectory
from workbench.verdict import ERASED, MASKED, REVIVED_AT, ROOM

REVIVED, NEVER, IRRELEVANT = "revived", "never_had_it", "irrelevant"


class RevivalSettings(Settings):
    """Settings of `revival`: none, since its threshold is declared for all studies in `workbench.verdict`."""


@dataclass(frozen=True)
class Arm:
    """One reverse fine-tuning: `correct [s, n]` at each `steps [s]` of the evaluation grid."""

    name: str
    steps: np.ndarray
    correct: np.ndarray
    batch_size: int

    @property
    def crossing(self) -> Crossing:
        """Steps to `REVIVED_AT`, interpolated on the grid; a lower bound where the arm never gets there."""
        # Rounded as in the bootstrap: exactly .95 must not miss .95 by a bit.
        return steps_to(self.steps, np.round(self.correct.mean(axis=1), 12), REVIVED_AT)

    def crossings(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The same on resampled examples: steps `[draws]`, and where they are censored."""
        return bootstrap_crossings(self.steps, self.correct, REVIVED_AT, DRAWS, seed)

    @property
    def resolved(self) -> float:
        """The first step above 0 of the grid: nothing is resolved below it."""
        return float(self.steps[self.steps > 0].min(initial=math.inf)) if (self.steps > 0).any() else 1.0


@analysis(version=1, paper="Jain+23 §5, §E.4", needs=("arms",))
def revival(pair: Pair, settings: RevivalSettings) -> Result:
    """Training steps and examples until O_PT is back at 95 %, for each arm [Jain+23 Fig 9, 26-29, 76-78, Tab 4].

    Arms: `revived` is the tuned model on O_PT data; `never_had_it` the same training of a model pretrained alike but never
    asked for O_PT; `scratch` of random weights; `irrelevant` is the tuned model on other families' data. All are measured on
    the same test texts at C_Te = 0 at every step of the evaluation grid.

    Estimand: steps until the accuracy reaches 95 % and the next point of the grid confirms it, interpolated between the
    grid's points on the scale log(1 + step). An arm that never arrives is censored: its number is a lower bound, and
    nothing is extrapolated. An arm that was stopped at its ceiling simply ends. Examples = steps * batch size.
    `ratio` = examples of `revived` / examples of `never_had_it` (that of the steps at equal batch sizes), `upper` where only
    the control never arrived; seeds are averaged on the log scale. Draws resample the same examples in all arms, so the
    interval of one seed covers the test set, not the run.

    Arms at other rates are called `ARM@RATE`, and their ratio `ratio@RATE`; the verdict rests on the main rate alone.

    Does not show what happens at a rate that was not run: a high enough one teaches anew instead of reviving.
    """
    del settings
    arms = {name: _arm(name, pair.capability, trajectory) for name, trajectory in pair.arms.items()}
    rows = [
        {"arm": arm.name, "step": int(step), **proportion_row(right)}
        for arm in arms.values()
        for step, right in zip(arm.steps, arm.correct, strict=True)
    ]
    steps = {name: _steps_metric(arm, pair.seed) for name, arm in arms.items()}
    columns = ["arm", "value", "low", "high", "n", "unit", "bound"]
    table = [
        {"arm": name, "value": m.value * f, "low": m.low * f, "high": m.high * f, "n": m.n, "unit": unit, "bound": m.bound}
        for name, m in steps.items()
        for unit, f in (("steps", 1), ("examples", arms[name].batch_size))
    ]
    result = Result(
        name="revival",
        tables={
            "table": pd.DataFrame(rows, columns=["arm", "step", "value", "low", "high", "n", "unit"]),
            "steps": pd.DataFrame(table, columns=columns),
        },
        headline=(
            *steps.values(),
            *(proportion(f"start_{name}", arm.correct[0], pair.seed) for name, arm in arms.items()),
            *_comparison(arms, steps, pair.seed),
        ),
        limits=(
            "The answer holds for this learning rate and data; a rate that is too high teaches anew instead of reviving.",
            "The interval of one seed covers the choice of test examples, not that of the training run.",
            *([] if NEVER in arms else ["There is no arm that never had the ability, so that no ratio can be given."]),
        ),
        provenance={"capability": pair.capability, "tuned_on": pair.tuned_on},
    )
    return replace(result, evidence=evidence(result))


def _arm(name: str, capability: str, trajectory: Trajectory) -> Arm:
    measured = trajectory.evaluations
    mine = measured[(measured["capability"] == capability) & (measured["share"].isna() | (measured["share"] == 0))]
    if mine.empty:
        raise UserError(f"arm {name!r} was not measured on {capability!r} at C_Te = 0; run the study again to remake it.")
    steps = np.asarray(mine["step"], dtype=np.float64)
    correct = np.stack([np.asarray(values, dtype=np.float64) for values in mine["values"]])
    order = np.argsort(steps)
    return Arm(name, steps[order], correct[order], int(trajectory.run.spec["training"]["batch_size"]))


def _steps_metric(arm: Arm, seed: int) -> Metric:
    found = arm.crossing
    draws, _ = arm.crossings(seed)
    return replace(derived(f"steps_{arm.name}", found.value, draws, arm.correct.shape[1], "steps"), bound=found.bound)


def _comparison(arms: dict[str, Arm], steps: dict[str, Metric], seed: int) -> list[Metric]:
    if REVIVED not in arms:
        return []
    arm, taken = arms[REVIVED], steps[REVIVED]
    size = arm.batch_size
    out: list[Metric] = [
        replace(
            taken,
            metric="examples_revived",
            value=taken.value * size,
            low=taken.low * size,
            high=taken.high * size,
            unit="examples",
            draws=tuple(round(d * size, 6) for d in taken.draws),
        )
    ]
    for at in dict.fromkeys(name.removeprefix(REVIVED) for name in arms if name.partition("@")[0] == REVIVED):
        if NEVER + at in arms:
            out.append(_ratio(f"ratio{at}", arms[REVIVED + at], arms[NEVER + at], seed))
    return out


def _ratio(name: str, arm: Arm, never: Arm, seed: int) -> Metric:
    """Examples that `arm` takes for every one that the model which never had the ability takes."""
    size = arm.batch_size
    floor = size * arm.resolved
    value, bound = ratio(_scaled(arm.crossing, size), _scaled(never.crossing, never.batch_size), floor)
    (a, a_late), (b, b_late) = arm.crossings(seed), never.crossings(seed)
    draws, _ = ratio_draws((a * size, a_late), (b * never.batch_size, b_late), floor)
    return replace(derived(name, value, draws, arm.correct.shape[1], "ratio"), bound=bound, pool="geometric")


def _scaled(crossing: Crossing, factor: float) -> Crossing:
    return replace(crossing, value=crossing.value * factor)


def evidence(result: Result) -> tuple[Evidence, ...]:
    """The line that decides: the ratio to the model that never had it, and whether irrelevant training does it as well."""
    found = {m.metric: m for m in result.headline}
    name = result.provenance.get("capability", "O_PT")

    def line(metric: Metric, direction: Direction, text: str) -> Evidence:
        return Evidence(
            "revival", metric.metric, metric.value, metric.low, metric.high, metric.n, direction, text, name, metric.bound
        )

    lines = [line(*_ratio_line(found, name))]
    other = found.get(f"steps_{IRRELEVANT}")
    if other is not None and other.bound == "exact" and found[f"start_{IRRELEVANT}"].value <= REVIVED_AT - ROOM:
        text = f"Training on another family brings {name} back too, in {other.value:.0f} steps: any training may revive it."
        lines.append(line(other, "neutral", text))
    return tuple(lines)


def _ratio_line(found: dict[str, Metric], name: str) -> tuple[Metric, Direction, str]:
    missing = [arm for arm in (REVIVED, NEVER) if f"steps_{arm}" not in found]
    if missing:
        there = next((m for m in found.values()), Metric("ratio", math.nan, math.nan, math.nan, 0, "ratio", "undefined"))
        return there, "uninformative", f"Without the arm {missing[0]!r} nothing says how cheap the revival of {name} is."
    compared, start, start_never = found["ratio"], found[f"start_{REVIVED}"], found[f"start_{NEVER}"]
    if start.value > REVIVED_AT - ROOM:
        text = f"The tuned model starts at {start.value:.2f} on {name}: there is next to nothing to revive."
        return start, "uninformative", text
    if start_never.value > REVIVED_AT - ROOM:
        text = f"The model that never had {name} starts at {start_never.value:.2f}: it is no control."
        return start_never, "uninformative", text
    steps, never = found[f"steps_{REVIVED}"], found[f"steps_{NEVER}"]
    if not math.isfinite(compared.value) or compared.bound == "undefined":
        text = f"Neither the tuned model nor the one that never had {name} reaches {REVIVED_AT:.0%} in every seed: no ratio."
        return compared, "uninformative", text
    most = {"upper": "at most ", "lower": "at least "}.get(compared.bound, "")
    needed, control = (("more than " if m.bound == "lower" else "") + f"{m.value:.0f}" for m in (steps, never))
    told = (
        f"{needed} steps to {REVIVED_AT:.0%} on {name}, {control} in a model that never had it: "
        f"{most}{compared.value:.2f} of the cost"
    )
    if compared.high <= MASKED and compared.bound != "lower":
        return compared, "masked", f"{told}; the ability was only covered."
    if compared.low >= ERASED and compared.bound != "upper":
        return compared, "erased", f"{told}; it is learned anew."
    if compared.low > MASKED and compared.high < ERASED and compared.bound == "exact":
        return compared, "neutral", f"{told}; between covered and gone."
    return compared, "neutral", f"{told}; the interval crosses a threshold."
