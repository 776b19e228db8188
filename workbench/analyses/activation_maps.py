"""What the hidden neurons do before and after fine-tuning: activations by position, and the neurons that changed most."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from transformers import PreTrainedModel

from workbench.analysis import Settings, analysis
from workbench.errors import UserError
from workbench.examples import Examples
from workbench.measures import DRAWS, derived, draw, shares
from workbench.models.anatomy import neuron_shape
from workbench.models.inside import answering_neurons, hidden_neurons, neuron_names
from workbench.results import Evidence, Metric, Result
from workbench.statistics import bootstrap_mean
from workbench.subjects import Pair, Question

BATCH = 64
FEW = 5
"""Neurons of `concentration`."""


class ActivationMapsSettings(Settings):
    """Settings of `activation_maps`."""

    block: int = Field(0, ge=0, description="block whose neurons are mapped; the first MLP is block 0")
    n: int = Field(200, ge=16, description="examples for the change at the read position")
    maps: int = Field(1, ge=1, le=4, description="texts whose activations are kept at every position")
    listed: int = Field(12, ge=1, description="neurons that are listed, of all blocks")


def _check(settings: ActivationMapsSettings, question: Question, blocks: int) -> None:
    """Refuse a block that models of this depth do not have."""
    if settings.block >= blocks:
        raise UserError(
            f"activation_maps: block is {settings.block}, but the model has the blocks 0 to {blocks - 1}; choose one of them."
        )


@analysis(version=1, holds=600, n=200, passes=12, paper="Jain+23 Fig 46, 47", group="lenses", check=_check)
def activation_maps(pair: Pair, settings: ActivationMapsSettings) -> Result:
    """Activations of the hidden MLP neurons of base and tuned model on O_PT texts at C_Te = 0 [Jain+23 Fig 46, 47, 53, 54].

    `maps` holds them for a few texts at every position, of one block (token by channel, after the nonlinearity).
    `table` lists, of all blocks, the neurons whose activation at the read position changed most: `change` is the mean over
    texts of |tuned - base|; `base` and `tuned` are means. Intervals are bootstrapped over texts. Neurons of a compiled model
    are called by what they were compiled to do; noise and training may have given them other work.
    `relative_change`: the summed |tuned - base| of all neurons of all blocks at the read position over the summed |base|.
    `concentration`: the share of it in the `FEW` neurons that changed most, for a wrapper may be a matter of few.

    Does not show which of the changes matter for the answer; `pruning` asks that.
    """
    examples = draw(pair, pair.capability, shares(pair, pair.capability)[0], settings.n)
    blocks, width = neuron_shape(pair.base)
    kept = _maps(pair, examples[: settings.maps], settings.block)
    base, tuned = (_at_read(model, examples) for model in (pair.base, pair.tuned))
    change = np.abs(tuned - base)
    order = np.argsort(-change.mean(0), kind="stable")
    names = [name for block in range(blocks) for name in neuron_names(pair.base, block)]
    rows: list[dict[str, Any]] = []
    for neuron in order[: settings.listed].tolist():
        at = {"block": neuron // width, "neuron": neuron % width, "name": names[neuron]}
        for model, values in (("base", base), ("tuned", tuned), ("change", change)):
            low, high = np.percentile(bootstrap_mean(values[:, neuron], DRAWS, pair.seed), [2.5, 97.5])
            row = {"value": float(values[:, neuron].mean()), "low": float(low), "high": float(high), "n": len(values)}
            rows.append({**at, "model": model, **row, "unit": "activation"})
    whole = change.sum(1)
    result = Result(
        name="activation_maps",
        tables={"table": pd.DataFrame(rows), "maps": kept},
        headline=(
            _ratio("relative_change", whole, np.abs(base).sum(1), pair.seed),
            _ratio("concentration", change[:, order[:FEW]].sum(1), whole, pair.seed),
        ),
        limits=(
            "A neuron that changed need not matter for the answer, and one that matters need not have changed.",
            "Activations are not on one scale across blocks and neurons.",
        ),
        provenance={"capability": pair.capability, "tuned_on": pair.tuned_on},
    )
    return replace(result, evidence=evidence(result))


def _ratio(name: str, part: np.ndarray, whole: np.ndarray, seed: int) -> Metric:
    """The ratio of two sums over texts, undefined where the second is zero."""
    value = float(part.sum() / whole.sum()) if whole.sum() else math.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = bootstrap_mean(part, DRAWS, seed) / bootstrap_mean(whole, DRAWS, seed)
    return derived(name, value, draws, len(part), "share")


def _at_read(model: PreTrainedModel, examples: Examples) -> np.ndarray:
    """Activations of all blocks at the read position `[n, blocks * neurons]`."""
    batches = [examples[start : start + BATCH].to(model.device) for start in range(0, len(examples), BATCH)]
    return torch.cat([answering_neurons(model, batch).flatten(1) for batch in batches]).numpy().astype(np.float64)


def _maps(pair: Pair, examples: Examples, block: int) -> pd.DataFrame:
    tokens = np.array([[pair.task.describe([token]) for token in row] for row in examples.tokens.tolist()])
    read = examples.answer_position.cpu().numpy()
    frames: list[pd.DataFrame] = []
    for model_name, model in (("base", pair.base), ("tuned", pair.tuned)):
        found = hidden_neurons(model, examples.to(model.device), block).numpy()
        text, position, neuron = (axis.ravel() for axis in np.indices(found.shape))
        columns = {"text": text, "position": position, "token": tokens[text, position], "read": position == read[text]}
        names = np.array(neuron_names(pair.base, block))
        columns |= {"neuron": neuron, "name": names[neuron], "activation": found.ravel()}
        frames.append(pd.DataFrame(columns).assign(model=model_name, block=block))
    return pd.concat(frames, ignore_index=True)


def evidence(result: Result) -> tuple[Evidence, ...]:
    """One line that takes no side: how much changed, and in how few neurons."""
    change, few = result.metric("relative_change"), result.metric("concentration")
    text = (
        f"Hidden activations at the read position changed by {change.value:.2f} of their size; "
        f"{FEW} neurons carry {few.value:.0%} of the change."
        if math.isfinite(few.value)
        else "No hidden activation at the read position changed."
    )
    capability = result.provenance.get("capability", "O_PT")
    line = Evidence(
        "activation_maps", "concentration", few.value, few.low, few.high, few.n, "neutral", text, capability, few.bound
    )
    return (line,)
