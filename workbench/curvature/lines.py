"""Every row's own slope and curvature along a direction: what the interval of an eigenvalue rests on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from workbench.curvature.objective import Objective
from workbench.statistics import bootstrap_mean


@dataclass(frozen=True)
class AlongLine:
    """Derivatives of each row's loss along one direction, at the parameters."""

    slope: Float[np.ndarray, " rows"]
    """Their mean is the direction's part of the gradient."""
    curvature: Float[np.ndarray, " rows"]
    """Their mean is v.Hv."""


def along(objective: Objective, direction: Float[Tensor, " n"]) -> AlongLine:
    """First and second derivative of every row's loss l_i(theta + t v) at t = 0.

    By reverse mode alone: sum u_i l_i is differentiated twice by t, and then by the weights u. The mean curvature along a unit
    eigenvector is its eigenvalue; to first order the eigenvalue of other rows is their mean curvature along the same vector,
    so that resampling the rows gives the eigenvalue's interval without another eigenproblem.
    """
    slopes: list[Tensor] = []
    curvatures: list[Tensor] = []
    pieces = dict(zip(objective.parameters, objective.split(direction), strict=True))
    for part in objective.parts:
        with objective.differentiable():
            t = torch.zeros((), dtype=objective.dtype, device=objective.device, requires_grad=True)
            moved = {name: p.detach() + t * pieces[name] for name, p in objective.parameters.items()}
            losses = objective.losses(functional_call(objective.module, moved, (part.inputs,)), part)
            weights = torch.ones_like(losses, requires_grad=True)
            (first,) = torch.autograd.grad((weights * losses).sum(), t, create_graph=True)
            (second,) = torch.autograd.grad(first, t, create_graph=True, materialize_grads=True)
            slopes.append(torch.autograd.grad(first, weights, retain_graph=True)[0])
            curvatures.append(torch.autograd.grad(second, weights, materialize_grads=True)[0])
    return AlongLine(*(torch.cat(x).detach().double().cpu().numpy() for x in (slopes, curvatures)))


def resampled_means(
    objective: Objective, of_rows: Float[np.ndarray, " rows"], draws: int, seed: int
) -> Float[np.ndarray, " draws"]:
    """Means over the rows of resampled examples: the rows of an example are drawn together."""
    owners = objective.owners.numpy()
    n = int(owners.max()) + 1
    sums, counts = np.bincount(owners, of_rows, n), np.bincount(owners, minlength=n)
    return bootstrap_mean(sums, draws, seed) / bootstrap_mean(counts, draws, seed)
