"""Writing along a training: how soon an ability leaves a model's own texts, and how soon it comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
from pydantic import Field

from workbench.analyses._texts import Desk, TextSettings, check_room
from workbench.analysis import analysis
from workbench.checkpoint_choice import checkpoints
from workbench.models.checkpoints import load_model, pick_device
from workbench.protocols import WritingTask
from workbench.results import Evidence, Metric, Result
from workbench.subjects import Pair, Question, Trajectory

FINETUNE = "finetune"
ARMS = ("revived", "never_had_it")
"""Reverse fine-tunings that are followed: of the tuned model, and the same of a model that never had the ability."""


class WritingCurveSettings(TextSettings):
    """Settings of `writing_curve`."""

    points: int = Field(6, ge=2, description="checkpoints of each training, spread evenly over those of the evaluation grid")
    steps: tuple[int, ...] = Field((), description="exactly these steps of each training; overrides points")


def _check(settings: WritingCurveSettings, question: Question, blocks: int) -> None:
    del blocks
    check_room(settings, question, "writing_curve")


@analysis(
    version=2,
    paper="Jain+23 2311.12786 Tab 1, Fig 11, 31-34",
    uses=("revived", "never_had_it"),
    passes=900,
    holds=500,
    n=200,
    group="evidence",
    check=_check,
)
def writing_curve(pair: Pair, settings: WritingCurveSettings) -> Result:
    """Share of written texts that show O_PT, and loss on real ones, at checkpoints of fine-tuning and of reverse fine-tuning.

    `table`: a row per training and step with the share of texts, `loss`: the same per kind of real text in nats per token, as
    in `writing`. Trainings: `finetune`; `revived`, the reverse fine-tuning of its result; `never_had_it`, the same training of
    a model that never had the ability, which begins at the lower bound. `bounds`: the base (upper) and how the real texts go on.

    Does not show what happens between checkpoints.

    Raises:
        UserError: checkpoints were not kept, or a step that was asked for is not there.
    """
    _check(settings, pair, 0)
    task = pair.task
    assert isinstance(task, WritingTask)
    desk = Desk(task, pair.capability, settings, pair.seed)
    rows: list[dict[str, Any]] = []
    losses: list[dict[str, Any]] = []
    headline: list[Metric] = []
    for training, trajectory in _trainings(pair).items():
        chosen = checkpoints(trajectory, settings.points, settings.steps, "writing_curve")
        for checkpoint in chosen:
            model = load_model(checkpoint.path, pick_device(pair.device))
            share = desk.share(desk.write(model))
            where = {"training": training, "step": checkpoint.step}
            rows.append({**where, **share.row})
            losses += [{**where, **desk.loss_row(model, kind)} for kind in desk.kinds]
            for end, at in (("first", chosen[0]), ("last", chosen[-1])):
                if checkpoint is at:
                    headline.append(share.metric(f"{end}_{training}"))
    bounds = {
        "base": desk.share(desk.write(pair.base)),
        "real": desk.share(desk.openings.written),
    }
    result = Result(
        name="writing_curve",
        tables={
            "table": pd.DataFrame(rows),
            "loss": pd.DataFrame(losses),
            "bounds": pd.DataFrame([{"model": name, **share.row} for name, share in bounds.items()]),
            "bound_losses": pd.DataFrame([{"model": "base", **desk.loss_row(pair.base, kind)} for kind in desk.kinds]),
        },
        headline=(*headline, *(share.metric(f"writes_{name}") for name, share in bounds.items())),
        limits=(*desk.limits, "What happens between two checkpoints is not seen."),
        provenance={"capability": pair.capability, "tuned_on": pair.tuned_on},
    )
    return replace(result, evidence=evidence(result))


def _trainings(pair: Pair) -> Mapping[str, Trajectory]:
    """The trainings that there are, fine-tuning first."""
    found = {} if pair.trajectory is None else {FINETUNE: pair.trajectory}
    return found | {arm: pair.arms[arm] for arm in ARMS if arm in pair.arms}


def evidence(result: Result) -> tuple[Evidence, ...]:
    """None: `writing` says what the finished models write, and `revival` how fast the ability returns."""
    del result
    return ()
