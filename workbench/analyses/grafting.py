"""Where fine-tuning's change of the weights sits: a small share of it set back, or grafted onto the model before."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from transformers import PreTrainedModel

from workbench.analyses.pruning import control_draws
from workbench.analysis import Settings, analysis
from workbench.examples import Examples
from workbench.measures import (
    DRAWS,
    certain,
    correct_answers,
    derived,
    draw,
    other_texts,
    proportion,
    proportion_row,
    role_of,
    shares,
)
from workbench.models.forward import nll
from workbench.models.matrices import check_alike
from workbench.models.sensitivity import slopes_at_once
from workbench.results import Direction, Evidence, Metric, Result
from workbench.seeds import torch_generator
from workbench.statistics import bootstrap_mean
from workbench.subjects import Pair
from workbench.verdict import RECOVERED, ROOM

GRID = (0.0, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Shares of the weights that changed."""
SPARSE = 0.01
"""The share at which the headline is read; declared, so that none is chosen."""
RANDOM_AT = (1e-3, SPARSE, 0.1)
DIRECTIONS = ("revert", "graft")
RANKINGS = ("first_order", "magnitude")


class GraftingSettings(Settings):
    """Settings of `grafting`."""

    score_examples: int = Field(1024, ge=16, description="examples for the gradients, drawn independently of all others")
    random_draws: int = Field(10, ge=10, description="random choices of weights that serve as the control")
    n: int | None = Field(None, ge=16, description="test examples per set; the pair's own number when empty")
    control_examples: int = Field(200, ge=16, description="examples (at most) for random weights")


@analysis(version=1, holds=700, passes=110, group="weights", paper="Panigrahi+23 2302.06600; Jain+23 §D")
def grafting(pair: Pair, settings: GraftingSettings) -> Result:
    """O_PT and O_FT as a share of the fine-tuning difference d = theta_tuned - theta_start is reverted or grafted [2302.06600].

    `start` is the model that fine-tuning started from: the base, unless the pair says otherwise. `revert`: the tuned model
    with the first weights of a ranking set back to the start's values. `graft`: the start with the first ones set to the tuned
    values. At share 0 and 1 these are the two models, bit for bit. Shares are of the single weights that changed at all,
    embeddings included (`changed` says how many of all they are).

    Rankings: `magnitude`, |d|, largest first; `first_order`, by what the step does to a loss (nats) to first order: for
    reverting d * dL_PT/dtheta at the tuned model, largest first, since taking a weight back changes L_PT by minus that; for
    grafting d * dL_FT/dtheta at the start, most negative first. L_PT is that of O_PT at C_Te = 0, L_FT that of O_FT where
    it was trained. Control: as many random weights among the changed ones.

    The headline is read at the share .01, `first_order`: `recovered` = (reverted - tuned) / (start - tuned) of O_PT, and
    `reproduced` = (grafted - start) / (tuned - start) of O_FT.

    Does not tell masked from erased: reverting hands the start's own weights back, and with all of them any ability returns.
    """
    n = settings.n or pair.n
    few = min(n, settings.control_examples)
    check_alike((pair.start, pair.tuned), f"pair {pair.name!r}")
    ends = torch.stack([parameters_to_vector(m.parameters()).detach() for m in (pair.start, pair.tuned)])
    change = ends[1] - ends[0]
    changed = change.nonzero().flatten()
    pt, ft = (pair.capability, shares(pair, pair.capability)[0]), (pair.tuned_on, shares(pair, pair.tuned_on)[-1])
    harm = change * slope(pair.tuned, draw(pair, *pt, settings.score_examples, "score"))
    use = -change * slope(pair.start, draw(pair, *ft, settings.score_examples, "score"))

    def orders() -> Iterator[tuple[str, str, int, Tensor]]:
        """One at a time: each is as large as the model."""
        for direction, first_order in zip(DIRECTIONS, (harm, use), strict=True):
            for ranking, score in zip(RANKINGS, (first_order, change.abs()), strict=True):
                yield direction, ranking, 0, changed[torch.sort(score[changed], descending=True, stable=True).indices]
            for index in range(settings.random_draws):
                shuffled = torch.randperm(len(changed), generator=torch_generator(pair.seed, "random weights", index))
                yield direction, "random", index + 1, changed[shuffled.to(changed.device)]

    sets = {pt: draw(pair, *pt, n), ft: draw(pair, *ft, n)}
    work = copy.deepcopy(pair.tuned)
    rows: list[dict[str, Any]] = []
    correct: dict[tuple[str, str, int, str, float], np.ndarray] = {}
    for direction, ranking, index, order in orders():
        start, goal = (ends[1], ends[0]) if direction == "revert" else (ends[0], ends[1])
        for share in RANDOM_AT if index else GRID:
            vector_to_parameters(torch.where(first_of(order, share, len(change)), goal, start), work.parameters())
            for (capability, texts), examples in sets.items():
                right = correct_answers(work, examples[:few] if index else examples)
                correct[direction, ranking, index, capability, share] = right
                at = {"direction": direction, "ranking": ranking, "draw": index, "share_of_weights": share}
                at |= {"capability": capability, "role": role_of(pair, capability), "share": texts}
                rows.append({**at, **proportion_row(right)})
    result = Result(
        name="grafting",
        tables={"table": pd.DataFrame(rows)},
        headline=(
            *_headline(pair, correct, settings.random_draws),
            certain("changed", len(changed) / len(change), n, "share of all weights"),
        ),
        limits=(
            "Reverting hands weights from before fine-tuning back: it tells where the change sits, not whether the ability survived it.",
            f"The headline is read at {SPARSE:.0%} of the changed weights, declared beforehand; the table has the other shares.",
            "The ranking is of first order, at the start of the step: weights that act together are not found together.",
        ),
        provenance={"capability": pair.capability, "tuned_on": pair.tuned_on},
    )
    return replace(result, evidence=evidence(result))


def slope(model: PreTrainedModel, examples: Examples, batch_size: int = 128) -> Float[Tensor, " weights"]:
    """dL/dtheta of the mean negative log-likelihood (nats) for all weights in one vector; no parameter receives a gradient."""
    parameters = list(model.parameters())
    total = torch.zeros(sum(p.numel() for p in parameters), device=model.device, dtype=model.dtype)
    with torch.enable_grad():
        size = slopes_at_once(model, examples, batch_size)
        for start in range(0, len(examples), size):
            loss = nll(model, examples[start : start + size].to(model.device)).sum()
            # The embedding of a position that no text reaches has no part in the loss.
            found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
            total += parameters_to_vector(found)
    return total / len(examples)


def first_of(order: Int[Tensor, " changed"], share: float, weights: int) -> Bool[Tensor, " weights"]:
    """A mask of the first share of an order; at least one weight unless the share is 0."""
    mask = torch.zeros(weights, dtype=torch.bool, device=order.device)
    mask[order[: max(math.ceil(share * len(order) - 1e-9), 0)]] = True
    return mask


def _headline(pair: Pair, correct: dict[tuple[str, str, int, str, float], np.ndarray], draws: int) -> list[Metric]:
    pt, ft, sparse = pair.capability, pair.tuned_on, ("first_order", 0)
    texts = other_texts(pair.seed, "correlated") if pair.correlation else pair.seed
    found: list[Metric] = []

    def at(direction: str, capability: str, share: float = SPARSE, ranking: str = sparse[0]) -> np.ndarray:
        return correct[direction, ranking, 0, capability, share]

    def effect(direction: str, capability: str, seed: int, names: Sequence[str]) -> None:
        before, after, goal = (at(direction, capability, share) for share in (0.0, SPARSE, 1.0))
        random = np.stack([correct[direction, "random", i + 1, capability, SPARSE] for i in range(draws)])
        low, middle, high = (bootstrap_mean(v, DRAWS, seed) for v in (before, after, goal))
        control = control_draws(random, seed)
        whole = float(goal.mean() - before.mean())
        share = float(after.mean() - before.mean()) / whole if whole >= ROOM else math.nan
        with np.errstate(divide="ignore", invalid="ignore"):
            share_draws = (middle - low) / (high - low)
        n, few = len(after), random.shape[1]
        found.append(derived(names[0], float(random.mean()), control, few, "accuracy"))
        found.append(derived(names[1], float(after.mean() - random.mean()), middle - control, few, "accuracy"))
        found.append(derived(names[2], share, share_draws, n, "share of the difference"))

    measured = {
        "start_pt": (at("graft", pt, 0.0), pair.seed),
        "tuned_pt": (at("revert", pt, 0.0), pair.seed),
        "reverted_pt": (at("revert", pt), pair.seed),
        "reverted_pt_by_magnitude": (at("revert", pt, ranking="magnitude"), pair.seed),
        "start_ft_correlated": (at("graft", ft, 0.0), texts),
        "tuned_ft_correlated": (at("revert", ft, 0.0), texts),
        "reverted_ft_correlated": (at("revert", ft), texts),
        "grafted_ft_correlated": (at("graft", ft), texts),
        "grafted_pt": (at("graft", pt), pair.seed),
    }
    found += [proportion(name, values, seed) for name, (values, seed) in measured.items()]
    effect("revert", pt, pair.seed, ("random_reverted_pt", "gain", "recovered"))
    effect("graft", ft, texts, ("random_grafted_ft", "gain_grafted", "reproduced"))
    return found


def evidence(result: Result) -> tuple[Evidence, ...]:
    """One line that takes no side: whether the loss sits in few weights. Uninformative where nothing was lost."""
    found = {m.metric: m for m in result.headline}
    gain, recovered, start, tuned, back, random = (
        found[k] for k in ("gain", "recovered", "start_pt", "tuned_pt", "reverted_pt", "random_reverted_pt")
    )
    capability = result.provenance.get("capability", "O_PT")
    shown, direction = recovered, "neutral"
    told = (
        f"Setting {SPARSE:.0%} of the changed weights back takes {capability} from {tuned.value:.2f} to "
        f"{back.value:.2f} (random ones: {random.value:.2f}, before fine-tuning: {start.value:.2f})"
    )
    if start.value - tuned.value < ROOM or not math.isfinite(recovered.value):
        shown, direction = gain, "uninformative"
        seeds = " in some seed" if start.value - tuned.value >= ROOM else ""
        text = f"The tuned model lost no {ROOM} of {capability}{seeds}: there is no loss to place in the weights."
    elif recovered.low >= RECOVERED and gain.low > 0:
        text = f"{told}: {recovered.value:.0%} of the loss sits in few weights, which tells where it is, not whether it is covered."
    else:
        text = f"{told}: the loss does not sit in so few weights."
    kind: Direction = "uninformative" if direction == "uninformative" else "neutral"
    return (
        Evidence(result.name, shown.metric, shown.value, shown.low, shown.high, shown.n, kind, text, capability, shown.bound),
    )
