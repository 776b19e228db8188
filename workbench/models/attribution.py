"""First-order estimates of patches: how far an activation moves times the slope of what is read [Nanda 2023; 2310.10348]."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from workbench.examples import Examples
from workbench.models.anatomy import anatomy
from workbench.models.forward import answer_logits
from workbench.models.patching import Cell, Donor, fitting
from workbench.models.rerun import activations, shown
from workbench.models.sites import EMBEDDING, Site, edited

Scalar = Callable[[Float[Tensor, "n k vocab"], Int[Tensor, " n"]], Float[Tensor, " n"]]
"""Logits that predict the answer's tokens, and the numbers of their examples, to one number each."""


def attribution_grid(
    model: PreTrainedModel, examples: Examples, donor: Donor, cells: Sequence[Cell], read: Scalar, batch_size: int = 128
) -> Float[Tensor, "cells n"]:
    """What `patch_grid` would change `read` by if the model were linear, from one forward and one backward pass.

    Args:
        model: of a known architecture; no parameter receives a gradient.
        examples: what it is shown.
        donor: the run that activations would be taken from.
        cells: what each patch would replace.
        read: what is derived.
        batch_size: examples at a time, at most.

    Returns:
        `(donor - own) . d read / d own`, summed over the positions of the cell, on the CPU.
    """
    sites = list(dict.fromkeys(cell.site for cell in cells))
    batch_size = max(1, min(batch_size, fitting(model, examples, sites) // 2))  # the graph keeps as much again

    def one(rows: Tensor) -> Tensor:
        batch = examples[rows].to(model.device)
        with torch.no_grad():
            other = activations(donor.model, donor.examples[rows].to(donor.model.device), sites, shown(batch))
        own, slope = slopes(model, batch, sites, lambda x: read(x, rows))
        estimates: dict[Site, Tensor] = {}
        for site in sites:
            t = own[site].shape[1]  # neurons of the last block are computed up to the answer alone
            moved = other[site][:, :t].to(model.device) - own[site]
            estimates[site] = (moved * slope[site]).sum(-1).cpu()
        answer, causal = batch.answer_position.cpu(), anatomy(model).causal
        return torch.stack([_of(cell, estimates[cell.site], rows, answer, causal) for cell in cells])

    return torch.cat([one(rows) for rows in torch.arange(len(examples)).split(batch_size)], dim=1)


def _of(cell: Cell, estimate: Tensor, rows: Tensor, answer: Tensor, causal: bool) -> Float[Tensor, " n"]:
    if cell.positions is None:
        prompt = torch.arange(estimate.shape[1]) <= answer[:, None]
        return (estimate * prompt if causal else estimate).sum(1)
    at = cell.positions.cpu()[rows]
    found = estimate.gather(1, at.clamp(max=estimate.shape[1] - 1)[:, None])[:, 0]
    return found * (at < estimate.shape[1])


def slopes(
    model: PreTrainedModel,
    batch: Examples,
    sites: Sequence[Site],
    read: Callable[[Float[Tensor, "n k vocab"]], Float[Tensor, " n"]],
) -> tuple[dict[Site, Float[Tensor, "n t _"]], dict[Site, Float[Tensor, "n t _"]]]:
    """Activations of sites, and the derivative of each example's number with respect to them."""
    found: dict[Site, Tensor] = {}

    def keep(site: Site) -> Callable[[Tensor], Tensor]:
        def tap(x: Tensor) -> Tensor:
            # The embedding is where the graph begins, so that it does not matter whether weights take gradients.
            found[site] = x.detach().requires_grad_() if site == EMBEDDING else x.view_as(x)
            return found[site]

        return tap

    with torch.enable_grad(), edited(model, {site: keep(site) for site in dict.fromkeys([EMBEDDING, *sites])}):
        total = read(answer_logits(model, batch)).sum()
        given = torch.autograd.grad(total, [found[site] for site in sites], allow_unused=True, materialize_grads=True)
    return {site: found[site].detach() for site in sites}, dict(zip(sites, given, strict=True))
