"""AdamP and SGDP: no step along weights whose length does not matter [Heo+21 2006.08217; the authors' code]."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from workbench.optimizers.rule import Params, Rule, State, moments, shrink


def project(w: Tensor, g: Tensor, direction: Tensor, delta: float, eps: float) -> tuple[Tensor, str]:
    """`direction` without its part along `w`, where the gradient shows that w's length does not matter; and which view showed it.

    First each row `w[i]` alone (`row`), then the whole tensor (`layer`): a view fires when the largest |cos(w, g)| of its rows is
    below `delta / sqrt(columns)`; the first that fires decides, `""` where none does. Vectors are left alone. As published, a row is an
    output of `nn.Linear`; of GPT-2's `Conv1D`, which keeps its matrices transposed, it is an input.
    """
    if w.ndim < 2:
        return direction, ""
    for view, rows in (("row", w.shape[0]), ("layer", 1)):
        flat, slope, step = (x.reshape(rows, -1) for x in (w, g, direction))
        lengths = flat.norm(dim=1).add_(eps)
        cosine = (flat * slope).sum(1).abs() / lengths / slope.norm(dim=1).add_(eps)
        if cosine.max() < delta / math.sqrt(flat.shape[1]):
            unit = flat / lengths[:, None]
            return (step - unit * (unit * step).sum(1, keepdim=True)).reshape(w.shape), view
    return direction, ""


class AdamP(Rule):
    """Adam whose direction `m/(sqrt(v)/sqrt(c2) + eps)` is projected, at the rate lr/c1; `nesterov` puts `b1 m + (1 - b1) g` for m.

    Decay is decoupled, before the step, times `wd_ratio` where the projection fired. `watch` gets `view`: row, layer or nothing.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        nesterov: bool = False,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            delta=delta,
            wd_ratio=wd_ratio,
            nesterov=nesterov,
        )

    def update(self, p: Tensor, g: Tensor, state: State, group: dict[str, Any]) -> None:
        """One update of one tensor."""
        (b1, b2), lr, eps = group["betas"], group["lr"], group["eps"]
        m, v = moments(state, p, "m", "v")
        m.mul_(b1).add_(g, alpha=1 - b1)
        v.mul_(b2).addcmul_(g, g, value=1 - b2)
        t = state["step"]
        ahead = b1 * m + (1 - b1) * g if group["nesterov"] else m
        step = ahead / (v.sqrt() / math.sqrt(1 - b2**t)).add_(eps)
        step, view = project(p, g, step, group["delta"], eps)
        self.tell(p, view=view)
        shrink(p, lr * group["weight_decay"] * (group["wd_ratio"] if view else 1))
        p.add_(step, alpha=-lr / (1 - b1**t))


class SGDP(Rule):
    """SGD with momentum whose direction is projected: `b = momentum b + (1 - dampening) g` from b = 0.

    The direction is b, with `nesterov` g + momentum b. Without `nesterov` the published code also keeps the projected direction as the
    buffer; the paper's algorithm does not. `project_buffer` true, the default, is the code; false is the paper.
    Decay is decoupled: `lr weight_decay ratio / (1 - momentum)`. `watch` gets `view`: row, layer or nothing.
    """

    def __init__(
        self,
        params: Params,
        lr: float,
        momentum: float = 0.0,
        dampening: float = 0.0,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        nesterov: bool = False,
        project_buffer: bool = True,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            eps=eps,
            weight_decay=weight_decay,
            delta=delta,
            wd_ratio=wd_ratio,
            nesterov=nesterov,
            project_buffer=project_buffer,
        )

    def update(self, p: Tensor, g: Tensor, state: State, group: dict[str, Any]) -> None:
        """One update of one tensor."""
        lr, momentum = group["lr"], group["momentum"]
        (buffer,) = moments(state, p, "buffer")
        buffer.mul_(momentum).add_(g, alpha=1 - group["dampening"])
        step = g + momentum * buffer if group["nesterov"] else buffer
        step, view = project(p, g, step, group["delta"], group["eps"])
        self.tell(p, view=view)
        if view and group["project_buffer"] and not group["nesterov"]:
            buffer.copy_(step)
        shrink(p, lr * group["weight_decay"] * (group["wd_ratio"] if view else 1) / (1 - momentum))
        p.add_(step, alpha=-lr)
