"""Paths between models of one shape in the space of their weights: straight lines, Bezier curves, and what is measured on them."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.examples import Examples
from workbench.models.forward import answer_logits, nll
from workbench.seeds import numpy_generator

AT_ONCE = 4096
"""Tokens of a backward pass: their activations take about a tenth of a megabyte each in a model of six blocks of width 192."""
Weights = tuple[Tensor, ...]
"""All parameters of a model, in its own order."""


def weights_of(model: nn.Module) -> Weights:
    """The parameters themselves, not copies."""
    return tuple(parameter.detach() for parameter in model.parameters())


@torch.no_grad()
def put(model: nn.Module, weights: Weights) -> None:
    """Overwrite a model's parameters."""
    for parameter, new in zip(model.parameters(), weights, strict=True):
        parameter.copy_(new)


def between(a: Weights, b: Weights, alpha: float) -> Weights:
    """(1 - alpha) a + alpha b, in double precision before it is rounded; at 0 and 1 the ends themselves, bit for bit."""
    if alpha in (0, 1):
        return b if alpha else a
    return tuple(((1 - alpha) * x.double() + alpha * y.double()).to(x.dtype) for x, y in zip(a, b, strict=True))


def bezier(a: Weights, middle: Weights, b: Weights, t: float) -> Weights:
    """(1 - t)^2 a + 2 t (1 - t) middle + t^2 b [Garipov+18 §3.2]; the straight line where the middle is its own."""
    if t in (0, 1):
        return b if t else a
    shares = (1 - t) ** 2, 2 * t * (1 - t), t**2
    return tuple(
        sum(share * x.double() for share, x in zip(shares, three, strict=True)).to(three[0].dtype)  # pyright: ignore
        for three in zip(a, middle, b, strict=True)
    )


def distance(a: Weights, b: Weights) -> float:
    """Euclidean distance of all weights as one vector."""
    return float(sum((x.double() - y.double()).square().sum() for x, y in zip(a, b, strict=True))) ** 0.5


def random_step(a: Weights, b: Weights, generator: torch.Generator) -> Weights:
    """A plus a Gaussian step that in every parameter is as long as the one to b."""
    found: list[Tensor] = []
    for x, y in zip(a, b, strict=True):
        step = torch.randn(x.shape, generator=generator).to(x.device, x.dtype)
        found.append(x + step * ((y - x).norm() / step.norm()))
    return tuple(found)


@dataclass(frozen=True)
class Outcomes:
    """What a model makes of each example, from one pass."""

    loss: Float[np.ndarray, " n"]
    """Negative log-likelihood of the answer in nats."""
    right: Float[np.ndarray, " n"]
    """1.0 where every token of the answer is the most likely one."""


@torch.no_grad()
def outcomes(model: PreTrainedModel, examples: Examples, batch_size: int = 128) -> Outcomes:
    """Loss and right answers, as `forward.nll` and `forward.accuracy` have them."""
    losses: list[Tensor] = []
    right: list[Tensor] = []
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size].to(model.device)
        logits = answer_logits(model, batch)
        losses.append(nn.functional.cross_entropy(logits.transpose(1, 2), batch.answer, reduction="none").sum(-1).cpu())
        right.append(batch.right(logits.argmax(-1)).all(-1).cpu())
    return Outcomes(torch.cat(losses).double().numpy(), torch.cat(right).double().numpy())


def rise(
    losses: Float[np.ndarray, "*draws points"], alphas: Float[np.ndarray, " points"]
) -> Float[np.ndarray, "*draws points"]:
    """L(alpha) - [(1 - alpha) L(0) + alpha L(1)]: how far a loss lies above the straight line between its ends."""
    return losses - ((1 - alphas) * losses[..., :1] + alphas * losses[..., -1:])


def barrier(
    losses: Float[np.ndarray, "*draws points"], alphas: Float[np.ndarray, " points"]
) -> tuple[Float[np.ndarray, "*draws"], Float[np.ndarray, "*draws"]]:
    """The highest `rise` [Frankle+20 1912.05671; 2505.22310], and its alpha; with the ends included it is never below 0."""
    above = rise(losses, alphas)
    return np.asarray(above.max(-1)), np.asarray(alphas[above.argmax(-1)])


def train_middle(
    model: PreTrainedModel,
    a: Weights,
    b: Weights,
    examples: Examples,
    *,
    steps: int,
    lr: float,
    batch_size: int,
    seed: int,
) -> Weights:
    """The middle point of a quadratic Bezier curve of low loss between two fixed ends [Garipov+18 1802.10026].

    Minimizes the mean loss over t uniform in [0, 1] by Adam, one t and one batch a step, from the middle of the straight
    line, where the curve is that line. A rate that falls to zero in a half cosine quiets the noise at the end.

    Args:
        model: of the shape of the ends; a copy of it is used.
        a: one end.
        b: the other end.
        examples: to train on.
        steps: of Adam; 0 leaves the straight line.
        lr: at the start.
        batch_size: examples a step.
        seed: of the ts and the batches.
    """
    work = copy.deepcopy(model)
    middle = [torch.nn.Parameter(x.clone()) for x in between(a, b, 0.5)]
    optimizer = torch.optim.Adam(middle, lr=lr)
    rng = numpy_generator(seed, "bezier")
    for step in range(steps):
        t = float(rng.random())
        rows = torch.from_numpy(rng.choice(len(examples), min(batch_size, len(examples)), replace=False))
        slopes = middle_slopes(work, a, tuple(m.detach() for m in middle), b, t, examples[rows])
        for m, slope in zip(middle, slopes, strict=True):
            m.grad = slope
        optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + np.cos(np.pi * step / steps))
        optimizer.step()
    return tuple(m.detach() for m in middle)


def middle_slopes(work: PreTrainedModel, a: Weights, middle: Weights, b: Weights, t: float, examples: Examples) -> Weights:
    """dL(theta(t)) / d middle of the mean loss on a Bezier curve, which is 2 t (1 - t) dL / dtheta; `work` is overwritten."""
    put(work, bezier(a, middle, b, t))
    parameters = list(work.parameters())
    total = tuple(torch.zeros_like(p) for p in parameters)
    for rows in torch.arange(len(examples)).split(max(1, AT_ONCE // examples.tokens.shape[1])):
        with torch.enable_grad():
            loss = nll(work, examples[rows].to(work.device)).sum() / len(examples)
            # The embedding of a position that no text reaches has no part in the loss.
            slopes = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        total = tuple(x + 2 * t * (1 - t) * slope for x, slope in zip(total, slopes, strict=True))
    return total
