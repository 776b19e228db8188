"""Prompts and their counterfactuals, and effects of patches as shares of what the two differ by."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from workbench.analyses._places import Place, even, find_places
from workbench.errors import UserError
from workbench.examples import Examples
from workbench.measures import DRAWS, derived, draw, shares
from workbench.models.anatomy import anatomy, head_shape
from workbench.models.forward import answer_logits, evaluate
from workbench.models.patching import Donor
from workbench.results import Direction, Evidence, Metric, Result
from workbench.statistics import bootstrap_mean
from workbench.subjects import Pair
from workbench.verdict import ROOM

FLOOR = 1.0
"""Logits by which the two prompts must at least differ (lower end of the interval) for a share of that to mean anything."""
Asked = Literal["pt", "ft"]


@dataclass(frozen=True)
class Prompts:
    """One draw of prompts; the read-out is the logit of the counterfactual's answer less that of the right one."""

    capability: str
    examples: Examples
    """With `counterfactual`."""

    def read(self, logits: Float[Tensor, "r k vocab"], rows: Int[Tensor, " r"]) -> Float[Tensor, " r"]:
        """The logit difference at the first token in which the two answers differ."""
        right, other = (
            answer.to(logits.device)[rows.to(logits.device)] for answer in (self.examples.answer, self.other.answer)
        )
        at = (right != other).int().argmax(1)
        every = torch.arange(len(at), device=at.device)
        return logits[every, at, other[every, at]] - logits[every, at, right[every, at]]

    @property
    def other(self) -> Examples:
        """The counterfactual prompts."""
        assert self.examples.counterfactual is not None
        return self.examples.counterfactual

    def donor(self, model: PreTrainedModel) -> Donor:
        """The run on the counterfactual prompts that patches are taken from."""
        return Donor(model, self.other)

    def gap(self, model: PreTrainedModel) -> Float[np.ndarray, "two n"]:
        """The read-out on the prompts and on their counterfactuals, example by example."""
        found: list[np.ndarray] = []
        rows = {"start": 0}

        def difference(model: PreTrainedModel, batch: Examples) -> Tensor:
            here = torch.arange(rows["start"], rows["start"] + len(batch))
            rows["start"] += len(batch)
            return self.read(answer_logits(model, batch), here)

        for examples in (self.examples, self.other):
            rows["start"] = 0
            found.append(evaluate(model, examples, difference).double().numpy())
        return np.stack(found)


def draw_prompts(pair: Pair, asked: Asked, n: int, split: str = "test") -> Prompts:
    """Prompts of O_PT or O_FT at C_Te = 0 with their counterfactuals."""
    capability = pair.capability if asked == "pt" else pair.tuned_on
    examples = draw(pair, capability, shares(pair, capability)[0], n, split)
    return Prompts(capability, pair.counterfactual(examples, capability))


def other_prompts(pair: Pair, n: int) -> tuple[Prompts, Prompts] | None:
    """Prompts of an ability of another family, of splits `select` and `test`; None where there is none that can be edited."""
    for name in pair.others:
        try:
            drawn = [draw(pair, name, shares(pair, name)[0], n, split) for split in ("select", "test")]
            return tuple(Prompts(name, pair.counterfactual(examples, name)) for examples in drawn)  # pyright: ignore[reportReturnType]
        except UserError:
            continue
    return None


def alike(pair: Pair) -> PreTrainedModel:
    """The base, when the tuned model has the same blocks and heads.

    Raises:
        UserError: it has not.
    """
    if head_shape(pair.base) != head_shape(pair.tuned):
        raise UserError(
            f"the models of pair {pair.name!r} have {head_shape(pair.base)} and {head_shape(pair.tuned)} (blocks, heads), so their "
            "components cannot be held against each other."
        )
    return pair.base


def places_of(pair: Pair, examples: Examples, most: int) -> tuple[list[Place], Int[Tensor, "n k"]]:
    """Places that all prompts have; of a model that attends in both directions also those behind the answer's position."""
    length = None if anatomy(pair.base).causal else examples.tokens.shape[1]
    return find_places(pair.task, even(examples), most, length)


@dataclass(frozen=True)
class Effects:
    """Changes of the read-out by patches, as shares of what the two prompts differ by in that model."""

    change: Float[np.ndarray, "cells n"]
    """Of the read-out, in logits."""
    gap: Float[np.ndarray, " n"]
    """The counterfactual's read-out less the prompt's, in logits."""
    seed: int

    @property
    def told_apart(self) -> bool:
        """Whether the model tells the two prompts apart by at least `FLOOR`."""
        return bool(np.percentile(bootstrap_mean(self.gap, DRAWS, self.seed), 2.5) >= FLOOR)

    def shares(self) -> tuple[Float[np.ndarray, " cells"], Float[np.ndarray, "draws cells"]]:
        """Ratios of means and their bootstrap draws, numerator and denominator resampled together; NaN below the floor."""
        if not self.told_apart:
            cells = len(self.change)
            return np.full(cells, np.nan), np.full((DRAWS, cells), np.nan)
        drawn = bootstrap_mean(self.change.T, DRAWS, self.seed) / bootstrap_mean(self.gap, DRAWS, self.seed)[:, None]
        return self.change.mean(1) / self.gap.mean(), drawn

    def total(self, name: str, cells: Any) -> Metric:
        """The sum of some effects as a headline number."""
        value, drawn = self.shares()
        return derived(name, float(value[cells].sum()), drawn[:, cells].sum(1), len(self.gap), "share of the effect")


def effect_columns(value: np.ndarray, drawn: np.ndarray, n: int) -> dict[str, Any]:
    """`value low high n unit` of a table."""
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0) if len(drawn) else (value, value)
    return {"value": value, "low": low, "high": high, "n": n, "unit": "share of the effect"}


def undefined(found: Mapping[str, Metric], capability: str, shown: str) -> str:
    """Why the number of this name is undefined in base or tuned model, as a sentence; empty where it is not."""
    said = {"told_apart_base": "base", "told_apart_tuned": "tuned model"}
    short = [f"the {who} ({found[name].value:.1f})" for name, who in said.items() if found[name].low < FLOOR]
    if short:
        where = " and ".join(short)
    elif math.isfinite(found[shown].value):
        return ""
    else:
        where = "a model of one of the seeds"
    return (
        f"Prompts for {capability} and their counterfactuals are told apart by less than {FLOOR:g} logit towards the right answer "
        f"in {where}, so that effects are undefined there."
    )


def nothing_lost(found: Mapping[str, Metric], capability: str) -> str:
    """A sentence with a space before it where the base is not better than the tuned model by `ROOM`; else empty."""
    if found["base_pt"].value - found["tuned_pt"].value >= ROOM:
        return ""
    return f" The tuned model is within {ROOM} of the base on {capability}, so no loss can be placed."


def placed(result: Result, shown: str, told: Callable[[Mapping[str, Metric], str], str]) -> tuple[Evidence, ...]:
    """The line of a patching: where a difference is carried takes no side. Uninformative where effects or a loss are missing.

    Args:
        result: with `told_apart_*`, `base_pt` and `tuned_pt` in its headline.
        shown: the number of the line.
        told: its sentence, given the headline by name and the capability.
    """
    found = {m.metric: m for m in result.headline}
    pt = result.settings.get("capability", "pt") == "pt"
    capability = str(result.provenance.get("capability" if pt else "tuned_on", "O_PT"))
    text, number, direction = undefined(found, capability, shown), found[shown], "neutral"
    if text:
        number, direction = found["told_apart_tuned"], "uninformative"
    else:
        text = told(found, capability)
    if pt and (kept := nothing_lost(found, capability)):
        direction = "uninformative"
        text += kept
    kind: Direction = "neutral" if direction == "neutral" else "uninformative"
    numbers = (number.value, number.low, number.high, number.n)
    return (Evidence(result.name, number.metric, *numbers, kind, text, capability, number.bound),)
