"""The headline numbers of another analysis at the checkpoints of a training, in order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, cast

import pandas as pd
from pydantic import Field

from workbench.analysis import Analysis, Settings, analysis
from workbench.checkpoint_choice import checkpoints
from workbench.errors import UserError
from workbench.registry import analyses
from workbench.results import Evidence, Result
from workbench.subjects import Pair, Question, Trajectory

Training = Literal["finetune", "revived", "never_had_it", "scratch", "irrelevant"]
ENDS = ("first", "last")
REFUSED = ("along", "revival")
"""This one, and the one that is a course of training itself."""


class AlongSettings(Settings):
    """Settings of `along`."""

    follow: str = Field("behaviour", description="name of the analysis whose headline is followed")
    settings: dict[str, Any] = Field(default_factory=dict[str, Any], description="its settings")
    of: Training = Field("finetune", description="the training: fine-tuning, or an arm of the revival")
    points: int = Field(8, ge=2, description="checkpoints, spread evenly over those of the evaluation grid")
    steps: tuple[int, ...] = Field((), description="exactly these steps; overrides points")


def _inner(settings: AlongSettings) -> Analysis[Any]:
    """The analysis that is followed.

    Raises:
        UserError: there is none of this name, or it cannot be followed.
    """
    if settings.follow in REFUSED:
        raise UserError(f"along: {settings.follow!r} is a course of training already; name another analysis.")
    return cast("Analysis[Any]", analyses[settings.follow].load())


def _fits(settings: AlongSettings, question: Question, blocks: int) -> None:
    _inner(settings).check(settings.settings, question, blocks)


@analysis(version=1, uses=("revived", "never_had_it", "scratch", "irrelevant"), passes=480, check=_fits)
def along(pair: Pair, settings: AlongSettings) -> Result:
    """Another analysis with each checkpoint of a training in the place of the tuned model.

    `table`: one row per step and headline number, with the interval, n and unit that the analysis gives it. The base and the
    controls stay what they are. The headline has every number at the first and the last checkpoint.

    Does not show when something happened more finely than the checkpoints lie apart.

    Raises:
        UserError: no such analysis, no such arm, fewer than two checkpoints kept, or a step that has none.
    """
    inner = _inner(settings)
    rows: list[dict[str, Any]] = []
    found: list[Result] = []
    chosen = checkpoints(_training(pair, settings.of), settings.points, settings.steps, "along")
    for checkpoint in chosen:
        result = inner(replace(pair, tuned_path=checkpoint.path), **settings.settings)
        found.append(result)
        rows += [
            {"step": checkpoint.step, "metric": m.metric, "unit": m.unit, "bound": m.bound}
            | {"value": m.value, "low": m.low, "high": m.high, "n": m.n, "seed": pair.seed}
            for m in result.headline
        ]
    first, last = (
        [replace(m, metric=f"{end}_{m.metric}") for m in result.headline]
        for end, result in zip(ENDS, (found[0], found[-1]), strict=True)
    )
    return Result(
        name="along",
        tables={"table": pd.DataFrame(rows)},
        headline=(*first, *last),
        limits=(
            f"{len(chosen)} checkpoints: what happens between two of them is not seen.",
            *dict.fromkeys(limit for result in found for limit in result.limits),
        ),
        provenance={"capability": pair.capability, "tuned_on": pair.tuned_on, "followed": settings.follow, "of": settings.of},
    )


def _training(pair: Pair, of: Training) -> Trajectory:
    found = pair.trajectory if of == "finetune" else pair.arms.get(of)
    if found is None:
        there = [*(["finetune"] if pair.trajectory else []), *pair.arms]
        has = f"it has {', '.join(there)}" if there else "its models come without the trainings that made them"
        raise UserError(f"along: pair {pair.name!r} has no training {of!r}; {has}.")
    return found


def evidence(result: Result) -> tuple[Evidence, ...]:
    """None: what a finished model shows is said by the analysis itself."""
    del result
    return ()
