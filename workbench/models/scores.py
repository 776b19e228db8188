"""Scores that rank the units of a model for removal; for each, which end goes first and why.

Loss L: mean negative log-likelihood of the answers in nats. Own weights of a unit: see `Units`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.errors import UserError, did_you_mean
from workbench.examples import Examples
from workbench.models.anatomy import anatomy, blocks, head_mask, head_shape, matrix, neuron_mask, neuron_shape
from workbench.models.forward import hidden_states, nll
from workbench.models.leave_one_out import leave_one_out
from workbench.models.sensitivity import hessian_diagonals, inputs_of, mean_gradients, mean_sizes, slopes_at_once
from workbench.models.units import Units
from workbench.seeds import torch_generator

PROTECTED = 0.1
"""Share of the units, those of the largest SNIP score on each set of examples to protect, that a set difference leaves out."""
ScoreName = Literal[
    "signed_taylor",
    "input_taylor",
    "abs_taylor",
    "snip",
    "wanda",
    "magnitude",
    "activation",
    "difference",
    "obd",
    "leave_one_out",
    "leave_one_out_accuracy",
    "set_difference",
    "random",
]


@dataclass(frozen=True)
class Request:
    """What a score may look at."""

    model: PreTrainedModel
    units: Units
    examples: Examples
    """Of the ability that removal should bring back."""
    base: PreTrainedModel | None = None
    """The model before fine-tuning, for `difference`."""
    protect: Sequence[Callable[[], Examples]] = ()
    """Draw examples of the abilities that removal should leave alone; `set_difference` alone calls them."""
    seed: int = 0
    probes: int | None = 32
    """Random probes of `obd`; None: every second derivative exactly, one backward pass each."""


@dataclass(frozen=True)
class Score:
    """One way to rank units."""

    of: Callable[[Request], Float[Tensor, " units"]]
    largest_first: bool
    """Which end is removed first."""
    unit: str
    why: str
    """Why that end."""
    words: tuple[str, ...] = ("neurons", "heads", "rows", "weights")
    """Kinds of unit for which it is defined."""


def score_units(name: str, request: Request) -> Float[Tensor, " units"]:
    """A score by name, one number per unit, on the CPU; the model is left as it was.

    Raises:
        UserError: no such score, or it is not defined for this kind of unit.
    """
    if name not in SCORES:
        raise UserError(f"there is no score {name!r}{did_you_mean(name, SCORES)}")
    if misfit := undefined_for(name, request.units.kind):
        raise UserError(f"{misfit}.")
    return SCORES[name].of(request).detach().cpu()


def undefined_for(name: str, kind: str) -> str:
    """Says that a score is not defined for this kind of unit, and which ones are; empty where it is."""
    word = kind.partition(":")[0]
    if word in SCORES[name].words:
        return ""
    return (
        f"score {name!r} is not defined for {kind}; choose one of {', '.join(n for n, s in SCORES.items() if word in s.words)}"
    )


def order_of(name: str, scores: Float[Tensor, " units"]) -> Int[Tensor, " units"]:
    """Numbers of the units, what goes first first."""
    return rank(scores if SCORES[name].largest_first else -scores)


def rank(scores: Float[Tensor, "*shape"]) -> Int[Tensor, " units"]:
    """Flat indices of the units, the largest score first; equal scores in the order of the network."""
    return torch.sort(scores.flatten(), descending=True, stable=True).indices


def unit_scores(
    model: PreTrainedModel, examples: Examples, batch_size: int = 128, word: str = "neurons"
) -> Float[Tensor, "blocks units"]:
    """dL/dm per hidden neuron (or head), m a mask of ones on what it writes.

    Positive: the unit raises the loss, and removing it lowers it. No parameter receives a gradient.
    """
    shape, masked = (neuron_shape, neuron_mask) if word == "neurons" else (head_shape, head_mask)
    mask = torch.ones(shape(model), device=model.device, dtype=model.dtype, requires_grad=True)
    total = torch.zeros_like(mask)
    with torch.enable_grad(), masked(model, mask):
        size = slopes_at_once(model, examples, batch_size)
        for start in range(0, len(examples), size):
            batch = examples[start : start + size].to(model.device)
            total += torch.autograd.grad(nll(model, batch).sum(), mask)[0]
    return (total / len(examples)).detach().cpu()


def random_order(units: int, seed: int, index: int) -> Int[Tensor, " units"]:
    """A random order of the units, one per `index`."""
    return torch.randperm(units, generator=torch_generator(seed, "random units", index))


def _own(units: Units, model: nn.Module, values: Callable[[int, nn.Module], Tensor]) -> Float[Tensor, " units"]:
    """Entries per own matrix `[out, in]`, summed over the own weights of every unit."""
    modules = units.modules(model)
    return torch.cat([units.sums(p, values(i, m)) for i, (p, m) in enumerate(zip(units.parts, modules, strict=True))]).detach()


def _signed_taylor(request: Request) -> Tensor:
    """Sum theta dL/dtheta over the own weights; for neurons and heads it equals dL/dm of a mask m on what they write."""
    if request.units.word in ("neurons", "heads"):
        return unit_scores(request.model, request.examples, word=request.units.word).flatten()
    return _products(request, torch.Tensor.clone)


def _abs_taylor(request: Request) -> Tensor:
    """Sum |theta dL/dtheta| over the own weights."""
    return _products(request, torch.abs)


def _products(request: Request, sign: Callable[[Tensor], Tensor]) -> Tensor:
    modules = request.units.modules(request.model)
    slopes = mean_gradients(request.model, modules, request.examples)
    return _own(request.units, request.model, lambda i, module: sign(matrix(module) * slopes[i]))


def _input_taylor(request: Request) -> Tensor:
    """sum_j theta_ij dL/dtheta_ij over a neuron's input row (both rows of a gated one) [Jain+23 §D, Alg. 3, read literally]."""
    modules = _inner(request.model)
    slopes = mean_gradients(request.model, modules, request.examples)
    rows = torch.stack([(matrix(m) * g).sum(1) for m, g in zip(modules, slopes, strict=True)])
    return rows.view(len(blocks(request.model)), -1, rows.shape[1]).sum(1).flatten()


def _snip(request: Request) -> Tensor:
    """Sum over the own weights of E|theta dL_x/dtheta|, L_x the loss of one example x [2402.05162]."""
    sizes = mean_sizes(request.model, request.units.modules(request.model), request.examples)
    return _own(request.units, request.model, lambda i, module: matrix(module).abs() * sizes[i])


def _wanda(request: Request) -> Tensor:
    """Sum over the own weights of |W_ij| ||X_j||, X_j all values of input j of the matrix that the answer can see [2402.05162]."""
    squares = [size for size, _ in _inputs(request, torch.square)]
    return _own(request.units, request.model, lambda i, module: matrix(module).abs() * squares[i].sqrt())


def _activation(request: Request) -> Tensor:
    """Mean |activation| of a neuron, or of the dimensions of a head, where the answer can see it."""
    found = zip(request.units.parts, _inputs(request, torch.abs), strict=True)
    return torch.cat([size.view(part.count, -1).mean(1) / tokens for part, (size, tokens) in found])


@torch.no_grad()
def _inputs(request: Request, of: Callable[[Tensor], Tensor], batch_size: int = 128) -> list[tuple[Float[Tensor, " in"], int]]:
    """A function of what each own matrix reads, summed over the tokens that the answer can see through it, and their number.

    What the answer cannot see has no part in it: in a causal model the tokens behind it, and in the last block, where only
    keys and values of other tokens reach the answer, all tokens but its own.
    """
    model, modules, sites = request.model, request.units.modules(request.model), anatomy(request.model)
    at_answer = {sites.attention_out, *sites.mlp_in, sites.mlp_out}
    if len(sites.attention_in) > 1:  # queries by themselves; a fused matrix holds keys and values too
        at_answer.add(sites.attention_in[0])
    last = len(blocks(model)) - 1
    narrow = [part.block == last and part.path in at_answer for part in request.units.parts]
    sums, tokens = [torch.zeros((), device=model.device)] * len(modules), [0] * len(modules)
    for start in range(0, len(request.examples), batch_size):
        batch = request.examples[start : start + batch_size].to(model.device)
        length = int(batch.answer_position.max()) + 1 if sites.causal else batch.tokens.shape[1]
        place, answer = torch.arange(length, device=model.device).expand(len(batch), -1), batch.answer_position[:, None]
        seen = place <= answer if sites.causal else torch.ones_like(place, dtype=torch.bool)
        if batch.attention_mask is not None:
            seen = seen & batch.attention_mask[:, :length]
        with inputs_of(modules) as found:
            hidden_states(model, batch, length)
        shown = [place == answer if alone else seen for alone in narrow]
        sums = [total + of(inputs[at]).sum(0) for total, inputs, at in zip(sums, found, shown, strict=True)]
        tokens = [count + int(at.sum()) for count, at in zip(tokens, shown, strict=True)]
    return list(zip(sums, tokens, strict=True))


def _magnitude(request: Request) -> Tensor:
    """Sum |theta| over the own weights; for neurons over their input rows and biases too."""
    return _sizes(request, lambda path, entries: entries.abs())


def _difference(request: Request) -> Tensor:
    """Sum |theta - theta_base| over the same weights as `magnitude`."""
    if request.base is None:
        raise UserError("score 'difference' needs the model before fine-tuning; give a pair with a base.")
    base = dict(request.base.named_parameters())
    return _sizes(request, lambda path, entries: (entries - base[path]).abs())


def _sizes(request: Request, of: Callable[[str, Tensor], Tensor]) -> Tensor:
    model, units = request.model, request.units
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def entries(module: nn.Module) -> Tensor:
        weight = module.get_parameter("weight")
        found = of(names[id(weight)], weight)
        return found if isinstance(module, nn.Linear) else found.T

    with torch.no_grad():
        total = _own(units, model, lambda _, module: entries(module))
        if units.word == "neurons":
            for module, part in zip(_inner(model), [p for p in units.parts for _ in anatomy(model).mlp_in], strict=True):
                rows = entries(module).sum(1)
                bias = dict(module.named_parameters()).get("bias")
                if bias is not None:
                    rows = rows + of(names[id(bias)], bias)
                start = part.block * part.count
                total[start : start + part.count] += rows
    return total


def _inner(model: nn.Module) -> list[nn.Module]:
    """The matrices that neurons read, block by block: one, or gate and up."""
    return [block.get_submodule(path) for block in blocks(model) for path in anatomy(model).mlp_in]


def _obd(request: Request) -> Tensor:
    """1/2 sum h theta^2 over the own weights, h = d2L/dtheta2: what removal costs at a minimum of L [LeCun+ 1990]."""
    diagonals = hessian_diagonals(
        request.model, request.units.modules(request.model), request.examples, request.probes, request.seed
    )
    return _own(request.units, request.model, lambda i, module: 0.5 * matrix(module).square() * diagonals[i])


def _left_out(request: Request) -> Tensor:
    """How much lower L is without the unit, exactly."""
    return -leave_one_out(request.model, request.examples, request.units.word).loss.flatten()


def _left_out_accuracy(request: Request) -> Tensor:
    """How much higher the accuracy is without the unit, exactly; many units tie."""
    return leave_one_out(request.model, request.examples, request.units.word).accuracy.flatten()


def _set_difference(request: Request) -> Tensor:
    """The order of `signed_taylor`, with the units that another ability needs most moved to its end [2402.05162].

    Needed most: among the largest `PROTECTED` share by SNIP on one of the sets to protect. The number is the unit's place
    from the end.
    """
    order = rank(_signed_taylor(request)).cpu()
    kept = torch.zeros(len(order), dtype=torch.bool)
    for drawn in request.protect:
        needed = _snip(replace(request, examples=drawn())).cpu()
        kept[rank(needed)[: round(PROTECTED * len(order))]] = True
    order = torch.cat([order[~kept[order]], order[kept[order]]])
    return torch.empty(len(order)).scatter(0, order, torch.arange(len(order), 0, -1, dtype=torch.float32))


def _random(request: Request) -> Tensor:
    """The order number -1 of the control's stream, as places from the end."""
    order = random_order(len(request.units), request.seed, -1)
    return torch.empty(len(order)).scatter(0, order, torch.arange(len(order), 0, -1, dtype=torch.float32))


_HARM = "removing the largest lowers the loss most"
_NEED = "a size without a sign cannot tell harm from use: what the ability needs least goes first"
SCORES: Mapping[str, Score] = {
    "signed_taylor": Score(_signed_taylor, True, "nats", f"{_HARM}, to first order"),
    "input_taylor": Score(_input_taylor, True, "nats", f"{_HARM}, to first order in the input row alone", ("neurons",)),
    "abs_taylor": Score(_abs_taylor, False, "nats", _NEED),
    "snip": Score(_snip, False, "nats", _NEED),
    "wanda": Score(_wanda, False, "weight x activation", _NEED),
    "magnitude": Score(_magnitude, False, "weight", _NEED),
    "activation": Score(_activation, False, "activation", _NEED, ("neurons", "heads")),
    "difference": Score(_difference, True, "weight", "what fine-tuning changed most goes first"),
    "obd": Score(_obd, False, "nats", "the smallest second-order rise of the loss goes first; it may be negative"),
    "leave_one_out": Score(_left_out, True, "nats", f"{_HARM}, one unit at a time", ("neurons", "heads")),
    "leave_one_out_accuracy": Score(_left_out_accuracy, True, "accuracy", "the largest gain goes first", ("neurons", "heads")),
    "set_difference": Score(_set_difference, True, "place", f"{_HARM} among units that other abilities do not need"),
    "random": Score(_random, True, "place", "any order is as good as another: the control"),
}
