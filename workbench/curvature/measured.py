"""The spectrum of one matrix of one loss: certified ends, a density with what it rests on, and how exact the products are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from workbench.curvature.density import Density, density, from_eigenvalues, full_spectrum
from workbench.curvature.keeping import Keeper
from workbench.curvature.lanczos import Pairs, extreme_pairs
from workbench.curvature.lines import along, resampled_means
from workbench.curvature.maps import SymmetricMap, asymmetry, random_columns
from workbench.curvature.objective import Objective
from workbench.curvature.operators import gauss_newton, hessian
from workbench.errors import UserError
from workbench.statistics import bootstrap_mean

SYMMETRIC = {torch.float64: 1e-11, torch.float32: 1e-5}
"""Largest asymmetry |u.Hv - v.Hu| / ||H|| of products that count as those of a matrix (spec: 1e-11 in double precision)."""
SHARE_PROBES = 8
"""Random vectors on which the residual H - G is measured."""
TOLERANCE = 1e-6
"""Of the pairs of a full spectrum, relative to the largest eigenvalue."""
BOTTOM_PRODUCTS = 80
"""Products spent on each of the smallest eigenvalues at most: they lie close together, and a residual says how far it came."""
DRAWS = 400


@dataclass(frozen=True)
class Effort:
    """How much of a spectrum is wanted."""

    top: int = 10
    bottom: int = 2
    steps: int = 60
    """Lanczos steps of each probe of the density."""
    probes: int = 4
    exact: bool = False
    """All eigenvalues instead, of at most 10,000 parameters."""


@dataclass(frozen=True)
class Spectrum:
    """What is known of H at one place."""

    objective: Objective
    top: Pairs
    bottom: Pairs
    density: Density
    asymmetry: float
    top_draws: Float[np.ndarray, "k draws"]
    """Eigenvalues on resampled examples, to first order."""
    residual_share: float
    """||H - G||_F / ||H||_F."""
    residual_draws: Float[np.ndarray, " draws"]
    loss: float
    gradient_norm: float


def products_of(effort: Effort, size: int) -> int:
    """About how many columns are multiplied, for a progress bar."""
    few = 20 + 2 * 2 * SHARE_PROBES
    if effort.exact:
        return size + few
    return 6 * effort.top + 40 + BOTTOM_PRODUCTS * effort.bottom // 2 + effort.steps * effort.probes + few


def measure(
    objective: Objective,
    effort: Effort,
    seed: int,
    keeper: Keeper | None = None,
    tick: Callable[[int], None] = lambda columns: None,
) -> Spectrum:
    """The spectrum of H; the products are tested for symmetry before anything rests on them.

    Raises:
        UserError: products that are not a symmetric matrix's, as where a kernel's second derivative is wrong.
    """
    plain = hessian(objective)
    h, g = plain.watched(tick), gauss_newton(objective).watched(tick)
    skew = asymmetry(h, seed)
    if skew > SYMMETRIC.get(objective.dtype, 1e-2):
        raise UserError(
            f"the second derivative of this model is not symmetric ({skew:.1e} of its size), so some operation of it has a wrong "
            "one; no spectrum is given. Try another dtype or attention implementation."
        )
    if effort.exact:
        whole = full_spectrum(h, vectors=True)
        assert whole.vectors is not None
        top, bottom = _ends(h, whole.values, whole.vectors, effort)
        found = from_eigenvalues(whole.values)
    else:
        # Single vectors are a third cheaper than blocks; the confirming search finds what they cannot, second copies.
        top = extreme_pairs(h, effort.top, "top", block=1, confirm=True, seed=seed, keeper=keeper)
        most = BOTTOM_PRODUCTS * effort.bottom
        bottom = extreme_pairs(h, effort.bottom, "bottom", most_products=most, seed=seed, keeper=keeper)
        found = density(h, steps=effort.steps, probes=effort.probes, deflate=top, seed=seed, keeper=keeper)
    draws = [
        resampled_means(objective, along(objective, top.vectors[:, i].to(objective.dtype)).curvature, DRAWS, seed)
        for i in range(top.vectors.shape[1])
    ]
    share, share_draws = _residual_share(h, g, seed)
    return Spectrum(
        objective,
        top,
        bottom,
        found,
        skew,
        np.stack(draws),
        share,
        share_draws,
        objective.loss(),
        float(objective.gradient().norm()),
    )


def _ends(h: SymmetricMap, values: Float[np.ndarray, " n"], vectors: torch.Tensor, effort: Effort) -> tuple[Pairs, Pairs]:
    """Both ends of a full spectrum, their residuals measured as those of any other pair."""
    made: list[Pairs] = []
    scale = float(np.abs(values).max())
    for at in (np.arange(len(values))[::-1][: effort.top], np.arange(len(values))[: effort.bottom]):
        chosen = vectors[:, at.copy()].contiguous()
        kept = values[at]
        off = (h @ chosen - chosen * torch.from_numpy(kept.copy()).to(chosen)).norm(dim=0).double().cpu().numpy()
        made.append(
            Pairs(
                values=kept,
                vectors=chosen,
                residuals=off,
                converged=off <= TOLERANCE * scale,
                products=len(values) + len(at),
                tolerance=TOLERANCE,
                scale=scale,
                confirmed=True,
            )
        )
    return made[0], made[1]


def _residual_share(h: SymmetricMap, g: SymmetricMap, seed: int) -> tuple[float, Float[np.ndarray, " draws"]]:
    """||H - G||_F / ||H||_F from the same random vectors for both: E ||A z||^2 = ||A||_F^2."""
    z = random_columns(h.size, SHARE_PROBES, seed, "residual", like=h)
    hz, gz = h @ z, g @ z
    rest = (hz - gz).square().sum(0).double().cpu().numpy()
    whole = hz.square().sum(0).double().cpu().numpy()
    if not whole.sum():
        return float("nan"), np.full(DRAWS, np.nan)
    drawn = bootstrap_mean(rest, DRAWS, seed) / bootstrap_mean(whole, DRAWS, seed)
    return float(np.sqrt(rest.sum() / whole.sum())), np.sqrt(drawn)
