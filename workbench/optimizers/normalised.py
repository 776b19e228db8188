"""Normalised gradient descent for logistic losses [2412.08424]: the step that makes huge rates harmless.

It needs the margins of a batch, which the loop of a study does not have, so it is no kind of `OptimizerSpec`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from workbench.optimizers.rule import Params, Rule, State


def normaliser(margins: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """`((1/n) sum_i (1 + exp(margin_i))^-1)^-1` for margins y_i a_i.theta; at least 1, and finite as long as its value is."""
    return torch.exp(math.log(len(margins)) - torch.logsumexp(F.logsigmoid(-margins), 0))


class NormalisedGD(Rule):
    """`p -= lr normaliser(margins) g`, g the gradient of the mean of log(1 + exp(-margin)).

    This is not a gradient of length one: the examples' weights, not their sum's length, are made to add up to one.
    `step` takes a closure that computes the gradients and returns the margins, detached or not.
    """

    def __init__(self, params: Params, lr: float) -> None:
        super().__init__(params, lr=lr)
        self._factor = 1.0

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update; returns the margins before it."""
        with torch.enable_grad():
            margins = closure().detach()
        self._factor = float(normaliser(margins))
        super().step()
        return margins

    def update(self, p: Tensor, g: Tensor, state: State, group: dict[str, Any]) -> None:
        """One update of one tensor."""
        p.add_(g, alpha=-group["lr"] * self._factor)
