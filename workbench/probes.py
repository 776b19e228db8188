"""Linear probes: many multinomial logistic regressions fitted as one problem, and what is measured of them.

A probe reads a label off an activation by a linear map and a softmax. Its optimum is unique, and how near a fit came to it
is part of the fit. Measures: right or not per example, balanced accuracy, and online codelength [Voita & Titov 2020].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.statistics import normal_quantile, wilson

CONVERGED = 1e-3
"""Largest gradient entry (nats per standard deviation of an activation) at which a fit counts as finished."""
UNEVEN = 2.0
"""Classes are uneven when the most frequent one is more than this many times as frequent as 1 / classes."""


def standardised(
    train: Float[Tensor, "*f n d"], test: Float[Tensor, "*f m d"]
) -> tuple[Float[Tensor, "*f n d"], Float[Tensor, "*f m d"]]:
    """Both with the training examples' mean taken off and divided by their standard deviation, feature by feature.

    A feature that is the same in all training examples stays unscaled: at the embedding of a fixed token there is nothing
    to scale.
    """
    mean, deviation = train.mean(-2, keepdim=True), train.std(-2, keepdim=True, correction=0)
    scale = torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation))
    return (train - mean) / scale, (test - mean) / scale


@dataclass(frozen=True)
class Probes:
    """Fitted probes `[p]`; a probe with fewer than `c` classes has the rest masked."""

    weights: Float[Tensor, "p d c"]
    bias: Float[Tensor, "p c"]
    classes: list[np.ndarray]
    loss: np.ndarray
    """Mean cross-entropy plus penalty of each probe, in nats."""
    gradient: np.ndarray
    """Largest absolute entry of each probe's gradient."""

    def predict(self, x: Float[Tensor, "p n d"]) -> np.ndarray:
        """The most likely label of each example `[p, n]`."""
        best = self._logits(x).argmax(-1).numpy()
        return np.stack([classes[row] for classes, row in zip(self.classes, best, strict=True)])

    def bits(self, x: Float[Tensor, "p n d"], labels: Int[np.ndarray, "p n"]) -> Float[np.ndarray, "p n"]:
        """-log2 of the probability that each probe gives to each example's label, which must be one of its classes."""
        target = torch.from_numpy(np.stack([_place(row, c) for row, c in zip(labels, self.classes, strict=True)]))
        likelihood = torch.log_softmax(self._logits(x).double(), -1).gather(-1, target[..., None]).squeeze(-1)
        return (-likelihood / np.log(2)).numpy()

    def _logits(self, x: Float[Tensor, "p n d"]) -> Float[Tensor, "p n c"]:
        return _logits(x, self.weights, self.bias, _valid(self.classes, self.bias.shape[1]))


def _place(labels: Int[np.ndarray, " n"], classes: np.ndarray) -> Int[np.ndarray, " n"]:
    """Where each label stands among the sorted classes."""
    at = np.searchsorted(classes, labels).clip(max=len(classes) - 1)
    if (classes[at] != labels).any():
        raise ValueError(f"labels {sorted(set(labels) - set(classes))} are none of the probe's classes")
    return at


def _valid(classes: Sequence[np.ndarray], width: int) -> Bool[Tensor, "p 1 c"]:
    return torch.tensor([[[i < len(c) for i in range(width)]] for c in classes])


def _logits(
    x: Float[Tensor, "p n d"], weights: Float[Tensor, "p d c"], bias: Float[Tensor, "p c"], valid: Bool[Tensor, "p 1 c"]
) -> Float[Tensor, "p n c"]:
    # Left alone, the bias of a class that a probe does not have would have no finite optimum.
    return (torch.einsum("pnd,pdc->pnc", x, weights) + bias[:, None]).masked_fill(~valid, -torch.inf)


def fit_probes(
    x: Float[Tensor, "p n d"],
    labels: Int[np.ndarray, "p n"],
    penalty: float,
    iterations: int,
    tolerance: float = CONVERGED / 2,
    classes: Sequence[np.ndarray] | None = None,
    bias_penalty: float = 0.0,
) -> Probes:
    """Multinomial logistic regressions, all at once: mean cross-entropy + penalty / 2 * |weights|^2, the bias free.

    One L-BFGS with a strong-Wolfe line search on the sum of the losses. Each probe is solved in coordinates in which its
    curvature is nearly the identity, A = (X'X s / n + penalty)^(-1/2) with s a typical variance of a class indicator; that
    changes the way to the optimum, not the optimum. The search ends when no entry of the gradient there exceeds `tolerance`.

    Args:
        x: activations, usually standardised.
        labels: of the examples; any integers.
        penalty: of the weights.
        iterations: of the search, at most.
        tolerance: of the gradient.
        classes: sorted labels that each probe can give; those that occur when not given.
        bias_penalty: of the bias; must be above 0 when some class does not occur, else its bias has no finite optimum.
    """
    if classes is None:
        found = [np.unique(row, return_inverse=True) for row in labels]
        classes = [values for values, _ in found]
        target = torch.from_numpy(np.stack([index for _, index in found]))
    else:
        target = torch.from_numpy(np.stack([_place(row, c) for row, c in zip(labels, classes, strict=True)]))
    width = max(len(values) for values in classes)
    valid = _valid(classes, width)
    p, n, d = x.shape
    curvature = torch.einsum("pni,pnj->pij", x, x).double() / n * ((width - 1) / width**2)
    values, vectors = torch.linalg.eigh(curvature)
    root = ((vectors * (values.clamp_min(0) + penalty).rsqrt()[:, None]) @ vectors.mT).to(x.dtype)

    def losses(weights: Tensor, bias: Tensor) -> Tensor:
        # In double precision: the line search compares sums over many probes whose last improvements are small.
        likelihood = torch.log_softmax(_logits(x, weights, bias, valid).double(), -1).gather(-1, target[..., None]).squeeze(-1)
        loss = -likelihood.mean(1) + penalty / 2 * weights.double().square().sum((1, 2))
        return loss + bias_penalty / 2 * bias.double().square().sum(1) if bias_penalty else loss

    with torch.enable_grad():
        free = torch.zeros(p, d, width, dtype=x.dtype, requires_grad=True)
        bias = torch.zeros(p, width, dtype=x.dtype, requires_grad=True)
        search = torch.optim.LBFGS(
            [free, bias],
            max_iter=iterations,
            max_eval=2 * iterations,
            history_size=20,
            tolerance_grad=tolerance,
            tolerance_change=1e-12,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            search.zero_grad()
            total = losses(root @ free, bias).sum()
            total.backward()
            return total

        search.step(closure)
        weights = (root @ free).detach().requires_grad_()
        final = losses(weights, bias)
        slopes = torch.autograd.grad(final.sum(), (weights, bias))
    gradient = torch.maximum(slopes[0].abs().amax((1, 2)), slopes[1].abs().amax(1))
    return Probes(weights.detach(), bias.detach(), list(classes), final.detach().numpy(), gradient.numpy())


def is_uneven(labels: Int[np.ndarray, " n"]) -> bool:
    """Whether accuracy would flatter a probe that knows the most frequent class alone; see `UNEVEN`."""
    counts = np.unique(labels, return_counts=True)[1]
    return bool(counts.max() / counts.sum() > UNEVEN / len(counts))


def scored(
    right: Bool[np.ndarray, "*r n"], labels: Int[np.ndarray, " n"], balanced: bool = False
) -> tuple[Float[np.ndarray, "*r"], Float[np.ndarray, "*r"], Float[np.ndarray, "*r"]]:
    """Accuracy or balanced accuracy with its 95 % interval.

    Balanced accuracy is the mean, over the classes that occur, of the share of a class that is right. Its interval joins the
    classes' Wilson intervals as independent errors (the square root of summed squares), accuracy's is Wilson's.

    Args:
        right: where the label was read correctly.
        labels: true labels.
        balanced: whether every class counts the same.

    Returns:
        Value, lower and upper end.
    """
    if not balanced:
        value = right.mean(-1)
        low, high = wilson(right.sum(-1), right.shape[-1])
        return np.asarray(value), low, high
    member, counts = _members(labels)
    hits = right.astype(np.float64) @ member.T
    recall = hits / counts
    low, high = wilson(hits, counts)
    value, classes = recall.mean(-1), len(counts)
    below, above = np.sqrt(np.square(recall - low).sum(-1)), np.sqrt(np.square(high - recall).sum(-1))
    return np.asarray(value), np.asarray(value - below / classes), np.asarray(value + above / classes)


def changed(
    before: Bool[np.ndarray, "*r n"], after: Bool[np.ndarray, "*r n"], labels: Int[np.ndarray, " n"], balanced: bool = False
) -> tuple[Float[np.ndarray, "*r"], Float[np.ndarray, "*r"], Float[np.ndarray, "*r"]]:
    """Change of the (balanced) accuracy on the same examples with its 95 % interval, normal and paired.

    The standard error is that of the examples' differences plus one more on which the two disagree, so that two probes
    that agree on all examples are not taken to agree on all examples there are.
    """
    change = after.astype(np.float64) - before.astype(np.float64)
    member, counts = _members(labels) if balanced else (np.ones((1, change.shape[-1])), np.array([change.shape[-1]]))
    mean, square = change @ member.T / counts, (np.square(change) @ member.T + 1 / len(counts)) / counts
    value = mean.mean(-1)
    half = normal_quantile(0.95) * np.sqrt(((square - mean**2).clip(min=0) / counts).sum(-1)) / len(counts)
    return np.asarray(value), np.asarray(value - half), np.asarray(value + half)


def _members(labels: Int[np.ndarray, " n"]) -> tuple[Float[np.ndarray, "c n"], Int[np.ndarray, " c"]]:
    """Which examples belong to each class that occurs, and how many."""
    classes, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return (index == np.arange(len(classes))[:, None]).astype(np.float64), counts


@dataclass(frozen=True)
class OnlineCode:
    """What it costs to send labels to someone who has the activations, by probes that learn on the way."""

    bits: Float[np.ndarray, "p n"]
    """Of every label, in the order in which they were sent."""
    probes: tuple[Probes, ...]
    """Fitted on the first `sizes[i]` examples."""


def online_code(
    x: Float[Tensor, "p n d"],
    labels: Int[np.ndarray, "p n"],
    classes: Sequence[np.ndarray],
    sizes: Sequence[int],
    precision: float,
    iterations: int,
) -> OnlineCode:
    """Prequential codelength [Voita & Titov 2020, eq. 3]: each block of labels is coded by the probe of all blocks before.

    The first `sizes[0]` labels cost log2(classes) bits each, the uniform code; those from `sizes[i]` to `sizes[i + 1]` cost
    -log2 of their probability under a probe fitted on the first `sizes[i]`. The probe is the most likely one under a
    normal prior of this precision on weights AND bias: `penalty = precision / examples`. So few examples mean a strong
    penalty, and a label that has not been seen yet has a finite cost.

    Args:
        x: activations in the order of sending.
        labels: likewise.
        classes: all labels that can occur, sorted, for every probe; the receiver knows them.
        sizes: increasing; the last one is at most n, and a label after it is coded by the last probe.
        precision: of the prior, in nats.
        iterations: of each fit, at most.
    """
    n = x.shape[1]
    if any(a >= b for a, b in pairwise(sizes)) or sizes[0] < 1 or sizes[-1] > n:
        raise ValueError(f"sizes {list(sizes)} must increase from at least 1 to at most {n}")
    bits = np.empty(labels.shape)
    bits[:, : sizes[0]] = np.log2([[len(c)] for c in classes])
    fits: list[Probes] = []
    for size, end in zip(sizes, [*sizes[1:], n], strict=True):
        penalty = precision / size
        fits.append(fit_probes(x[:, :size], labels[:, :size], penalty, iterations, classes=classes, bias_penalty=penalty))
        if end > size:
            bits[:, size:end] = fits[-1].bits(x[:, size:end], labels[:, size:end])
    return OnlineCode(bits, tuple(fits))
