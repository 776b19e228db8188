"""Ranks, subspaces and new directions of a matrix and of what was added to it, and what random ones of its shape have."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.seeds import torch_generator

ENERGY = 0.9
"""Share of a squared norm that the leading singular directions must hold to count as the space of a matrix."""


def stable_rank(singular: Float[Tensor, "*draws k"]) -> Float[Tensor, "*draws"]:
    """||D||_F^2 / ||D||_2^2: how many directions of the largest size would make up the squared norm."""
    return singular.square().sum(-1) / singular.amax(-1).square()


def entropy_rank(singular: Float[Tensor, "*draws k"]) -> Float[Tensor, "*draws"]:
    """Exp of the entropy of the singular values as shares of their sum [Roy & Vetterli 2007]; k where all are equal."""
    share = singular / singular.sum(-1, keepdim=True)
    return torch.exp(-torch.xlogy(share, share).sum(-1))


def rank_for(singular: Float[Tensor, "*draws k"], energy: float = ENERGY) -> Float[Tensor, "*draws"]:
    """Smallest rank whose best approximation holds this share of the squared norm; 0 for a matrix of zeros."""
    squares = singular.sort(-1, descending=True).values.square()
    held = squares.cumsum(-1)
    # Rounding: the last sum must reach the whole.
    short = held < energy * squares.sum(-1, keepdim=True) * (1 - 1e-12)
    return (short.sum(-1) + (squares[..., 0] > 0)).double()


def random_singular(shape: tuple[int, int], draws: int, seed: int) -> Float[Tensor, "draws k"]:
    """Singular values of Gaussian matrices of this shape, each of unit Frobenius norm."""
    generator = torch_generator(seed, "random matrix", *shape)
    found = [torch.linalg.svdvals(torch.randn(shape, generator=generator, dtype=torch.float64)) for _ in range(draws)]
    singular = torch.stack(found)
    return singular / singular.norm(dim=-1, keepdim=True)


def space(weights: Float[Tensor, "out in"]) -> tuple[Float[Tensor, "out k"], Float[Tensor, "in k"], int]:
    """Left and right singular vectors, and how many of them hold `ENERGY` of the squared norm."""
    u, s, vh = torch.linalg.svd(weights, full_matrices=False)
    return u, vh.T, int(rank_for(s))


def intruders(after: Float[Tensor, "out in"], before: Float[Tensor, "out k"], top: int, epsilon: float) -> int:
    """How many of the first `top` left singular vectors of a matrix are new [Shuttleworth+24 2410.21228, algorithm 1].

    New: the cosine to each of the left singular vectors `before` is below epsilon in size.
    """
    u = torch.linalg.svd(after, full_matrices=False)[0][:, :top]
    return int(((u.T @ before).abs().amax(1) < epsilon).sum())


def share_inside(change: Float[Tensor, "out in"], basis: Float[Tensor, "out r"]) -> float:
    """Share of the squared norm of a change whose columns lie in the span of an orthonormal basis; r / out if it were random."""
    return float((basis.T @ change).square().sum() / change.square().sum())


def sine(direction: Float[Tensor, " out"], basis: Float[Tensor, "out r"]) -> float:
    """Sine of the angle between a unit vector and the span of an orthonormal basis."""
    return math.sqrt(max(0.0, 1.0 - float((basis.T @ direction).square().sum())))


def random_share(r: int, dim: int, other: int = 1) -> tuple[float, float, float]:
    """Mean and 95 % range of `share_inside` for Gaussian changes with `other` columns: a beta distribution, exactly."""
    from scipy.stats import beta

    if r in (0, dim):
        return r / dim, r / dim, r / dim
    low, high = beta.ppf([0.025, 0.975], r * other / 2, (dim - r) * other / 2)
    return r / dim, float(low), float(high)


def random_cosine(dim: int) -> float:
    """Size below which the cosine of two random directions lies with 95 %: its square is Beta(1/2, (dim - 1)/2), exactly."""
    from scipy.stats import beta

    return float(np.sqrt(beta.ppf(0.95, 0.5, (dim - 1) / 2))) if dim > 1 else 1.0


def random_part(change: Float[Tensor, "out in"], k: int, norm: float, generator: torch.Generator) -> Float[Tensor, "out in"]:
    """A change projected onto k random directions of its shorter side and scaled to a norm: a part of it like any other.

    At full rank it is the change itself, up to the scale.
    """
    out, into = change.shape
    basis = torch.linalg.qr(torch.randn(min(out, into), k, generator=generator, dtype=change.dtype))[0]
    part = basis @ (basis.T @ change) if out <= into else (change @ basis) @ basis.T
    size = float(part.norm())
    return part * (norm / size) if size > 0 else part
