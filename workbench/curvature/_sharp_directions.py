"""The sharpest directions of both abilities' losses at every model of a pair, and what fine-tuning's steps have to do with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from workbench.curvature._example_sets import ANY, POSITIVE, SHARE, Bounds, ExampleSets, row
from workbench.curvature.lanczos import Pairs, extreme_pairs
from workbench.curvature.maps import SymmetricMap, random_columns
from workbench.curvature.objective import Objective, of_model
from workbench.curvature.operators import hessian
from workbench.curvature.subspaces import curvature_along, overlap, random_overlap, random_share, share_inside
from workbench.models.checkpoints import load_model
from workbench.models.matrices import alike, check_alike
from workbench.models.weight_paths import random_step, weights_of
from workbench.seeds import torch_generator
from workbench.subjects import Pair

COMPARED = (("base", "tuned"), ("tuned", "revived"), ("base", "revived"), ("base", "never_had_it"))
STEPS = {"finetuning": ("start", "tuned"), "reviving": ("tuned", "revived"), "teaching": ("never_had_it", "taught")}
"""Steps of training; `teaching`, the control, is the same reverse fine-tuning of the model that never had the ability."""
ENDS = {"finetuning": ("base", "tuned"), "reviving": ("tuned", "revived"), "teaching": ("never_had_it",)}
"""Models at which a step is held against the curvature: where it begins and where it ends."""


@dataclass(frozen=True)
class Spot:
    """One model's curvature for one ability's loss on one set of examples."""

    model: str
    role: str
    part: int


@dataclass
class SharpDirections:
    """Models of one shape by name, and what was measured at each; only the bases of two sets are held at a time."""

    pair: Pair
    examples: ExampleSets
    k: int
    tolerance: float
    probes: int
    random_draws: int
    dtype: torch.dtype
    models: dict[str, PreTrainedModel] = field(default_factory=dict[str, PreTrainedModel])
    values: dict[Spot, Pairs] = field(default_factory=dict[Spot, Pairs])
    """Vectors of the latest set only."""
    numbers: dict[tuple[str, str, str], dict[str, list[float]]] = field(default_factory=dict[Any, Any])
    """By (model, role, direction or ""): measures, one number per set."""
    overlaps: dict[tuple[str, str, str], list[float]] = field(default_factory=dict[Any, Any])
    size: int = 0
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Find the models.

        Raises:
            UserError: base, start, tuned and revived model differ in shape; a control that does is left out.
        """
        pair = self.pair
        self.models = dict(pair.states)
        check_alike([*self.models.values(), pair.start], f"pair {pair.name!r}")
        never = pair.never_had_it
        if never is not None and alike((pair.base, never)):
            self.models["never_had_it"] = never
        elif never is not None:
            self.left_out = ("never_had_it",)
        ends = {**self.models, "start": pair.start}
        if "never_had_it" in self.models and "never_had_it" in pair.arms:
            ends["taught"] = load_model(pair.arms["never_had_it"].run.checkpoint().path, pair.base.device)
        self._steps = {name: (ends[a], ends[b]) for name, (a, b) in STEPS.items() if a in ends and b in ends}

    def measure(self) -> None:
        """Everything, set by set, so that models are compared on the same examples."""
        for part in range(self.examples.count):
            for model in self.models:
                self._at(model, part)
            for role in self.examples.sets:
                self._compare(role, part)
            for spot, pairs in self.values.items():
                if spot.part < part:
                    self.values[spot] = _without_vectors(pairs)

    def top(self, model: str, role: str, part: int = 0) -> Pairs:
        """The top pairs of one spot."""
        return self.values[Spot(model, role, part)]

    def objective(self, model: PreTrainedModel, role: str, part: int = 0) -> Objective:
        """The mean loss of one set's answers."""
        return of_model(model, self.examples.sets[role][part], dtype=self.dtype)

    def _at(self, name: str, part: int) -> None:
        model = self.models[name]
        losses = {role: self.objective(model, role, part) for role in self.examples.sets}
        self.size = next(iter(losses.values())).size
        gradients = {f"gradient_{role}": loss.gradient() for role, loss in losses.items()}
        directions = gradients | dict(self._directions(name, part, losses["pt"]))
        columns = torch.stack(list(directions.values()), dim=1)
        for role, loss in losses.items():
            of = hessian(loss)
            # A start from the last set's vectors was tried: it costs more products than it saves.
            pairs = extreme_pairs(of, self.k, tolerance=self.tolerance, seed=self.pair.seed)
            self.values[Spot(name, role, part)] = pairs
            along = curvature_along(of, columns).tolist()
            inside = share_inside(columns, pairs.vectors).tolist()
            trace = deflated_trace(of, pairs, self.probes, self.pair.seed + part)
            mean, top = trace / of.size, float(pairs.values[0])
            own = {
                "loss": loss.loss(),
                "trace": trace,
                "mean curvature": mean,
                "gradient": float(gradients[f"gradient_{role}"].norm()),
            }
            for measure, value in own.items():
                self._note(name, role, "", measure, value)
            for direction, curvature, share in zip(directions, along, inside, strict=True):
                self._note(name, role, direction, "share", share)
                self._note(name, role, direction, "curvature", curvature)
                self._note(name, role, direction, "curvature / sharpness", curvature / top)
                self._note(name, role, direction, "curvature / mean", curvature / mean)

    def _directions(self, name: str, part: int, loss: Objective) -> Iterator[tuple[str, Tensor]]:
        """Steps that begin or end at this model and differ from nothing, and random ones as long in every parameter."""
        for step, (before, after) in self._steps.items():
            if name not in ENDS[step]:
                continue
            change = flat(loss, after, before)
            if not bool(change.any()):
                continue
            yield step, change
            a, b = weights_of(before), weights_of(after)
            for draw in range(self.random_draws):
                generator = torch_generator(self.pair.seed, "random step", step, part * self.random_draws + draw)
                random = random_step(a, b, generator)
                names = [key for key, _ in before.named_parameters()]
                moved = {key: x - y for key, x, y in zip(names, random, a, strict=True)}
                yield f"random_{step}_{draw}", loss.flat([moved[_bare(key)] for key in loss.parameters]).to(loss.dtype)

    def _note(self, model: str, role: str, direction: str, measure: str, value: float) -> None:
        plain = direction.rpartition("_")[0] if direction.startswith("random_") else direction
        self.numbers.setdefault((model, role, plain), {}).setdefault(measure, []).append(value)

    def _compare(self, role: str, part: int) -> None:
        for a, b in COMPARED:
            if a in self.models and b in self.models:
                found = overlap(self.top(a, role, part).vectors, self.top(b, role, part).vectors)
                self.overlaps.setdefault((a, b, role), []).append(found)
        for name in self.models if part else ():
            found = overlap(self.top(name, role, part).vectors, self.top(name, role, part - 1).vectors)
            self.overlaps.setdefault((name, name, role), []).append(found)

    # --- numbers per set

    def per_set(self, model: str, role: str, direction: str, measure: str) -> Float[np.ndarray, " sets"]:
        """One number per set; of random steps the mean of each set's draws."""
        found = np.array(self.numbers[model, role, direction][measure])
        return found.reshape(self.examples.count, -1).mean(1)

    def sharpness(self, model: str, role: str) -> Float[np.ndarray, " sets"]:
        """The largest eigenvalue on each set: never below 0, for a model with layer norms or a softmax has flat directions."""
        return np.array([self.top(model, role, part).values[0] for part in range(self.examples.count)])

    # --- tables

    @property
    def n(self) -> int:
        """Examples behind every mean over sets."""
        return self.examples.batch * self.examples.count

    def eigenvalues(self) -> pd.DataFrame:
        """Long: `eigenvalue`, `residual` and `converged` per model, role and rank."""
        rows: list[dict[str, Any]] = []
        for model in self.models:
            for role in self.examples.sets:
                found = [self.top(model, role, part) for part in range(self.examples.count)]
                for rank in range(min(len(pairs.values) for pairs in found)):
                    at = {"model": model, **self.examples.at(role), "rank": rank + 1}
                    for measure, each, unit, bounds in (
                        ("eigenvalue", [p.values[rank] for p in found], "nats per squared weight", ANY),
                        ("residual", [p.residuals[rank] for p in found], "nats per squared weight", POSITIVE),
                        ("converged", [float(p.converged[rank]) for p in found], "share of sets", SHARE),
                    ):
                        rows.append({**at, "measure": measure, **row(np.array(each), self.n, unit, bounds)})
        return pd.DataFrame(rows)

    def overlap_table(self) -> pd.DataFrame:
        """Mean squared cosine of the top subspaces; a model with itself: on another set of examples, the highest to be expected."""
        rows: list[dict[str, Any]] = []
        mean, low, high = random_overlap(self.size, min(self.k, self.size), min(self.k, self.size))
        for (a, b, role), found in self.overlaps.items():
            at = {"a": a, "b": b, **self.examples.at(role), "k": self.k, "kind": "other examples" if a == b else "models"}
            measured = row(np.array(found), self.n, "mean squared cosine", SHARE)
            if a == b:
                measured |= {"low": min(found), "high": max(found)}
            chance = {"value": mean, "low": low, "high": high, "n": self.n, "unit": "mean squared cosine"}
            rows += [{**at, "measure": "overlap", **measured}, {**at, "measure": "random", **chance}]
        return pd.DataFrame(rows)

    def direction_table(self) -> pd.DataFrame:
        """What a step or gradient has to do with the curvature of either loss; `chance`: a uniformly random direction's share."""
        rows: list[dict[str, Any]] = []
        units: dict[str, tuple[str, Bounds]] = {
            "share": ("share of the squared norm", SHARE),
            "curvature": ("nats per squared weight", ANY),
            "curvature / sharpness": ("ratio", ANY),
            "curvature / mean": ("ratio", ANY),
        }
        mean, low, high = random_share(self.size, min(self.k, self.size))
        for model, role, direction in self.numbers:
            if not direction:
                continue
            at = {"model": model, **self.examples.at(role), "direction": direction, "k": self.k}
            for measure, (unit, bounds) in units.items():
                values = self.per_set(model, role, direction, measure)
                rows.append({**at, "measure": measure, **row(values, self.n, unit, bounds)})
            chance = {"value": mean, "low": low, "high": high, "n": self.n, "unit": units["share"][0]}
            rows.append({**at, "measure": "chance", **chance})
        return pd.DataFrame(rows)

    def model_table(self) -> pd.DataFrame:
        """Loss, sharpness, trace, mean curvature and length of the gradient of each model for either loss."""
        rows: list[dict[str, Any]] = []
        units = {"loss": "nats", "gradient": "nats per weight"}
        for model in self.models:
            for role in self.examples.sets:
                at = {"model": model, **self.examples.at(role)}
                each = {m: self.per_set(model, role, "", m) for m in self.numbers[model, role, ""]}
                for measure, values in {"sharpness": self.sharpness(model, role), **each}.items():
                    rows.append(
                        {**at, "measure": measure, **row(values, self.n, units.get(measure, "nats per squared weight"))}
                    )
        return pd.DataFrame(rows)


def flat(loss: Objective, after: PreTrainedModel, before: PreTrainedModel) -> Float[Tensor, " n"]:
    """After less before in the order of an objective's parameters, subtracted in double precision."""
    a, b = (dict(model.named_parameters()) for model in (after, before))
    return loss.flat([(a[_bare(key)].detach().double() - b[_bare(key)].detach().double()) for key in loss.parameters]).to(
        loss.dtype
    )


def deflated_trace(of: SymmetricMap, pairs: Pairs, probes: int, seed: int) -> float:
    """The trace: known eigenvalues, and random signs in their complement, whose scatter is much smaller; unbiased."""
    u = pairs.vectors
    z = torch.where(random_columns(of.size, probes, seed, "trace", like=of) > 0, 1.0, -1.0).to(of.dtype)
    z = z - u @ (u.T @ z)
    return float(pairs.values.sum() + (z * (of @ z)).double().sum(0).mean())


def _bare(name: str) -> str:
    """A parameter's name in the model itself."""
    return name.removeprefix("model.")


def _without_vectors(pairs: Pairs) -> Pairs:
    from dataclasses import replace

    return replace(pairs, vectors=pairs.vectors[:0])
