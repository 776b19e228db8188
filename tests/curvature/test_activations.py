"""Activations with their derivatives kept are those of torch, to rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.curvature.activations import TwiceSmooth

CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "nn_gelu": nn.GELU(),
    "nn_silu": nn.SiLU(),
}


def _derivatives(f: Callable[[Tensor], Tensor], many: bool = False) -> tuple[Tensor, ...]:
    """Value, slope, and the derivative of `slope * g` along x and along g, at points far and near, large slopes and small."""
    x = torch.linspace(-9, 9, 181, dtype=torch.float64).requires_grad_()
    g = torch.linspace(-2, 3, 181, dtype=torch.float64).requires_grad_()
    y = f(x)
    (slope,) = torch.autograd.grad(y, x, g, create_graph=True)
    w = torch.randn(*((3,) if many else ()), 181, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bent = torch.autograd.grad(slope, (x, g), w, is_grads_batched=many, retain_graph=True)
    again = torch.autograd.grad(y, x, w, is_grads_batched=many)
    return y.detach(), slope.detach(), *bent, *again


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
def test_two_derivatives_are_those_of_torch(name: str, many: bool) -> None:
    plain = _derivatives(CALLS[name], many)
    with TwiceSmooth():
        ours = _derivatives(CALLS[name], many)
    assert torch.equal(ours[0], plain[0])
    for mine, theirs in zip(ours[1:], plain[1:], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)


def test_products_are_cheaper_in_steps_of_the_graph() -> None:
    """What this is for: the graph of the slope has one node where torch's has its own second backward."""
    x = torch.zeros(3, requires_grad=True)
    with TwiceSmooth():
        (slope,) = torch.autograd.grad(F.gelu(x).sum(), x, create_graph=True)
    assert "_Pulled" in slope.grad_fn.name()  # pyright: ignore


@pytest.mark.parametrize("name", CALLS)
def test_further_derivatives_are_those_of_torch_too(name: str) -> None:
    def third() -> tuple[Tensor, ...]:
        x = torch.linspace(-5, 5, 41, dtype=torch.float64).requires_grad_()
        g = torch.linspace(-2, 3, 41, dtype=torch.float64).requires_grad_()
        w = torch.linspace(2, 1, 41, dtype=torch.float64).requires_grad_()
        (slope,) = torch.autograd.grad(CALLS[name](x), x, g, create_graph=True)
        bent = torch.autograd.grad(slope, (x, g), w, create_graph=True)
        return torch.autograd.grad([b.sum() for b in bent], (x, g, w))

    plain = third()
    with TwiceSmooth():
        ours = third()
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("how", [{"inplace": True}])
def test_other_calls_are_left_alone(how: dict[str, Any]) -> None:
    x = torch.linspace(-1, 1, 5)
    with TwiceSmooth():
        assert F.silu(x, **how) is x
        assert torch.equal(torch.relu(x), x.clamp(min=0))
