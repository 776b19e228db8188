"""AdaBelief: Adam that divides by how far gradients lie from their mean [Zhuang+20 2010.07468 §2; adabelief-pytorch 0.2.1]."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from workbench.optimizers.rule import Params, Rule, State, moments, shrink, with_decay

WARM = 5
"""Length of the averaging (RAdam's rho_t) from which the rectified rule divides by the second moment."""


class AdaBelief(Rule):
    """`s = b2 s + (1 - b2)(g - m)^2 + eps`, with the m just updated and eps kept in s at every step.

    Not rectified: `p -= lr/c1 m / (sqrt(s/c2) + eps)`. Rectified, the default of the authors' 0.2.1: RAdam's factor and the uncorrected
    root once `rho_t >= 5`; before that `p -= lr/c1 m` (`degenerated_to_sgd`) or no step. `amsgrad` takes the running maximum of s, in
    the rule that is not rectified. Decay comes first: decoupled by `lr weight_decay` (by `weight_decay` with `fixed_decay`), or L2 into g.
    The authors' 0.0.5, of the paper's CIFAR runs, is eps 1e-8 with `weight_decouple` and `rectify` off.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-16,
        weight_decay: float = 0.0,
        rectify: bool = True,
        degenerated_to_sgd: bool = True,
        weight_decouple: bool = True,
        fixed_decay: bool = False,
        amsgrad: bool = False,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            rectify=rectify,
            degenerated_to_sgd=degenerated_to_sgd,
            weight_decouple=weight_decouple,
            fixed_decay=fixed_decay,
            amsgrad=amsgrad,
        )

    def update(self, p: Tensor, g: Tensor, state: State, group: dict[str, Any]) -> None:
        """One update of one tensor."""
        (b1, b2), lr, eps, decay = group["betas"], group["lr"], group["eps"], group["weight_decay"]
        if group["weight_decouple"]:
            shrink(p, decay if group["fixed_decay"] else lr * decay)
        else:
            g = with_decay(p, g, decay)
        m, s, *most = moments(state, p, "m", "s", *(["largest"] if group["amsgrad"] else []))
        m.mul_(b1).add_(g, alpha=1 - b1)
        s.mul_(b2).addcmul_(g - m, g - m, value=1 - b2).add_(eps)
        if most:
            torch.maximum(most[0], s, out=most[0])
        t = state["step"]
        c1, c2 = 1 - b1**t, 1 - b2**t
        if not group["rectify"]:
            p.addcdiv_(m, ((most[0] if most else s).sqrt() / math.sqrt(c2)).add_(eps), value=-lr / c1)
            return
        limit = 2 / (1 - b2) - 1
        length = limit - 2 * t * b2**t / c2
        if length >= WARM:
            factor = (length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length)
            p.addcdiv_(m, s.sqrt().add_(eps), value=-lr / c1 * math.sqrt(c2 * factor))
        elif group["degenerated_to_sgd"]:
            p.add_(m, alpha=-lr / c1)
