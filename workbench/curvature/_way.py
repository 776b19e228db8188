"""The models on the way of a pair's trainings, and the plane on which they are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from workbench.checkpoint_choice import checkpoints
from workbench.curvature.slices import Plane, Vectors, filters, principal, random_direction, spanned, vector_of, walk_shares
from workbench.errors import UserError
from workbench.models.checkpoints import load_model
from workbench.subjects import Pair

Kind = Literal["path", "models"]
POINTS_OF_A_PATH = 3
"""Checkpoints that a plane of their own needs."""


@dataclass(frozen=True)
class Stop:
    """A model on the way of the trainings."""

    training: str
    """`finetune` or `revived`; empty for a model whose training kept no checkpoint of it."""
    step: int
    model: str
    """`base`, `tuned`, `revived`, or empty."""
    vector: Float[Tensor, " n"]


def stops_of(pair: Pair, points: int) -> tuple[list[Stop], list[str]]:
    """Checkpoints of fine-tuning and revival in order, then the models that are none of them; and which training kept none."""
    found: list[Stop] = []
    limits: list[str] = []
    named = {name: vector_of(model).to(model.dtype) for name, model in pair.states.items()}
    trainings = {"finetune": pair.trajectory} | {name: arm for name, arm in pair.arms.items() if name == "revived"}
    for training, trajectory in trainings.items():
        if trajectory is None or len(trajectory.run.checkpoints) < 2:
            words = "fine-tuning" if training == "finetune" else "the revival"
            limits.append(f"No checkpoints of {words} were kept (evaluation.keep = all keeps them): its way is not drawn.")
            continue
        for checkpoint in checkpoints(trajectory, points, (), "landscape"):
            if training == "revived" and checkpoint.step == 0:
                continue  # the tuned model
            model = load_model(checkpoint.path, pair.base.device)
            vector = vector_of(model).to(model.dtype)
            name = next((name for name, known in named.items() if vector.equal(known)), "")
            found.append(Stop(training, checkpoint.step, "" if name in {stop.model for stop in found} else name, vector))
    there = {stop.model for stop in found}
    return [*found, *(Stop("", 0, name, vector) for name, vector in named.items() if name not in there)], limits


def plane_of(
    pair: Pair, stops: Sequence[Stop], wanted: Literal["auto", "path", "models"], vectors: Vectors
) -> tuple[Kind, Plane, pd.DataFrame | None, list[str]]:
    """The plane, its kind, the components of a path, and what had to be replaced."""
    limits: list[str] = []
    base = vector_of(pair.base)
    ways = {name: vector_of(model) - base for name, model in pair.states.items() if name != "base"}
    of = filters(pair.base)
    for index in (1, 2):
        ways[f"random {index}"] = random_direction(base, of, pair.seed, "plane", index, vectors=vectors)
    far = float(ways["tuned"].norm())
    unit = far if far > 0 else float(ways["random 1"].norm())
    if wanted != "models":
        path = [stop for stop in stops if stop.training]
        try:
            if len(path) < POINTS_OF_A_PATH:
                raise UserError(f"{len(path)} checkpoints were kept, and a plane of their own needs {POINTS_OF_A_PATH}.")
            plane, share = principal([stop.vector for stop in path], unit)
            return "path", plane, _components(path, share), limits
        except UserError as error:
            limits.append(f"The plane is the one through the models: {error}")
    plane, used = spanned(base, ways.values(), unit)
    names = [list(ways)[i] for i in used]
    random = sum(name.startswith("random") for name in names)
    if random:
        missing = "the tuned model is the base" if far == 0 else "there is no third model off the line from base to tuned"
        count = "one of the plane's directions is" if random == 1 else "both of the plane's directions are"
        limits.append(f"Since {missing}, {count} random and filter-normalised.")
    return "models", plane, None, limits


def _components(path: Sequence[Stop], share: Float[np.ndarray, " k"]) -> pd.DataFrame:
    steps = np.array([float((b.vector.double() - a.vector.double()).norm()) for a, b in pairwise(path)])
    rows: list[dict[str, Any]] = []
    for source, values in (("path", share), ("random walk", walk_shares(steps))):
        for index, value in enumerate(values[:-1].tolist(), start=1):  # k differences to one of k points have rank k - 1
            same = {"value": value, "low": value, "high": value, "n": len(path)}
            rows.append({"source": source, "component": index, **same, "unit": "share of squared distance"})
    return pd.DataFrame(rows)
