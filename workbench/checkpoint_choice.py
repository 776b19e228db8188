"""Which checkpoints of a training an analysis looks at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workbench.errors import UserError
from workbench.run_records import Checkpoint
from workbench.subjects import Trajectory
from workbench.training.schedule import evaluation_grid


def checkpoints(training: Trajectory, points: int, steps: Sequence[int], who: str) -> Sequence[Checkpoint]:
    """The checkpoints to look at, in order: `points` of the planned grid, spread evenly, or exactly `steps` where there are any.

    They are chosen from the planned grid, not from what was kept, so that seeds that stopped early share the others' steps.

    Raises:
        UserError: fewer than two are there, or a step that was asked for is not; `who` asks.
    """
    run = training.run
    kept = {c.step: c for c in run.checkpoints}
    if len(kept) < 2:
        raise UserError(
            f"{who}: {run.stage} kept {len(kept)} checkpoint; run the study with evaluation.keep = all, under another name or store."
        )
    if steps:
        missing = [step for step in steps if step not in kept]
        if missing:
            raise UserError(f"{who}: {run.stage} has no checkpoint at step {missing[0]}; it has {', '.join(map(str, kept))}.")
        return [kept[step] for step in sorted(set(steps))]
    grid = evaluation_grid(int(run.spec["training"]["steps"]))
    wanted = {grid[i] for i in np.linspace(0, len(grid) - 1, min(points, len(grid))).round().astype(int)}
    return [c for step, c in kept.items() if step in wanted or step == max(kept)]
