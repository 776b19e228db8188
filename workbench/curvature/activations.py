"""Activations whose first two derivatives are computed once per graph: torch makes the second anew for every product, of a dozen parts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Curve:
    """An elementwise function: its value, `(g, x) -> g f'(x)` as one kernel, and f''(x)."""

    value: Callable[[Tensor], Tensor]
    pulled: Callable[[Tensor, Tensor], Tensor]
    bend: Callable[[Tensor], Tensor]


def _gelu_bend(x: Tensor) -> Tensor:
    return (2 - x.square()) * torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)


def _gelu_tanh_bend(x: Tensor) -> Tensor:
    """Of x (1 + tanh(u)) / 2 with u = sqrt(2/pi) (x + .044715 x^3) [Hendrycks & Gimpel 1606.08415 §2]."""
    c, a = math.sqrt(2 / math.pi), 0.044715
    square = x.square()
    u, inner = c * x * (1 + a * square), c * (1 + 3 * a * square)
    # 1 - tanh^2 as 1 / cosh^2: far out the difference of the former would be all rounding.
    return (inner + x * (3 * a * c * x - torch.tanh(u) * inner.square())) / torch.cosh(u).square()


def _silu_bend(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 - s) * (2 + x * (1 - 2 * s))


_aten = torch.ops.aten
GELU = Curve(F.gelu, _aten.gelu_backward, _gelu_bend)
GELU_TANH = Curve(
    lambda x: F.gelu(x, approximate="tanh"), lambda g, x: _aten.gelu_backward(g, x, approximate="tanh"), _gelu_tanh_bend
)
SILU = Curve(F.silu, _aten.silu_backward, _silu_bend)


class TwiceSmooth(TorchFunctionMode):
    """Within it GELU (both forms) and SiLU are `Curve`s; further derivatives are as right as torch's own."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Torch's hook: every call of torch from Python comes by."""
        how = kwargs or {}
        curve = _curve_of(func, how) if len(args) == 1 else None
        return func(*args, **how) if curve is None else _Value.apply(args[0], curve)


def _curve_of(function: Any, how: dict[str, Any]) -> Curve | None:
    """None for whatever is not called in the plain way."""
    if function is F.gelu and how in ({}, {"approximate": "none"}):
        return GELU
    if function is F.gelu and how == {"approximate": "tanh"}:
        return GELU_TANH
    return SILU if function is F.silu and how in ({}, {"inplace": False}) else None


class _Value(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, curve: Curve) -> Tensor:
        ctx.save_for_backward(x)
        ctx.curve, ctx.slope = curve, None
        return curve.value(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # a graph is being made, of which products will be taken
            ctx.slope = ctx.curve.pulled(torch.ones_like(x), x).detach()
            return _Pulled.apply(grads[0], x, ctx), None
        return ctx.curve.pulled(grads[0], x) if ctx.slope is None else grads[0] * ctx.slope, None


class _Pulled(Function):
    """g f'(x)."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, of: Any) -> Tensor:
        ctx.save_for_backward(g, x)
        ctx.of, ctx.slope, ctx.bent = of, of.slope, g * of.curve.bend(x)
        return g * of.slope

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        if torch.is_grad_enabled():  # what is kept is constant: a graph on top of this one needs it as a function
            g, x = ctx.saved_tensors
            return _Pulled.apply(grads[0], x, ctx.of), grads[0] * g * ctx.of.curve.bend(x), None
        return grads[0] * ctx.slope, grads[0] * ctx.bent, None
