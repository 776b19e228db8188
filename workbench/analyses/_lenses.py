"""What the lenses share: places of any prompt, many means with their intervals at once, and numbers of a headline."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.analyses._places import Place, find_places
from workbench.examples import Examples
from workbench.measures import DRAWS, derived
from workbench.protocols import Task
from workbench.results import Metric
from workbench.statistics import bootstrap_mean


def places_of(task: Task, examples: Examples, most: int) -> tuple[list[Place], Int[Tensor, "n k"]]:
    """`find_places`, without roles that cover more positions of one example than of another; no text where it is answered."""
    answers = torch.arange(examples.tokens.shape[1], device=examples.tokens.device) == examples.answer_position[:, None]
    masks = {role: mask & ~answers if role == "text" else mask for role, mask in examples.roles.items()}
    even = {role: mask for role, mask in masks.items() if len(mask.sum(1).unique()) == 1}
    return find_places(task, replace(examples, roles=even), most)


def means(values: Float[np.ndarray, "n cells"], seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means over examples with the ends of their 95 % bootstrap intervals, `[cells]` each; all cells see the same draws."""
    low, high = np.percentile(bootstrap_mean(values, DRAWS, seed), [2.5, 97.5], axis=0)
    return values.mean(0), low, high


def mean_metric(name: str, values: Float[np.ndarray, " n"], seed: int, unit: str) -> Metric:
    """The mean of a number that each example has."""
    return derived(name, float(values.mean()), bootstrap_mean(values, DRAWS, seed), len(values), unit)


def ratio_metric(
    name: str, part: Float[np.ndarray, " n"], whole: Float[np.ndarray, " n"], seed: int, unit: str, least: float = 0.0
) -> Metric:
    """The ratio of two means over the same examples; undefined where the size of the second is not above `least`."""
    value = float(part.mean() / whole.mean()) if abs(float(whole.mean())) > least else float("nan")
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = bootstrap_mean(part, DRAWS, seed) / bootstrap_mean(whole, DRAWS, seed)
    return derived(name, value, draws, len(part), unit)
