"""Muon for hidden matrices, AdamW for all else, as one optimizer: both are torch's own [Jordan+24; Liu+25 2502.16982]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class MuonAdamW(torch.optim.Optimizer):
    """Groups with `hidden` go to `torch.optim.Muon`, the others to a fused `torch.optim.AdamW`; one state, one list of groups.

    `adjust_lr_fn` is Muon's `match_rms_adamw` unless set, so that one rate serves both; Newton-Schulz steps and coefficients are torch's.
    """

    def __init__(
        self,
        params: list[dict[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.95,
        nesterov: bool = True,
        betas: tuple[float, float] = (0.9, 0.95),
        adjust_lr_fn: str = "match_rms_adamw",
    ) -> None:
        hidden = [group for group in params if group["hidden"] and group["params"]]
        others = [group for group in params if not group["hidden"]]
        self.parts: list[torch.optim.Optimizer] = []
        if hidden:  # a Muon of nothing is refused by torch
            self.parts.append(torch.optim.Muon(hidden, lr=lr, momentum=momentum, nesterov=nesterov, adjust_lr_fn=adjust_lr_fn))
        self.parts.append(torch.optim.AdamW(others, lr=lr, betas=betas, fused=True))
        groups = [group for part in self.parts for group in part.param_groups]
        super().__init__(groups, {})
        self._share()

    def _share(self) -> None:
        """The parts work on this optimizer's groups and state, which loading and moving to a device replace."""
        rest = list(self.param_groups)
        for part in self.parts:
            n = len(part.param_groups)
            part.param_groups, rest, part.state = rest[:n], rest[n:], self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As of any optimizer."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update by both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss
