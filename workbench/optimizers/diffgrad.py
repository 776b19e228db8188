"""diffGrad: Adam with friction where the gradient changes little [Dubey+20 1909.11015; the authors' code]."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from workbench.optimizers.rule import Params, Rule, State, moments, one_of, with_decay


class DiffGrad(Rule):
    """`p -= lr sqrt(c2)/c1 * xi m / (sqrt(v) + eps)`, `xi = sigmoid(|g_before - g|)` elementwise, `g_0 = 0`.

    `c1, c2` are Adam's bias corrections; eps is added to the uncorrected root. Decay is L2: it is part of g, of xi too.
    `version="v2"` is the rule above. `"v1"` is what the code first published computed: its gradient before was the live gradient,
    which clearing in place made equal to g, so that xi is sigmoid(|g_1|) once and exactly .5 ever after: Adam at half the rate.
    Here v1 does so however gradients are cleared (torch now clears by default in the way that made v1 equal v2).
    `watch` gets `friction`, xi.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        version: str = "v2",
    ) -> None:
        one_of("version", version, ("v1", "v2"))
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, version=version)

    def update(self, p: Tensor, g: Tensor, state: State, group: dict[str, Any]) -> None:
        """One update of one tensor."""
        (b1, b2), first = group["betas"], "step" not in state
        g = with_decay(p, g, group["weight_decay"])
        m, v = moments(state, p, "m", "v")
        m.mul_(b1).add_(g, alpha=1 - b1)
        v.mul_(b2).addcmul_(g, g, value=1 - b2)
        if group["version"] == "v2":
            friction = torch.sigmoid((g if first else state["before"] - g).abs())
            state["before"] = g.clone()
        else:
            friction = torch.sigmoid(g.abs()) if first else torch.full_like(g, 0.5)
        t = state["step"]
        self.tell(p, friction=friction)
        p.addcdiv_(friction * m, v.sqrt().add_(group["eps"]), value=-group["lr"] * math.sqrt(1 - b2**t) / (1 - b1**t))
