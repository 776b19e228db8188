"""signSGD: every coordinate moves by the same amount [Bernstein+18 1802.04434]."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from workbench.optimizers.rule import Params, Rule, State, moments, shrink


class SignSGD(Rule):
    """`p -= lr sign(g)`; with momentum, `sign(m)` of `m = momentum m + (1 - momentum) g` (Signum). Decay is decoupled, before the step."""

    def __init__(self, params: Params, lr: float = 1e-3, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)

    def update(self, p: Tensor, g: Tensor, state: State, group: dict[str, Any]) -> None:
        """One update of one tensor."""
        shrink(p, group["lr"] * group["weight_decay"])
        if momentum := group["momentum"]:
            (m,) = moments(state, p, "m")
            g = m.mul_(momentum).add_(g, alpha=1 - momentum)
        p.add_(g.sign(), alpha=-group["lr"])
