"""Hessian, generalised Gauss-Newton matrix, Fisher matrices and the residual, as maps that are exact to rounding.

Only double backward is used: nested reverse mode (`jacrev` inside another derivative) is silently wrong for layer norms with
weights in torch 2.13. The first backward graph of each part is kept, so that a product costs about two gradients; several
columns go through it at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from workbench.curvature.maps import CHUNK, SymmetricMap
from workbench.curvature.objective import Objective, Part
from workbench.examples import Examples
from workbench.models.anatomy import anatomy, blocks, head_shape

AT_ONCE_BELOW = 20_000
"""Parameters below which columns go through the graph together; larger models gain nothing and would need the memory."""
AT_ONCE_PLACES = 8_192
"""Columns times tokens (or rows) that go through at once: on a CPU more of them leave the caches, and cost more than one by one."""
KEPT = 4
"""Graphs of parts that are kept; where there are more parts, each product makes them anew, in the memory of one."""


def hessian(objective: Objective) -> SymmetricMap:
    """H = the second derivative of the mean loss."""

    def products(part: Part) -> Callable[[Tensor, bool], Tensor]:
        with objective.differentiable():
            slopes = objective.slopes(objective.total(objective.outputs(part), part), create_graph=True)
            # Parameters that enter linearly or not at all have slopes without a graph.
            live = [i for i, slope in enumerate(slopes) if slope.requires_grad]

        def times(v: Tensor, many: bool) -> Tensor:
            if not live:
                return torch.zeros_like(v)
            pieces = objective.split(v)
            found = objective.slopes(
                [slopes[i] for i in live],
                len(v) if many else 0,
                grad_outputs=[pieces[i] for i in live],
                retain_graph=True,
            )
            return objective.flat(found, many)

        return times

    return _map(objective, products)


def gauss_newton(objective: Objective) -> SymmetricMap:
    """G = J^T (d2 loss / d outputs2) J / rows: positive semidefinite, the Hessian where the outputs are linear in the parameters.

    Of a cross-entropy it is the Fisher matrix too, with labels drawn from the model.
    """
    return _sandwich(objective, _output_curvature)


def fisher(objective: Objective) -> SymmetricMap:
    """The Fisher matrix of the model's own distribution: of a cross-entropy the Gauss-Newton matrix, exactly, without sampling.

    A squared error is taken as the negative log-likelihood of a normal distribution with variance 1/2, which gives the same.
    """
    return gauss_newton(objective)


def empirical_fisher(objective: Objective) -> SymmetricMap:
    """(1/rows) sum of g g^T over the rows' own gradients, at the true labels: not the Fisher matrix [Kunstner+19 1905.12558]."""
    return _sandwich(objective, _slope_squared)


def residual(objective: Objective) -> SymmetricMap:
    """H - G: what the curvature of the outputs themselves adds; it vanishes with the loss's slopes [Sagun+17 1706.04454 §2]."""
    return hessian(objective) - gauss_newton(objective)


def head_places(objective: Objective, model: nn.Module, block: int, head: int) -> Int[Tensor, " d"]:
    """Places in the flat vector of what belongs to one attention head: its queries, keys, values (and biases), and its output.

    Where heads share keys and values (grouped queries) these belong to the query head's group.
    """
    sites, prefix = anatomy(model), f"model.{anatomy(model).blocks}.{block}."
    module = blocks(model)[block]
    heads = head_shape(model)[1]
    found: list[Tensor] = []
    names = [*sites.attention_in, sites.attention_out]
    for name in names:
        inner = module.get_submodule(name)
        fused = 3 if len(sites.attention_in) == 1 and name != sites.attention_out else 1
        for leaf, parameter in inner.named_parameters():
            full = prefix + name + "." + leaf
            if full not in objective.parameters or (name == sites.attention_out and leaf == "bias"):
                continue
            places = objective.where(full).reshape(parameter.shape)
            if name == sites.attention_out:
                rows = places if not isinstance(inner, nn.Linear) else places.T  # [in, out]
                found.append(rows.reshape(heads, -1, rows.shape[-1])[head].reshape(-1))
                continue
            columns = places if parameter.ndim == 1 or isinstance(inner, nn.Linear) else places.T  # [out, ...]
            width = int(parameter.shape[0] if parameter.ndim == 1 or isinstance(inner, nn.Linear) else parameter.shape[1])
            per = _head_width(module, sites.attention_out, heads)
            groups = width // fused // per
            rows = columns.reshape(fused, groups, per, -1)[:, head * groups // heads]
            found.append(rows.reshape(-1))
    return torch.cat(found)


def _head_width(block: nn.Module, out: str, heads: int) -> int:
    inner = block.get_submodule(out)
    weight = inner.get_parameter("weight")
    return int(weight.shape[1] if isinstance(inner, nn.Linear) else weight.shape[0]) // heads


Middle = Callable[[Objective, Tensor, Part], Callable[[Tensor], Tensor]]
"""From outputs `[m, v]` the product of the matrix between J^T and J with `[..., m, v]`."""


def _output_curvature(objective: Objective, outputs: Tensor, part: Part) -> Callable[[Tensor], Tensor]:
    if objective.criterion == "squared_error":
        return lambda u: 2 * u / objective.rows
    p = outputs.softmax(-1)
    return lambda u: (p * (u - (p * u).sum(-1, keepdim=True))) / objective.rows


def _slope_squared(objective: Objective, outputs: Tensor, part: Part) -> Callable[[Tensor], Tensor]:
    if objective.criterion == "squared_error":
        slope = 2 * (outputs - part.targets.to(outputs.dtype))
    else:
        slope = outputs.softmax(-1) - torch.nn.functional.one_hot(part.targets, outputs.shape[-1])
    return lambda u: slope * (slope * u).sum(-1, keepdim=True) / objective.rows


def _sandwich(objective: Objective, middle: Middle) -> SymmetricMap:
    def products(part: Part) -> Callable[[Tensor, bool], Tensor]:
        with objective.differentiable():
            outputs = objective.outputs(part)
            between = middle(objective, outputs.detach(), part)
            dummy = torch.zeros_like(outputs, requires_grad=True)
            # J^T u is linear in u, so that its derivative along v is J v: a product forward by two backward.
            pulled = objective.slopes(outputs, grad_outputs=dummy, create_graph=True)
            live = [i for i, slope in enumerate(pulled) if slope.requires_grad]

        def times(v: Tensor, many: bool) -> Tensor:
            if not live:
                return torch.zeros_like(v)
            pieces = objective.split(v)
            (pushed,) = torch.autograd.grad(
                [pulled[i] for i in live], (dummy,), [pieces[i] for i in live], retain_graph=True, is_grads_batched=many
            )
            back = objective.slopes(outputs, len(v) if many else 0, grad_outputs=between(pushed), retain_graph=True)
            return objective.flat(back, many)

        return times

    return _map(objective, products)


@dataclass(frozen=True)
class _Parts:
    """Products summed over the parts; graphs are kept where they are few."""

    objective: Objective
    products: Callable[[Part], Callable[[Tensor, bool], Tensor]]

    @cached_property
    def _kept(self) -> list[Callable[[Tensor, bool], Tensor]] | None:
        few = len(self.objective.parts) <= KEPT
        return [self.products(part) for part in self.objective.parts] if few else None

    def apply(self, v: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        most = max(1, min(CHUNK, AT_ONCE_PLACES // max(_places(part) for part in self.objective.parts)))
        at_once = most if self.objective.size < AT_ONCE_BELOW else 1
        total = torch.zeros(v.shape[1], v.shape[0], dtype=v.dtype, device=v.device)
        for part in self._kept or map(self.products, self.objective.parts):
            for start in range(0, v.shape[1], at_once):
                rows = v.T[start : start + at_once].contiguous()
                total[start : start + at_once] += part(rows, True) if len(rows) > 1 else part(rows[0], False)[None]
        return total.T.contiguous()


def _places(part: Part) -> int:
    """How many places the model computes: tokens of examples, else rows."""
    first = part.inputs[0] if isinstance(part.inputs, tuple) else part.inputs
    return first.tokens.numel() if isinstance(first, Examples) else len(part.targets)


def _map(objective: Objective, products: Callable[[Part], Callable[[Tensor, bool], Tensor]]) -> SymmetricMap:
    return SymmetricMap(objective.size, _Parts(objective, products).apply, objective.dtype, objective.device)
