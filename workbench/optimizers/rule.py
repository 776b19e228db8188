"""What update rules share: one tensor at a time, decay, and settings that are refused with a sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from workbench.errors import UserError

Params = Iterable[Tensor] | Iterable[dict[str, Any]]
State = dict[str, Any]
"""One tensor's memory between updates: tensors of its own shape family, whole numbers, floats. All of it survives `save_state`."""
Watch = Callable[[Tensor, Mapping[str, Any]], None]


class Rule(torch.optim.Optimizer):
    """An optimizer given by `update`, the rule for one tensor.

    Counters are plain numbers and moments have the dtype of their tensor, so that `state_dict` and `load_state_dict` change no bit.
    """

    watch: Watch | None = None
    """Set on an instance, it is told what a rule computed inside an update and then forgets, such as diffGrad's friction."""

    def __init__(self, params: Params, **settings: Any) -> None:
        check(settings)
        super().__init__(params, settings)

    def update(self, p: Tensor, g: Tensor, state: State, group: dict[str, Any]) -> None:
        """Change `p` in place, given its gradient `g`, which stays as it is."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every tensor that has a gradient; the closure's loss where one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.update(p, p.grad, self.state[p], group)
        return loss

    def tell(self, p: Tensor, **facts: Any) -> None:
        """Hand facts of this update to `watch`, if anybody does."""
        if self.watch is not None:
            self.watch(p, facts)

    def index(self, p: Tensor) -> int:
        """The number of a tensor, in the order of the groups: what a draw for it is named by."""
        return next(i for i, q in enumerate(self.tensors()) if q is p)

    def tensors(self) -> list[Tensor]:
        """All tensors in the order of the groups."""
        return [p for group in self.param_groups for p in group["params"]]


_BOUNDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "lr": (lambda x: x >= 0, "must be at least 0"),
    "betas": (lambda x: len(x) == 2 and all(0 <= b < 1 for b in x), "must be two numbers from 0 to below 1"),
    "momentum": (lambda x: 0 <= x < 1, "must be from 0 to below 1"),
    "eps": (lambda x: x >= 0, "must be at least 0"),
    "weight_decay": (lambda x: x >= 0, "must be at least 0"),
    "density": (lambda x: 0 <= x <= 1, "must be from 0 to 1"),
    "update_gap": (lambda x: x >= 1, "must be at least 1"),
    "inverse_temperature": (lambda x: x > 0, "must be more than 0"),
}


def check(settings: Mapping[str, Any]) -> None:
    """Refuse settings outside their bounds.

    Raises:
        UserError: naming the first one and its value.
    """
    for name, value in settings.items():
        if name in _BOUNDS and not _BOUNDS[name][0](value):
            raise UserError(f"{name} is {value!r}: it {_BOUNDS[name][1]}.")


def one_of(name: str, value: str, known: Iterable[str]) -> str:
    """`value`, if it is a known word.

    Raises:
        UserError: it is none.
    """
    words = list(known)
    if value not in words:
        raise UserError(f"{name} is {value!r}: it must be one of {', '.join(words)}.")
    return value


def shrink(p: Tensor, factor: float) -> None:
    """Decoupled decay: `p *= 1 - factor`, before the step."""
    if factor:
        p.mul_(1 - factor)


def with_decay(p: Tensor, g: Tensor, weight_decay: float) -> Tensor:
    """Decay as an L2 penalty: `g + weight_decay p`."""
    return g.add(p, alpha=weight_decay) if weight_decay else g


def moments(state: State, like: Tensor, *names: str) -> list[Tensor]:
    """These moments, zero before the first update; `state["step"]` counts this one in."""
    if "step" not in state:
        state["step"] = 0
        state.update({name: torch.zeros_like(like, memory_format=torch.preserve_format) for name in names})
    state["step"] += 1
    return [state[name] for name in names]
