"""How cheaply a lost ability comes back by reverse fine-tuning, against models that never had it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from workbench.analysis import Settings, analysis
from workbench.errors import UserError
from workbench.measures import DRAWS, certain, correct_answers, derived, floors, proportion, proportion_row
from workbench.replicates import combine_bounds
from workbench.results import Direction, Evidence, Metric, Result
from workbench.statistics import Bound, Crossing, bootstrap_crossings, ratio, ratio_draws, steps_to
from workbench.subjects import Pair, Trajectory
from workbench.verdict import REVIVED_AT, ROOM, goal_between, goal_of, judge_revival

GIVEN = "A prompt does not determine its answer, so the goal is 95 % of the way from chance to the base's accuracy, both taken as known."
TAIL = 0.025
"""Share of draws beyond either end of a 95 % interval."""
REVIVED, NEVER = "revived", "never_had_it"
UNSHOWN = {
    "irrelevant": "Training on other families, which never shows {}, brings it back too, in {} steps: it cannot have been taught "
    "by them.",
    "unrelated": "Training on random strings, which never shows {}, brings it back too, in {} steps: it cannot have been taught "
    "by them.",
    "other_operands": "Training on the other operands of its family, which never shows {} itself, brings it back too, in {} steps.",
}
"""Arms of the tuned model whose data never show O_PT, and what it means when one of them brings it back."""


class RevivalSettings(Settings):
    """Settings of `revival`: none, since its threshold is declared for all studies in `workbench.verdict`."""


@dataclass(frozen=True)
class Arm:
    """One reverse fine-tuning: `correct [s, n]` at each `steps [s]` of the evaluation grid."""

    name: str
    steps: np.ndarray
    correct: np.ndarray
    batch_size: int
    goal: float = REVIVED_AT
    """Accuracy that counts as revived."""

    @property
    def crossing(self) -> Crossing:
        """Steps to the goal, interpolated on the grid; a lower bound where the arm never gets there."""
        # Rounded as in the bootstrap: exactly .95 must not miss .95 by a bit.
        return steps_to(self.steps, np.round(self.correct.mean(axis=1), 12), self.goal)

    def crossings(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The same on resampled examples: steps `[draws]`, and where they are censored."""
        return bootstrap_crossings(self.steps, self.correct, self.goal, DRAWS, seed)

    @property
    def resolved(self) -> float:
        """The first step above 0 of the grid: nothing is resolved below it."""
        return float(self.steps[self.steps > 0].min(initial=math.inf)) if (self.steps > 0).any() else 1.0


@analysis(version=2, holds=300, passes=1, paper="Jain+23 §5, §E.4", needs=("arms",))
def revival(pair: Pair, settings: RevivalSettings) -> Result:
    """Training steps and examples until O_PT is back at 95 %, for each arm [Jain+23 Fig 9, 26-29, 76-78, Tab 4].

    Arms: `revived` is the tuned model on O_PT data; `never_had_it` the same training of a model pretrained alike but never
    asked for O_PT; `scratch` of random weights; `irrelevant` is the tuned model on other families' data,
    `other_operands` on the other operands of its family, `unrelated` on random strings. All are measured on the same test
    texts at C_Te = 0 at every step of the evaluation grid.

    Estimand: steps until the accuracy reaches 95 % and the next point of the grid confirms it, interpolated between the
    grid's points on the scale log(1 + step). An arm that never arrives is censored: its number is a lower bound, and
    nothing is extrapolated. So is one that arrives at the last step of its budget alone, where nothing confirms it. An arm
    that was stopped at its ceiling simply ends. Examples = steps * batch size.

    `ratio` = examples of `revived` / examples of `never_had_it` (that of the steps at equal batch sizes), `upper` where only
    the control never arrived, in fact or in more than 2.5 % of the draws; seeds are averaged on the log scale. Draws resample
    the same examples in all arms, so the interval of one seed covers the test set, not the run.

    Arms at other rates are called `ARM@RATE`, and their ratio `ratio@RATE`; the verdict rests on the main rate alone.

    Does not show what happens at a rate that was not run: a high enough one teaches anew instead of reviving.
    """
    del settings
    arms = {name: _arm(name, pair.capability, trajectory) for name, trajectory in pair.arms.items()}
    goal: list[Metric] = []
    if not pair.determined and arms:
        n = next(iter(arms.values())).correct.shape[1]
        examples = pair.examples(pair.capability, n=n)
        chance = max(floors(pair, examples).values(), default=0.0)
        base = float(correct_answers(pair.base, examples).mean())
        goal = [certain("goal", goal_between(chance, base), n, "accuracy")]
        arms = {name: replace(arm, goal=goal[0].value) for name, arm in arms.items()}
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
            *goal,
            *steps.values(),
            *(proportion(f"start_{name}", arm.correct[0], pair.seed) for name, arm in arms.items()),
            *_comparison(arms, steps, pair.seed),
        ),
        limits=(
            "The answer holds for this learning rate and data; a rate that is too high teaches anew instead of reviving.",
            "The interval of one seed covers the choice of test examples, not that of the training run.",
            *([GIVEN] if goal else []),
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
    draws, late = arm.crossings(seed)
    bound: Bound = "lower" if late.mean() > TAIL else found.bound
    return replace(derived(f"steps_{arm.name}", found.value, draws, arm.correct.shape[1], "steps"), bound=bound)


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
    draws, bounds = ratio_draws((a * size, a_late), (b * never.batch_size, b_late), floor)
    metric = derived(name, value, draws, arm.correct.shape[1], "ratio")
    return replace(metric, bound=combine_bounds([bound, *_common(bounds)]), pool="geometric")


def _common(bounds: np.ndarray) -> list[Bound]:
    """Bounds that so many draws are that the interval does not end where its percentiles say."""
    kinds: tuple[Bound, ...] = ("lower", "upper", "undefined")
    return [kind for kind in kinds if float((bounds == kind).mean()) > TAIL]


def _scaled(crossing: Crossing, factor: float) -> Crossing:
    return replace(crossing, value=crossing.value * factor)


def evidence(result: Result) -> tuple[Evidence, ...]:
    """The line that decides, as the verdict reads it, and whether irrelevant training brings the ability back too."""
    found = {m.metric: m for m in result.headline}
    name = result.provenance.get("capability", "O_PT")
    judged, (goal, said) = judge_revival(result), goal_of(result)
    shown = judged.metric or next(iter(found.values()), Metric("ratio", math.nan, math.nan, math.nan, 0, "ratio", "undefined"))

    def line(metric: Metric, direction: Direction, text: str) -> Evidence:
        return Evidence(
            "revival", metric.metric, metric.value, metric.low, metric.high, metric.n, direction, text, name, metric.bound
        )

    steps = [_taken(found[f"steps_{arm}"], words) for arm, words in _SAID.items() if f"steps_{arm}" in found]
    told = f"Steps to {said} on {name}: {', '.join(steps) or 'not measured'}; {judged.how}"
    ends: dict[str, str] = {"masked": "; the ability was only covered", "erased": "; it is learned anew"}
    direction: Direction = judged.verdict if judged.verdict in ("masked", "erased") else "neutral"
    lines = [line(shown, direction if judged.informative else "uninformative", f"{told}{ends.get(judged.verdict, '')}.")]
    for arm, said in UNSHOWN.items():
        other = found.get(f"steps_{arm}")
        if other is not None and other.bound == "exact" and found[f"start_{arm}"].value <= goal - ROOM:
            # The other operands show how to count; that they bring this one back is no proof that it was there.
            lines.append(
                line(other, "neutral" if arm == "other_operands" else "masked", said.format(name, f"{other.value:.0f}"))
            )
    return tuple(lines)


_SAID = {
    "revived": "{} for the tuned model",
    "never_had_it": "{} for one that never had it",
    "scratch": "{} from random weights",
}


def _taken(steps: Metric, words: str) -> str:
    return words.format(f"{'more than ' if steps.bound == 'lower' else ''}{steps.value:.0f}")
