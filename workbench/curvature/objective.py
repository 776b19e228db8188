"""The loss as a function of a model's parameters: which model, which data, which loss, in which precision.

The model itself is never touched: all work is done on a copy in evaluation mode, in math attention (the only one that
has a second derivative on every device).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from workbench.curvature.activations import TwiceSmooth
from workbench.errors import UserError
from workbench.examples import Examples
from workbench.models.anatomy import last_block_at
from workbench.models.forward import answer_tokens, logits_where
from workbench.models.sensitivity import SLOPE_BYTES, slopes_at_once

Criterion = Literal["cross_entropy", "squared_error"]
DOUBLE_BELOW = 200_000
"""Parameters below which everything is done in double precision; above, float32 (products are then good to about 1e-7)."""
TOKENS = 16_384
"""Tokens of one part at most, where the caller does not say; fewer where the activations of so many would take `PART_BYTES`."""
PART_BYTES = SLOPE_BYTES // 2
"""Room for the activations of one part: its graph, a few times that, is held between products."""


@dataclass(frozen=True)
class Part:
    """What the module is called with, and what is right: class ids `[m]`, or values `[m, v]` for a squared error."""

    inputs: Any
    targets: Tensor
    owners: Tensor | None = None
    """Which example each row belongs to `[m]`, where an example has several."""


class Objective:
    """Mean loss over all rows of all parts, as a function of one flat vector of parameters.

    Frozen parameters are left out, tied ones count once, unused ones have derivative 0. Order: `named_parameters()`, row-major.
    """

    def __init__(
        self,
        module: nn.Module,
        parts: Iterable[Part],
        criterion: Criterion = "cross_entropy",
        *,
        parameters: Sequence[str] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """A copy of the module is taken.

        Args:
            module: called with a part's inputs it gives outputs `[m, v]`.
            parts: at least one; rows of all parts weigh the same.
            criterion: softmax cross-entropy in nats, or the squared error summed over a row's outputs.
            parameters: names, or beginnings of names up to a dot, of what is to vary; all that are not frozen when None.
            dtype: double below 200,000 parameters, else float32, when None.

        Raises:
            UserError: no parts, no such parameter, nothing that varies, or a loss that is not finite.
        """
        self.parts = tuple(parts)
        if not self.parts or not sum(len(part.targets) for part in self.parts):
            raise UserError("a loss needs data, and there are 0 rows; give at least one example.")
        self.criterion: Criterion = criterion
        self.notes = _randomness(module)
        self.module = copy.deepcopy(module).eval()
        for parameter in self.module.parameters():
            parameter.grad = None
        free = {name: p for name, p in self.module.named_parameters() if p.requires_grad and p.is_floating_point()}
        chosen = _chosen(free, parameters)
        self.size = sum(free[name].numel() for name in chosen)
        self.dtype = dtype or (torch.float64 if self.size < DOUBLE_BELOW else torch.float32)
        self.module.to(self.dtype)
        _keep_precision(self.module)
        self.parameters = {name: p for name, p in self.module.named_parameters() if name in set(chosen)}
        for name, p in self.module.named_parameters():
            p.requires_grad_(name in self.parameters)
        self.device = next(iter(self.parameters.values())).device
        self.rows = sum(len(part.targets) for part in self.parts)
        loss = self.loss()
        if not math.isfinite(loss):
            raise UserError(f"the loss of this model on these data is {loss}; it has no curvature. Check the weights.")

    @contextmanager
    def differentiable(self) -> Generator[None]:
        """Where attention can be differentiated twice, and activations at little cost."""
        with sdpa_kernel(SDPBackend.MATH), torch.enable_grad(), TwiceSmooth():
            yield

    def outputs(self, part: Part) -> Float[Tensor, "m v"]:
        """What the module says; call it inside `differentiable`."""
        return self.module(part.inputs)

    def losses(self, outputs: Float[Tensor, "m v"], part: Part) -> Float[Tensor, " m"]:
        """The loss of each row."""
        if self.criterion == "cross_entropy":
            return F.cross_entropy(outputs, part.targets, reduction="none")
        return (outputs - part.targets.to(outputs.dtype)).square().sum(-1)

    def total(self, outputs: Float[Tensor, "m v"], part: Part) -> Float[Tensor, ""]:
        """A part's share of the mean loss."""
        return self.losses(outputs, part).sum() / self.rows

    @torch.no_grad()
    def loss(self) -> float:
        """The mean loss (nats, or squared error)."""
        return float(sum(self.total(self.outputs(part), part).double() for part in self.parts))

    def gradient(self) -> Float[Tensor, " n"]:
        """Its gradient, flat."""
        total = torch.zeros(self.size, dtype=self.dtype, device=self.device)
        with self.differentiable():
            for part in self.parts:
                total += self.flat(self.slopes(self.total(self.outputs(part), part)))
        return total

    def slopes(self, value: Tensor | Sequence[Tensor], many: int = 0, **how: Any) -> tuple[Tensor, ...]:
        """Derivatives with respect to the parameters; zeros for those that play no part.

        `many`: `grad_outputs` and what comes back have a leading dimension of so many.
        """
        parameters = tuple(self.parameters.values())
        found: Any = torch.autograd.grad(value, parameters, allow_unused=True, is_grads_batched=many > 0, **how)
        # autograd's own zeros would lack the leading dimension.
        lead = (many,) if many else ()
        return tuple(p.new_zeros(*lead, *p.shape) if x is None else x for p, x in zip(parameters, found, strict=True))

    def flat(self, per_parameter: Sequence[Tensor], many: bool = False) -> Tensor:
        """`[n]` from one tensor per parameter; `[k, n]` where each has a leading dimension."""
        if many:
            return torch.cat([x.reshape(len(x), -1) for x in per_parameter], dim=1)
        return torch.cat([x.reshape(-1) for x in per_parameter])

    def split(self, vector: Float[Tensor, "*k n"]) -> tuple[Tensor, ...]:
        """One tensor of the parameter's shape each, behind any leading dimensions."""
        sizes = [p.numel() for p in self.parameters.values()]
        pieces = vector.split(sizes, dim=-1)
        return tuple(x.reshape(*vector.shape[:-1], *p.shape) for x, p in zip(pieces, self.parameters.values(), strict=True))

    @property
    def owners(self) -> Int[Tensor, " rows"]:
        """Which example each row belongs to; every row is one where nothing else is said."""
        found, start = list[Tensor](), 0
        for part in self.parts:
            own = part.owners
            found.append(torch.arange(start, start + len(part.targets)) if own is None else own.cpu())
            start += len(part.targets)
        return torch.cat(found)

    def vector(self) -> Float[Tensor, " n"]:
        """The parameters, flat (a copy)."""
        return self.flat([p.detach() for p in self.parameters.values()]).clone()

    @torch.no_grad()
    def put(self, vector: Float[Tensor, " n"]) -> None:
        """Move to other parameters; products that were made before belong to the old ones."""
        for p, new in zip(self.parameters.values(), self.split(vector), strict=True):
            p.copy_(new)

    def where(self, *names: str) -> Int[Tensor, " d"]:
        """Places in the flat vector of parameters with these names, or whose names begin with them up to a dot."""
        wanted = set(_chosen(self.parameters, names))
        found, start = list[Tensor](), 0
        for name, p in self.parameters.items():
            if name in wanted:
                found.append(torch.arange(start, start + p.numel(), device=self.device))
            start += p.numel()
        return torch.cat(found)


def _chosen(free: dict[str, nn.Parameter], wanted: Sequence[str] | None) -> list[str]:
    if wanted is None:
        if not free:
            raise UserError("every parameter of the model is frozen, so that there is nothing to vary; unfreeze some.")
        return list(free)
    found = {w: [name for name in free if name == w or name.startswith(w + ".")] for w in wanted}
    for w, names in found.items():
        if not names:
            raise UserError(f"no parameter that may vary is called {w!r} or begins with it; there are {', '.join(free)}.")
    every = {name for names in found.values() for name in names}
    return [name for name in free if name in every]


class _RMSNorm(nn.Module):
    """A norm of transformers' Llama and its kin, in the precision of what goes in."""

    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight, self.epsilon = weight, epsilon

    def forward(self, x: Float[Tensor, "*rest d"]) -> Float[Tensor, "*rest d"]:
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon))


def _keep_precision(module: nn.Module) -> None:
    """Exchange norms that compute in float32 whatever they are given: in double precision products would be good to 1e-8 only."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            epsilon = getattr(child, "variance_epsilon", None)
            if type(child).__name__.endswith("RMSNorm") and isinstance(epsilon, float):
                setattr(parent, name, _RMSNorm(child.get_parameter("weight"), epsilon))


def _randomness(module: nn.Module) -> tuple[str, ...]:
    """What was switched off so that two calls give the same."""
    live = [m for m in module.modules() if m.training]
    drops = [m for m in live if isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0]  # pyright: ignore
    # Attention drops by a rate of its own, without a layer.
    drops += [m for m in live if isinstance(rate := getattr(m, "dropout", 0), float) and rate > 0]
    norms = [m for m in live if isinstance(m, nn.modules.batchnorm._BatchNorm)]  # pyright: ignore
    notes: list[str] = []
    if drops:
        notes.append(f"The model was in training mode with dropout ({len(drops)} layers); its curvature is that without.")
    if norms:
        notes.append(
            f"The model was in training mode with batch norms ({len(norms)}); its curvature is that with their running means."
        )
    return tuple(notes)


class _Predictions(nn.Module):
    """A causal language model as a function from examples to logits at the places that the loss is on."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, shown: tuple[Examples, Any]) -> Float[Tensor, "m vocab"]:
        examples, at = shown
        # Of the last block only the answers' places are needed; a mask stands for all of them.
        with nullcontext() if isinstance(at, Tensor) else last_block_at(self.model, at[1]):
            logits = logits_where(self.model, examples, at)
        return logits.reshape(-1, logits.shape[-1])


def of_model(
    model: PreTrainedModel,
    examples: Examples,
    on: Literal["answers", "text"] = "answers",
    *,
    parameters: Sequence[str] | None = None,
    tokens: int = TOKENS,
    dtype: torch.dtype | None = None,
) -> Objective:
    """The mean cross-entropy (nats) of a language model: of the answers' tokens, or of all tokens that training had as targets.

    Args:
        model: a causal language model; it is copied.
        examples: the data; more tokens than `tokens` are held in several parts.
        on: what the loss is on.
        parameters: as in `Objective`, by the model's own names.
        tokens: of one part at most.
        dtype: as in `Objective`.

    Raises:
        UserError: as `Objective`; `text` of examples whose answers stand outside the sequence.
    """
    if parameters is not None:  # refused by the names that the caller knows
        _chosen({name: p for name, p in model.named_parameters() if p.requires_grad}, parameters)
    fit = slopes_at_once(model, examples, len(examples) * (SLOPE_BYTES // PART_BYTES)) // (SLOPE_BYTES // PART_BYTES)
    rows = max(1, min(tokens // examples.tokens.shape[1], fit))
    parts: list[Part] = []
    for start in range(0, len(examples), rows):
        some = examples[start : start + rows].to(model.device)
        if on == "answers":
            positions = answer_tokens(some) - 1
            at = (torch.arange(len(some), device=model.device)[:, None].expand_as(positions), positions)
            parts.append(Part((some, at), some.answer.reshape(-1), start + at[0].reshape(-1)))
        else:
            mask = some.loss_mask[:, 1:]
            parts.append(Part((some, mask), some.tokens[:, 1:][mask], start + mask.nonzero()[:, 0]))
    names = None if parameters is None else [f"model.{name}" for name in parameters]
    made = _Predictions(model)
    made.training = model.training  # and not `train()`, which would set the modes of the model's own parts
    return Objective(made, parts, parameters=names, dtype=dtype)
