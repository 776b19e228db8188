"""The largest eigenvalue at the checkpoints of trainings, each search warm-started from the last eigenvector."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor
from transformers import PreTrainedModel

from workbench.checkpoint_choice import checkpoints
from workbench.curvature._sharp_directions import SharpDirections
from workbench.curvature.lanczos import extreme_pairs
from workbench.curvature.operators import hessian
from workbench.models.build import random_twin
from workbench.models.checkpoints import load_model
from workbench.models.weight_paths import put, random_step, weights_of
from workbench.seeds import torch_generator
from workbench.subjects import Pair, Trajectory

COLUMNS = ("training", "step", "draw", "role", "capability", "batch", "sets", "measure", "value", "low", "high", "n", "unit")


@dataclass(frozen=True)
class Stop:
    """A model on the way."""

    training: str
    """`finetune`, an arm, or `random`: the start after a random step as long as fine-tuning in every parameter."""
    step: int
    draw: int
    model: PreTrainedModel


def trainings(pair: Pair) -> dict[str, Trajectory]:
    """Fine-tuning and the two reverse fine-tunings, where at least two checkpoints of them were kept."""
    found = {"finetune": pair.trajectory, "revived": pair.arms.get("revived"), "never_had_it": pair.arms.get("never_had_it")}
    return {name: t for name, t in found.items() if t is not None and len(t.run.checkpoints) > 1}


def path(sharp: SharpDirections, points: int) -> pd.DataFrame:
    """`sharpness`, its `residual` and the `loss` of both abilities at every stop, on the first set of examples alone.

    One fixed set, so that steps can be compared; these numbers have no interval, `low` and `high` repeat the value.
    """
    rows: list[dict[str, Any]] = []
    warm: dict[tuple[str, str], Tensor] = {}
    for stop in _stops(sharp, points):
        for role in sharp.examples.sets:
            loss = sharp.objective(stop.model, role)
            # Random steps set out from where fine-tuning does, whose vectors are no worse a start than any.
            start = warm.get((stop.training, role))
            pairs = extreme_pairs(hessian(loss), 1, tolerance=sharp.tolerance, seed=sharp.pair.seed, start=start)
            if stop.training != "random":
                warm[stop.training, role] = pairs.vectors
            if (stop.training, stop.step) == ("finetune", 0):
                warm["random", role] = pairs.vectors
            at = {"training": stop.training, "step": stop.step, "draw": stop.draw, **sharp.examples.at(role), "sets": 1}
            for measure, value, unit in (
                ("sharpness", float(pairs.values[0]), "nats per squared weight"),
                ("residual", float(pairs.residuals[0]), "nats per squared weight"),
                ("loss", loss.loss(), "nats"),
            ):
                same = {"value": value, "low": value, "high": value, "n": sharp.examples.batch, "unit": unit}
                rows.append({**at, "measure": measure, **same})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _stops(sharp: SharpDirections, points: int) -> Iterator[Stop]:
    pair = sharp.pair
    kept = trainings(pair)
    for name, training in kept.items():
        for checkpoint in checkpoints(training, points, (), "tuning_curvature"):
            yield Stop(name, checkpoint.step, 0, load_model(checkpoint.path, pair.base.device))
    if "finetune" in kept:
        last = kept["finetune"].run.checkpoints[-1].step
        work = random_twin(pair.start, pair.seed)
        for draw in range(1, sharp.random_draws + 1):
            generator = torch_generator(pair.seed, "random end", draw)
            put(work, random_step(weights_of(pair.start), weights_of(pair.tuned), generator))
            yield Stop("random", last, draw, work)


def highest(table: pd.DataFrame, training: str, role: str) -> float:
    """The largest sharpness on a way."""
    wanted = (table["training"] == training) & (table["role"] == role) & (table["measure"] == "sharpness")
    return float(np.max(np.asarray(table["value"], dtype=float)[np.asarray(wanted)]))
