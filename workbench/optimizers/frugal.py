"""FRUGAL: AdamW on a part of each gradient, a rule without memory on the rest [Zmushko+24 2411.07837; the authors' code]."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from workbench.optimizers.rule import Params, Rule, State, moments, one_of, shrink
from workbench.seeds import torch_generator

PROJECTIONS = ("columns", "rows", "coordinates", "blocks", "svd")
INACTIVE = ("sign_sgd", "sgd", "no")
ORDERS = ("random", "ascending", "descending")

Split = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]
"""From a gradient to its active part, as small as the moments are, and back to the tensor's shape, zero elsewhere."""


class Frugal(Rule):
    """`g = P g + (I - P) g`: AdamW on P g, `inactive` (the sign, the gradient, or nothing, which is GaLore) on the rest.

    P is drawn anew every `update_gap` updates: random `columns`, `rows` or `coordinates`, whole tensors (`blocks`, in `block_order`), or
    the leading singular vectors of the gradient (`svd`, on the shorter side). With `reset_statistics` moments and their
    bias correction then begin again. `density` is the active share of columns, rows, coordinates, tensors or rank, rounded to a whole
    number of them; moments are that much smaller. Only matrices of groups with `projected` (true by default) are split; on all others
    this is AdamW. Decay is decoupled, on everything, before the step. Draws are functions of (`seed`, tensor, number of the draw).

    The order `mirror` of the authors' block variant is not here: what it does is not known for certain. `watch` gets `basis` (svd) or
    `active` (indices) where P is drawn.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        density: float = 0.25,
        update_gap: int = 200,
        projection: str = "columns",
        inactive: str = "sign_sgd",
        reset_statistics: bool = True,
        block_order: str = "random",
        proj_params_lr_scale: float = 1.0,
        inactive_lr_scale: float = 1.0,
        projected: bool = True,
        seed: int = 0,
    ) -> None:
        one_of("projection", projection, PROJECTIONS)
        one_of("inactive", inactive, INACTIVE)
        one_of("block_order", block_order, ORDERS)
        self._chosen: dict[Tensor, tuple[int, Tensor]] = {}
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            density=density,
            update_gap=update_gap,
            projection=projection,
            inactive=inactive,
            reset_statistics=reset_statistics,
            block_order=block_order,
            proj_params_lr_scale=proj_params_lr_scale,
            inactive_lr_scale=inactive_lr_scale,
            projected=projected,
            seed=seed,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._chosen = {}  # a loaded state may be of another seed

    def update(self, p: Tensor, g: Tensor, state: State, group: dict[str, Any]) -> None:
        """One update of one tensor."""
        shrink(p, group["lr"] * group["weight_decay"])
        if not group["projected"] or p.ndim != 2:
            p.add_(_adam(g, state, group), alpha=-group["lr"])
            return
        rate = group["lr"] * group["proj_params_lr_scale"]
        number, within = divmod(state.get("updates", 0), group["update_gap"])
        state["updates"] = state.get("updates", 0) + 1
        if within == 0 and group["reset_statistics"]:
            for name in ("step", "m", "v"):
                state.pop(name, None)
        reduce, restore = self._split(p, g, state, group, number, drawn=within == 0)
        small = reduce(g)
        rest = g - restore(small)
        if small.numel():
            p.add_(restore(_adam(small, state, group)), alpha=-rate)
        if group["inactive"] != "no":
            p.add_(rest.sign() if group["inactive"] == "sign_sgd" else rest, alpha=-rate * group["inactive_lr_scale"])

    def _split(self, p: Tensor, g: Tensor, state: State, group: dict[str, Any], number: int, drawn: bool) -> Split:
        if group["projection"] == "svd":
            if drawn:
                rank = round(group["density"] * min(g.shape))
                u, _, vh = torch.linalg.svd(g, full_matrices=False)
                state["basis"] = (vh[:rank].T if g.shape[0] >= g.shape[1] else u[:, :rank]).contiguous()
                self.tell(p, basis=state["basis"])
            basis: Tensor = state["basis"]
            if g.shape[0] >= g.shape[1]:
                return lambda x: x @ basis, lambda x: x @ basis.T
            return lambda x: basis.T @ x, lambda x: basis @ x
        chosen = self._active(p, group, number)
        if drawn:
            self.tell(p, active=chosen)
        if group["projection"] == "blocks":
            whole = bool(chosen.numel())
            return lambda x: x if whole else x.new_zeros(0), lambda x: x if whole else torch.zeros_like(p)
        if group["projection"] == "coordinates":
            return lambda x: x.flatten()[chosen], lambda x: x.new_zeros(p.numel()).index_copy(0, chosen, x).view_as(p)
        dim = 1 if group["projection"] == "columns" else 0
        return lambda x: x.index_select(dim, chosen), lambda x: torch.zeros_like(p).index_copy(dim, chosen, x)

    def _active(self, p: Tensor, group: dict[str, Any], number: int) -> Tensor:
        """Active indices of draw `number`; they follow from the seed, so that they are kept for speed alone and never saved."""
        if p not in self._chosen or self._chosen[p][0] != number:
            projection, density = group["projection"], group["density"]
            if projection == "blocks":
                active = _blocks(sum(1 for _ in self._matrices()), density, group["block_order"], group["seed"], number)
                mine = next(i for i, q in enumerate(self._matrices()) if q is p)
                chosen = torch.tensor([mine] if mine in active else [], dtype=torch.long)
            else:
                n = {"columns": p.shape[1], "rows": p.shape[0], "coordinates": p.numel()}[projection]
                chosen = _draw(n, density, group["seed"], projection, self.index(p), number)
            self._chosen[p] = number, chosen.to(p.device)
        return self._chosen[p][1]

    def _matrices(self) -> list[Tensor]:
        return [p for group in self.param_groups if group["projected"] for p in group["params"] if p.ndim == 2]


def _draw(n: int, density: float, seed: int, *labels: str | int) -> Tensor:
    order = torch.randperm(n, generator=torch_generator(seed, "frugal", *labels))
    return order[: round(density * n)].sort().values


def _blocks(n: int, density: float, order: str, seed: int, number: int) -> set[int]:
    """Which of n tensors are active in draw `number`: random ones, or the next ones in turn, from the first or from the last."""
    if order == "random":
        return set(_draw(n, density, seed, "blocks", number).tolist())
    k = round(density * n)
    turn = {(number * k + i) % n for i in range(k)}
    return turn if order == "ascending" else {n - 1 - i for i in turn}


def _adam(g: Tensor, state: State, group: dict[str, Any]) -> Tensor:
    """Adam's direction for a gradient, its moments in `state`."""
    b1, b2 = group["betas"]
    m, v = moments(state, g, "m", "v")
    m.mul_(b1).add_(g, alpha=1 - b1)
    v.mul_(b2).addcmul_(g, g, value=1 - b2)
    t = state["step"]
    return m / (1 - b1**t) / (v.sqrt() / math.sqrt(1 - b2**t)).add_(group["eps"])
