"""Langevin dynamics, in the plain and on spheres, and the average of its iterates.

SGLD is [Welling+11] in the scaling of [Raginsky+17 1702.03849]. On the sphere: [2603.06028], known here from its abstract and from
runs: the rule and that the average is read out are certain, the paper's constants are not.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from workbench.optimizers.rule import Params, Rule, State, with_decay
from workbench.seeds import torch_generator


class SGLD(Rule):
    """`p += -lr g + sqrt(2 lr / inverse_temperature) xi`, xi standard normal.

    At small rates p is drawn from exp(-inverse_temperature L): for a mean loss, the number of examples makes that the posterior.
    Update t of tensor i draws from a generator of its own, named by (`seed`, i, t): the seed is in the groups and t in the state, so a
    resumed run draws what an uninterrupted one would. Decay is L2, a Gaussian prior. `average` is the mean of the iterates after
    `burn_in` updates, kept in the state.
    """

    def __init__(
        self,
        params: Params,
        lr: float,
        inverse_temperature: float = 1e6,
        weight_decay: float = 0.0,
        burn_in: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            params, lr=lr, inverse_temperature=inverse_temperature, weight_decay=weight_decay, burn_in=burn_in, seed=seed
        )

    def update(self, p: Tensor, g: Tensor, state: State, group: dict[str, Any]) -> None:
        """One update of one tensor."""
        state["step"] = state.get("step", 0) + 1
        generator = torch_generator(group["seed"], "langevin", self.index(p), state["step"])
        noise = torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device)
        self.move(p, with_decay(p, g, group["weight_decay"]), noise, state, group)
        averaged = state["step"] - group["burn_in"]
        if averaged == 1:
            state["average"] = p.detach().clone()
        elif averaged > 1:
            state["average"].lerp_(p, 1 / averaged)

    def move(self, p: Tensor, g: Tensor, noise: Tensor, state: State, group: dict[str, Any]) -> None:
        """The step, given its noise."""
        lr = group["lr"]
        p.add_(g, alpha=-lr).add_(noise, alpha=math.sqrt(2 * lr / group["inverse_temperature"]))

    def average(self, p: Tensor) -> Tensor:
        """The mean of a tensor's iterates after `burn_in`; the tensor itself where there is none yet."""
        return self.state[p].get("average", p.detach())


class SphericalLangevin(SGLD):
    """The same with slope and noise projected on the tangent of a sphere, and the tensor put back onto it.

    `p <- r normalise(p + P(-lr g + sqrt(2 lr / inverse_temperature) xi))`, `P = I - p p^T / r^2`, r the tensor's length at the start;
    the paper has one vector of length one, and writes h beta for lr and beta for the inverse temperature. The direction of `average`
    is its answer. A tensor of zeros has no direction and stays.
    """

    def __init__(self, params: Params, lr: float, inverse_temperature: float = 1e6, burn_in: int = 0, seed: int = 0) -> None:
        super().__init__(params, lr=lr, inverse_temperature=inverse_temperature, burn_in=burn_in, seed=seed)

    def move(self, p: Tensor, g: Tensor, noise: Tensor, state: State, group: dict[str, Any]) -> None:
        """The step, given its noise."""
        lr = group["lr"]
        radius = state.setdefault("radius", float(p.norm()))
        if radius == 0:
            return
        push = noise * math.sqrt(2 * lr / group["inverse_temperature"]) - lr * g
        moved = p + push - p * ((p * push).sum() / radius**2)
        p.copy_(moved * (radius / moved.norm()))
