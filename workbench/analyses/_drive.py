"""What reaches a change of the weights on given texts: how its rows lie to the activations that they are multiplied with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.examples import Examples
from workbench.measures import DRAWS
from workbench.models.forward import model_inputs
from workbench.models.inside import seen
from workbench.models.matrices import Part, change
from workbench.statistics import bootstrap_mean
from workbench.subjects import Pair


def drive(
    pair: Pair, parts: Sequence[Part], sets: Mapping[str, Examples], coordinates: Mapping[str, Mapping[str, Any]]
) -> pd.DataFrame:
    """The change of every matrix of the blocks against its inputs x at the read position of the tuned model [2407.10264 §4].

    `cosine`: mean |cos(v_1, x)|, v_1 the first right singular vector of the change D. `output`: mean ||D x|| / ||W x||, W the
    start's: what the change writes beside what was written. `random`: both for a Gaussian change of equal norm, in closed form
    (the second as a root mean square). Intervals are bootstrapped over texts.

    Args:
        pair: start and tuned model.
        parts: of the models.
        sets: texts by role.
        coordinates: by role, what a row says of its ability.
    """
    chosen = [part for part in parts if part.is_matrix and part.block >= 0 and part.kind != "unembedding"]
    steps = [change(part, pair.start, pair.tuned) for part in chosen]
    rows: list[dict[str, Any]] = []
    for role, examples in sets.items():
        inputs = read_inputs(pair.tuned, [part.module for part in chosen], examples)
        for part, step in zip(chosen, steps, strict=True):
            if not bool(step.any()):
                continue
            was = part.of(pair.start).detach().cpu().double()
            at = {"block": part.block, "kind": part.kind, "role": role, **coordinates[role], "n": len(examples)}
            for measure, values, random in _measured(step, was, inputs[part.module]):
                what = {**at, "measure": measure, "unit": "cosine" if measure == "cosine" else "share of the output's norm"}
                rows.append({**what, "source": "update", "values": values})
                rows.append({**what, "source": "random", "value": random, "low": random, "high": random})
    mine = [row for row in rows if "values" in row]
    for role in sets:  # the texts of a role are resampled at once
        some = [row for row in mine if row["role"] == role]
        if not some:
            continue
        values = np.column_stack([row.pop("values") for row in some])
        ends = np.percentile(bootstrap_mean(values, DRAWS, pair.seed), [2.5, 97.5], axis=0)
        for row, value, low, high in zip(some, values.mean(0).tolist(), *ends.tolist(), strict=True):
            row.update(value=value, low=low, high=high)
    return pd.DataFrame(rows)


def _measured(
    step: Float[Tensor, "out in"], was: Float[Tensor, "out in"], x: Float[Tensor, "n in"]
) -> list[tuple[str, np.ndarray, float]]:
    """`(measure, values [n], what a random change has)`; what is not defined on every text, such as a share of nothing, is left out."""
    size, wrote, width = x.norm(dim=1), (x @ was.T).norm(dim=1), x.shape[1]
    first = torch.linalg.svd(step, full_matrices=False)[2][0]
    # E|cos| of a random direction in `width` dimensions.
    usual = math.exp(math.lgamma(width / 2) - math.lgamma((width + 1) / 2)) / math.sqrt(math.pi)
    found: list[tuple[str, np.ndarray, float]] = []
    if bool((size > 0).all()):
        found.append(("cosine", ((x @ first).abs() / size).numpy(), usual))
    if bool((wrote > 0).all()):
        random = float((step.norm() * size / math.sqrt(width) / wrote).mean())
        found.append(("output", ((x @ step.T).norm(dim=1) / wrote).numpy(), random))
    return found


@torch.no_grad()
def read_inputs(
    model: PreTrainedModel, modules: Sequence[str], examples: Examples, batch_size: int = 64
) -> dict[str, Float[Tensor, "n in"]]:
    """Inputs of projections at the position that predicts the answer, in double precision on the CPU."""
    kept: dict[str, list[Tensor]] = {name: [] for name in modules}
    at: list[Tensor] = []

    def keep(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = inputs[0]
            kept[name].append(x[torch.arange(len(x), device=x.device), at[0]].cpu().double())

        return hook

    with ExitStack() as stack:
        for name in kept:
            stack.callback(model.get_submodule(name).register_forward_pre_hook(keep(name)).remove)
        for start in range(0, len(examples), batch_size):
            batch = examples[start : start + batch_size].to(model.device)
            at[:] = [batch.answer_position]
            model.base_model(**model_inputs(model, batch, seen(batch)))
    return {name: torch.cat(parts) for name, parts in kept.items()}
