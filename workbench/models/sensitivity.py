"""Derivatives of the answers' loss with respect to projections: mean and per-example gradients, and the Hessian's diagonal.

All come in the layout `[out, in]`, for the mean negative log-likelihood L of the answers in nats. No parameter receives a
gradient, and hooks are gone afterwards.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from workbench.errors import UserError
from workbench.examples import Examples
from workbench.models.anatomy import is_known, neuron_shape
from workbench.models.forward import nll
from workbench.seeds import torch_generator

EXACT_AT_MOST = 20_000
"""Entries of a Hessian's diagonal that are taken one by one at most: each costs a backward pass."""

SLOPE_BYTES = 384 * 2**20
"""What one batch may keep for the way back; batches shrink to fit."""


def slopes_at_once(model: PreTrainedModel, examples: Examples, most: int) -> int:
    """Of how many examples what a backward pass needs fits into `SLOPE_BYTES`; at least 1, at most `most`.

    Of each block and token it keeps about eight floats a hidden neuron (the nonlinearity's parts) and ten a dimension.
    """
    if not is_known(model):
        return most
    depth, neurons = neuron_shape(model)
    each = 4 * examples.tokens.shape[1] * depth * (8 * neurons + 10 * int(model.config.hidden_size))
    return max(1, min(most, SLOPE_BYTES // each))


@contextmanager
def inputs_of(modules: Sequence[nn.Module]) -> Generator[list[Tensor]]:
    """The inputs of modules, in the order given, once a forward pass inside the context has filled the list."""
    found: list[Tensor] = [torch.empty(0)] * len(modules)
    with ExitStack() as stack:
        for index, module in enumerate(modules):

            def keep(_: nn.Module, inputs: tuple[Any, ...], index: int = index) -> None:
                found[index] = inputs[0]

            stack.callback(module.register_forward_pre_hook(keep).remove)
        yield found


def _weights(modules: Sequence[nn.Module]) -> list[Tensor]:
    return [module.get_parameter("weight") for module in modules]


def _rows(module: nn.Module, like_weight: Tensor) -> Float[Tensor, "out in"]:
    return like_weight if isinstance(module, nn.Linear) else like_weight.T


def _batches(model: PreTrainedModel, examples: Examples, most: int, share: int = 1) -> list[Examples]:
    size = max(1, min(most, slopes_at_once(model, examples, most * share) // share))
    return [examples[start : start + size].to(model.device) for start in range(0, len(examples), size)]


def mean_gradients(
    model: PreTrainedModel, modules: Sequence[nn.Module], examples: Examples, batch_size: int = 128
) -> list[Float[Tensor, "out in"]]:
    """dL/dW of each projection."""
    weights = _weights(modules)
    totals = [torch.zeros_like(w) for w in weights]
    with torch.enable_grad():
        for batch in _batches(model, examples, batch_size):
            slopes = torch.autograd.grad(nll(model, batch).sum(), weights)
            totals = [total + slope for total, slope in zip(totals, slopes, strict=True)]
    return [_rows(module, total / len(examples)) for module, total in zip(modules, totals, strict=True)]


def mean_sizes(
    model: PreTrainedModel, modules: Sequence[nn.Module], examples: Examples, batch_size: int = 64
) -> list[Float[Tensor, "out in"]]:
    """E|dL_x/dW| of each projection over the examples x, entry by entry.

    The gradient of one example is the sum over its tokens of (gradient of the output) (input)', so one backward pass serves a
    whole batch. Memory: `batch_size * out * in` floats at a time.
    """
    totals = [torch.zeros_like(_rows(m, w)) for m, w in zip(modules, _weights(modules), strict=True)]
    inputs, outputs = [torch.empty(0)] * len(modules), [torch.empty(0)] * len(modules)
    with torch.enable_grad(), ExitStack() as stack:
        for index, module in enumerate(modules):
            # After the pass, not before: the last block's projections are handed the answer's positions alone.
            def keep(_: nn.Module, given: tuple[Any, ...], output: Tensor, index: int = index) -> None:
                inputs[index], outputs[index] = given[0], output

            stack.callback(module.register_forward_hook(keep).remove)
        for batch in _batches(model, examples, batch_size):
            slopes = torch.autograd.grad(nll(model, batch).sum(), outputs)
            for total, slope, given in zip(totals, slopes, inputs, strict=True):
                total += torch.einsum("nto,nti->noi", slope, given.detach()).abs().sum(0)
    return [total / len(examples) for total in totals]


def hessian_diagonals(
    model: PreTrainedModel,
    modules: Sequence[nn.Module],
    examples: Examples,
    probes: int | None,
    seed: int = 0,
    batch_size: int = 128,
) -> list[Float[Tensor, "out in"]]:
    """d2L/dW2 entry by entry, by double backward in math attention (the fast kernels have no second derivative).

    Args:
        model: whose loss.
        modules: the projections.
        examples: of the answers.
        probes: Rademacher vectors v of Hutchinson's estimate, the mean of v * Hv, which is unbiased; the variance of an entry
            is the sum of squares of its row off the diagonal, over `probes`. None: exact, one backward pass per entry.
        seed: of the probes.
        batch_size: examples at a time.

    Raises:
        UserError: exact, with more entries than `EXACT_AT_MOST`.
    """
    weights = _weights(modules)
    entries = sum(w.numel() for w in weights)
    if probes is None and entries > EXACT_AT_MOST:
        raise UserError(
            f"an exact Hessian diagonal of {entries:,} entries needs as many backward passes (at most {EXACT_AT_MOST:,}); "
            "give a number of probes."
        )
    generator = torch_generator(seed, "obd probes")
    signs = [
        [(2 * torch.randint(0, 2, w.shape, generator=generator) - 1).to(w.device, w.dtype) for w in weights]
        for _ in range(probes or 0)
    ]
    totals = [torch.zeros_like(w) for w in weights]
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        # The slopes have a graph of their own, and math attention keeps its patterns.
        for batch in _batches(model, examples, batch_size, share=6):
            slopes = torch.autograd.grad(nll(model, batch).sum() / len(examples), weights, create_graph=True)
            if probes is None:
                for total, weight, slope in zip(totals, weights, slopes, strict=True):
                    for i, entry in enumerate(slope.flatten()):
                        total.view(-1)[i] += torch.autograd.grad(entry, weight, retain_graph=True)[0].flatten()[i]
            for v in signs:
                products = torch.autograd.grad(slopes, weights, v, retain_graph=True)
                for total, sign, product in zip(totals, v, products, strict=True):
                    total += sign * product / len(signs)
    return [_rows(module, total) for module, total in zip(modules, totals, strict=True)]
