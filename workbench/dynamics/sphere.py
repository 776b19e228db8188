"""Langevin dynamics on the unit sphere for a cubic form, with time averages [2603.06028, of which the abstract alone was read].

theta <- normalise(theta + h beta P T(theta, theta, .) + sqrt(2 h) P xi), with P the projection away from theta and xi standard
normal. The tensors are those of tensor PCA of order 3 and of a single-index model of information exponent 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

POINTS = 200
"""Iterates of each chain that are kept."""
BLOCK = 500
"""Steps whose noise is drawn at once."""


def step_size(beta: float) -> float:
    """h: hotter chains may step further (.02 up to beta .3, .01 at 1)."""
    return min(0.02, 0.01 / beta)


# --- tensors


def symmetric_noise(d: int, generator: torch.Generator) -> Float[Tensor, "d d d"]:
    """The sum of an i.i.d. normal tensor over the 6 permutations of its indices, over sqrt 6: variance 1 where indices differ."""
    g = torch.randn(d, d, d, generator=generator, dtype=torch.float64)
    orders = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
    return torch.stack([g.permute(order) for order in orders]).sum(0) / math.sqrt(6)


def cube(v: Float[Tensor, " d"]) -> Float[Tensor, "d d d"]:
    """The outer product of a vector with itself, three times."""
    return torch.einsum("i,j,k->ijk", v, v, v)


def single_index(x: Float[Tensor, "n d"], y: Float[Tensor, " n"]) -> Float[Tensor, "d d d"]:
    """sqrt(n) times the mean of y H3(x), with H3(x)_ijk = x_i x_j x_k - x_i [j=k] - x_j [i=k] - x_k [i=j].

    On the sphere <y H3(x), theta^3> = y He3(theta . x): the correlation loss of a single-index model of information exponent 3 is
    tensor PCA with this tensor. For y = He3(x . theta*) / sqrt 6 its mean is sqrt(6 n) theta*^3, and entries with distinct indices have
    noise of variance about that of y.
    """
    n, d = x.shape
    raw = torch.einsum("ni,nj,nk->ijk", x * y[:, None], x, x) / n
    mean, one = (x * y[:, None]).mean(0), torch.eye(d, dtype=x.dtype)
    traces = [torch.einsum(f"{a},{b}->ijk", mean, one) for a, b in (("i", "jk"), ("j", "ik"), ("k", "ij"))]
    return math.sqrt(n) * (raw - torch.stack(traces).sum(0))


def partial_trace(tensor: Float[Tensor, "d d d"]) -> Float[Tensor, " d"]:
    """v_i = sum_j T_ijj, the direction of the drift averaged over the sphere."""
    return torch.einsum("ijj->i", tensor)


# --- chains


@dataclass(frozen=True)
class Chains:
    """What chains did: `b` tensors, `c` chains on each."""

    average: Float[Tensor, "b c d"]
    """The time average of theta; its direction is the estimate."""
    seen: Float[Tensor, "t b c d"]
    """Iterates at the steps `at`."""
    running: Float[Tensor, "t b c d"]
    """The average so far, at the same steps."""
    at: list[int]
    last: Float[Tensor, "b c"]
    """|theta . planted|, averaged over the second half of the steps."""


def run_chains(
    noise: Float[Tensor, "b d d d"],
    strengths: Sequence[float],
    betas: Sequence[float],
    planted: Float[Tensor, "b d"],
    steps: int,
    generators: Sequence[torch.Generator],
    points: int = POINTS,
) -> Chains:
    """Chain c on the tensor `strengths[c] planted^3 + noise` at inverse temperature `betas[c]`, for each of b tensors.

    All chains of one b share start and random numbers. A negative beta is a chain that climbs down: beside its twin at +beta it
    lays bare what the drift alone does.

    Args:
        noise: symmetric tensors.
        strengths: lambda of each chain.
        betas: inverse temperature of each chain.
        planted: unit vectors.
        steps: how many.
        generators: one per tensor, of start and random numbers.
        points: iterates that are kept.
    """
    d, c = noise.shape[-1], len(betas)
    beta = torch.tensor(betas, dtype=torch.float64)
    h = torch.tensor([step_size(abs(x)) for x in betas], dtype=torch.float64)
    rows, columns = torch.triu_indices(d, d)
    twice = torch.where(rows == columns, 1.0, 2.0).to(torch.float64)
    packed = (noise[:, :, rows, columns] * twice).transpose(1, 2).contiguous()  # [b, pairs, d]
    signal, shake = torch.tensor(strengths, dtype=torch.float64)[:, None], (2 * h).sqrt()[:, None]
    start = torch.stack([torch.randn(d, generator=g, dtype=torch.float64) for g in generators])
    theta = torch.nn.functional.normalize(start, dim=1)[:, None].repeat(1, c, 1)
    goal, step_along = planted[:, None], (h * beta)[:, None]
    total, last = torch.zeros_like(theta), torch.zeros_like(theta[..., 0])
    at = sorted({max(1, round(steps * (i + 1) / points)) for i in range(points)})
    wanted, seen, running = set(at), list[Tensor](), list[Tensor]()
    drawn = theta
    for step in range(1, steps + 1):
        if (step - 1) % BLOCK == 0:
            drawn = torch.stack([torch.randn(BLOCK, 1, d, generator=g, dtype=torch.float64) for g in generators], 1)
        along = (theta * goal).sum(-1, keepdim=True)
        drift = torch.bmm(theta[..., rows] * theta[..., columns], packed).addcmul_(signal * along.square(), goal)
        move = drift.mul_(step_along).addcmul_(drawn[(step - 1) % BLOCK], shake)
        move -= (move * theta).sum(-1, keepdim=True) * theta
        theta = theta + move
        theta /= theta.norm(dim=-1, keepdim=True)
        total += theta
        if step > steps // 2:
            last += (theta * goal).sum(-1).abs()
        if step in wanted:
            seen.append(theta)
            running.append(total / step)
    return Chains(total / steps, torch.stack(seen), torch.stack(running), at, last / (steps - steps // 2))


def chance(d: int) -> float:
    """The mean |overlap| of a random direction, about sqrt(2 / (pi d)): exactly Gamma(d/2) / (sqrt(pi) Gamma((d+1)/2))."""
    return math.exp(math.lgamma(d / 2) - math.lgamma((d + 1) / 2)) / math.sqrt(math.pi)


def cosine(a: Float[Tensor, "*n d"], b: Float[Tensor, "*n d"]) -> Float[Tensor, "*n"]:
    """Of the directions in the last dimension."""
    return torch.nn.functional.cosine_similarity(a, b, dim=-1)
