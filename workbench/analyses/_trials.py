"""Trials: one direction, put into or taken out of one model's residual stream, and what the model answers then."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from workbench.analyses._directions import unit
from workbench.examples import Examples
from workbench.measures import correct_answers
from workbench.models.steering import Edit, ablated, steered

OWN, RANDOM = "own", "random"
INTERVENTIONS = {"subtract": "tuned", "recentre": "tuned", "ablate": "tuned", "add": "base"}
"""What is done, and to which model."""


class Trial(NamedTuple):
    """One intervention on one model."""

    model: str
    intervention: str
    source: str
    """Whose direction it is."""
    draw: int
    """Which of several of that source, from 1; 0 where there is one."""
    point: int
    """Residual point where the direction was estimated."""
    scale: float


Vectors = Mapping[str, Sequence[Float[np.ndarray, "points d"]]]
"""Directions by source, one or several, at every residual point; NaN where undefined."""


class Bench:
    """Models, directions, and what the models answer with them."""

    def __init__(self, models: Mapping[str, PreTrainedModel], vectors: Vectors, base: Float[np.ndarray, "points d"]) -> None:
        self.models, self.vectors = models, vectors
        self.base = torch.from_numpy(base)

    def vector(self, trial: Trial) -> Tensor:
        return torch.from_numpy(self.vectors[trial.source][max(trial.draw - 1, 0)][trial.point])

    def edit(self, trial: Trial) -> Edit:
        """What the trial does to the stream where the answer is predicted."""
        vector = self.vector(trial)
        if trial.intervention != "recentre":
            step = trial.scale * (vector if trial.intervention == "add" else -vector)
            return {trial.point: lambda x: x + step.to(x)}
        u = torch.from_numpy(unit(vector.numpy()))

        def moved(target: Tensor) -> Callable[[Tensor], Tensor]:
            return lambda x: x + ((target.to(x) - x) @ u.to(x))[..., None] * u.to(x)

        return {point: moved(mean) for point, mean in enumerate(self.base)}

    def right(self, trials: Iterable[Trial], examples: Examples) -> dict[Trial, np.ndarray]:
        """Right answers `[n]` of every trial, in their order."""
        wanted, found = list(trials), dict[Trial, np.ndarray]()
        for name, model in self.models.items():
            mine = [t for t in wanted if t.model == name and t.intervention != "ablate"]
            answers = steered(model, examples, [self.edit(t) for t in mine]).double().numpy()
            found |= dict(zip(mine, answers, strict=True))
        done: dict[bytes, np.ndarray] = {}
        for trial in wanted:
            if trial.intervention == "ablate":
                u = unit(self.vector(trial).numpy())
                key = np.round(u, 12).tobytes()  # a random direction is the same at every point
                if key not in done:
                    with ablated(self.models[trial.model], torch.from_numpy(u)):
                        done[key] = correct_answers(self.models[trial.model], examples)
                found[trial] = done[key]
        return {trial: found[trial] for trial in wanted}


Chosen = Mapping[tuple[str, str], Trial]
"""The trial at the chosen point, by model and intervention."""


def choose(right: Mapping[Trial, np.ndarray]) -> dict[tuple[str, str], Trial]:
    """Of every intervention the point that does most: brings O_PT back, or for `add` takes it; the first on a tie."""
    best: dict[tuple[str, str], Trial] = {}
    for trial, values in right.items():
        sign = -1 if trial.intervention == "add" else 1
        key = trial.model, trial.intervention
        if key not in best or sign * values.mean() > sign * right[best[key]].mean():
            best[key] = trial
    return best
