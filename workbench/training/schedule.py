"""Learning rate over steps, and the grid of steps on which a run is evaluated and saved."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Schedule(BaseModel):
    """A linear warm-up and a cosine to a floor, or a constant rate.

    With a constant rate the first k steps are the same whatever the budget is, so that "steps to 95 %" is a property
    of the model alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["cosine", "constant"] = "cosine"
    warmup: float = Field(default=0.1, ge=0, le=1, description="share of the steps; cosine only")
    floor: float = Field(default=0.01, ge=0, le=1, description="last rate as a share of the peak; cosine only")

    def factor(self, step: int, steps: int) -> float:
        """Learning rate of the update number `step` (0-based) as a share of the peak."""
        if self.kind == "constant":
            return 1.0
        warm = round(self.warmup * steps)
        if step < warm:
            return (step + 1) / warm
        progress = (step - warm) / max(1, steps - 1 - warm)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def evaluation_grid(steps: int) -> tuple[int, ...]:
    """Steps 0, 5, then growing by a factor of sqrt 2, and the last step: revival happens within 25-140 steps."""
    grid = {0, steps}
    point = 5.0
    while round(point) < steps:
        grid.add(round(point))
        point *= math.sqrt(2)
    return tuple(sorted(grid))
