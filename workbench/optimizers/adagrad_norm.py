"""AdaGrad and AdaGrad-Norm, and the batch that grows with them: AdAdaGrad [Lau+24 2402.11215].

Certain: the norm test and both steps. Recalled: the constants in use. The paper's coordinate-wise test of AdAdaGrad, summed over
coordinates, is the norm test, and is what stands here for both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.errors import UserError
from workbench.optimizers.rule import Params, Rule, State, moments


class AdaGrad(Rule):
    """`S += g^2`, `p -= lr g / sqrt(S + eps)` by coordinate: the step of AdAdaGrad, eps inside the root."""

    def __init__(self, params: Params, lr: float = 1.0, eps: float = 1e-8) -> None:
        super().__init__(params, lr=lr, eps=eps)

    def update(self, p: Tensor, g: Tensor, state: State, group: dict[str, Any]) -> None:
        """One update of one tensor."""
        (total,) = moments(state, p, "total")
        total.addcmul_(g, g)
        p.addcdiv_(g, (total + group["eps"]).sqrt_(), value=-group["lr"])


class AdaGradNorm(Rule):
    """`S += ||g||^2`, `p -= lr g / sqrt(S + eps)` with one S for all tensors: the step of AdAdaGrad-Norm.

    S is a plain number in the state of the first tensor; reading the norm waits for the device once an update.
    """

    def __init__(self, params: Params, lr: float = 1.0, eps: float = 1e-8) -> None:
        super().__init__(params, lr=lr, eps=eps)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every tensor that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients = [p.grad for p in self.tensors() if p.grad is not None]
        if gradients:
            total = self.state[self.tensors()[0]]
            total["total"] = total.get("total", 0.0) + float(torch.stack([g.square().sum() for g in gradients]).sum())
            super().step()
        return loss

    def update(self, p: Tensor, g: Tensor, state: State, group: dict[str, Any]) -> None:
        """One update of one tensor."""
        total = self.state[self.tensors()[0]]["total"]
        p.add_(g, alpha=-group["lr"] / math.sqrt(total + group["eps"]))


@dataclass(frozen=True)
class NormTest:
    """The size of the next batch: the smallest whose mean gradient has a relative variance of at most `eta^2`.

    Passed when `Var/b <= eta^2 ||g||^2`, Var the sum over coordinates of the examples' variance; the size then stays as it is.
    """

    eta: float
    """From 0 to 1; smaller makes batches grow faster."""
    largest: int
    """No batch is larger."""

    def __post_init__(self) -> None:
        if not 0 < self.eta <= 1 or self.largest < 2:
            raise UserError(
                f"the norm test needs eta above 0 and at most 1 and a largest batch of 2 or more; given {self.eta} and {self.largest}."
            )

    def after(self, gradients: Float[Tensor, "b n"]) -> int:
        """The next size, at least b, from the gradients of a batch's examples.

        Raises:
            UserError: a single example, which has no variance.
        """
        b = len(gradients)
        if b < 2:
            raise UserError("the norm test needs the gradients of 2 examples or more; raise the first batch.")
        mean = gradients.mean(0)
        return self.size(b, float((gradients - mean).square().sum() / (b - 1)), float(mean.square().sum()))

    def size(self, b: int, variance: float, squared_norm: float) -> int:
        """The next size from Var and ||g||^2, however they were estimated (two batches of different size will do)."""
        if variance <= b * self.eta**2 * squared_norm:
            return b
        wanted = variance / (self.eta**2 * squared_norm) if squared_norm > 0 else math.inf
        return max(b, self.largest if wanted >= self.largest else math.ceil(wanted))
