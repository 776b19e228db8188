"""Trace, diagonal and Frobenius norm from products with random vectors, each with a standard error.

On heavy bulks (Hessians) the low-rank methods gain little over plain sampling; on decaying spectra they gain all.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.curvature.maps import CHUNK, SymmetricMap, random_columns
from workbench.errors import UserError


@dataclass(frozen=True)
class Estimate:
    """A number from random products; its standard error is NaN where there is one sample only, 0 where it is exact."""

    value: float
    standard_error: float
    products: int


@dataclass(frozen=True)
class Diagonal:
    """The diagonal, entry by entry."""

    values: Float[Tensor, " n"]
    standard_errors: Float[Tensor, " n"]
    products: int


def hutchinson(of: SymmetricMap, products: int = 100, seed: int = 0) -> Estimate:
    """The trace as the mean of z.Az over random signs z [Hutchinson 1989]; unbiased."""
    _enough(products, 1, "hutchinson")
    samples = torch.cat([(z * az).sum(0).double() for z, az in _signs(of, products, seed, "hutchinson")])
    return _mean(samples, products)


def hutch_plus_plus(of: SymmetricMap, products: int = 99, seed: int = 0) -> Estimate:
    """Exact on the range Q of a sketch, random signs on the rest [Meyer+20 2010.09649, Algorithm 1]; unbiased.

    A third of the products each for the sketch, for Q, and for the rest, whose scatter is the standard error.
    """
    _enough(products, 3, "hutch_plus_plus")
    sketched = min(products // 3, of.size)
    q = torch.linalg.qr(of @ _random_signs(of, sketched, seed, "sketch"))[0]
    known = (q * (of @ q)).sum().double()
    if sketched == of.size:
        return Estimate(float(known), 0.0, 2 * sketched)
    z = _random_signs(of, products - 2 * sketched, seed, "rest")
    z = z - q @ (q.T @ z)
    rest = _mean((z * (of @ z)).sum(0).double(), products)
    return Estimate(float(known) + rest.value, rest.standard_error, products)


def xtrace(of: SymmetricMap, products: int = 100, seed: int = 0) -> Estimate:
    """Each vector in turn is the sample, all others the sketch, with resphering [Epperly+24 2301.07825, Algorithm 2.1]; unbiased.

    Half of the products for the sketch, half for its range. The standard error is the scatter of these estimates over the root of
    their number, as its authors do; they share products, so that it is a guide rather than exact.
    """
    _enough(products, 4, "xtrace")
    n, count = of.size, min(products // 2, of.size)
    omega = random_columns(n, count, seed, "xtrace", like=of)
    y = of @ omega
    q, r = torch.linalg.qr(y)
    inside = (q.T @ (of @ q)).double()
    r, w = r.double(), (q.T @ omega).double()
    if count == n:
        return Estimate(float(inside.trace()), 0.0, 2 * count)
    # Column i of S: the direction within Q's range that the sketch without column i lacks. Where the sketch has full rank
    # without it, this is a direction of rounding, whose removal changes nothing.
    diagonal = r.diagonal()
    floor = float(diagonal.abs().max()) * torch.finfo(of.dtype).eps or 1.0
    safe = r + torch.diag(torch.where(diagonal.abs() < floor, floor - diagonal, 0.0))
    s = torch.linalg.solve_triangular(safe, torch.eye(count, dtype=r.dtype, device=r.device), upper=True).T
    s = s / s.norm(dim=0)
    c = w - s * (s * w).sum(0)  # the sample inside the others' range, in coordinates of Q
    outside = (w * r).sum(0) - 2 * (c * r).sum(0) + (c * (inside @ c)).sum(0)  # Q^T A omega = R
    spread = (n - count + 1) / (omega.double().square().sum(0) - c.square().sum(0))
    return _mean(inside.trace() - (s * (inside @ s)).sum(0) + spread * outside, 2 * count)


def hutchinson_diagonal(of: SymmetricMap, products: int = 100, seed: int = 0) -> Diagonal:
    """The diagonal as the mean of z * Az over random signs z [Bekas+07]; unbiased."""
    _enough(products, 1, "hutchinson_diagonal")
    mean = torch.zeros(of.size, dtype=torch.float64, device=of.device)
    scatter, seen = torch.zeros_like(mean), 0
    for z, az in _signs(of, products, seed, "diagonal"):  # Chan's update, which does not cancel
        samples = (z * az).double()
        new = samples.shape[1]
        shift = samples.mean(1) - mean
        scatter += (samples - samples.mean(1, keepdim=True)).square().sum(1) + shift.square() * seen * new / (seen + new)
        seen += new
        mean += shift * new / seen
    errors = (scatter / (products - 1) / products).sqrt() if products > 1 else torch.full_like(mean, torch.nan)
    return Diagonal(mean, errors, products)


def frobenius(of: SymmetricMap, products: int = 100, seed: int = 0) -> Estimate:
    """The Frobenius norm: the root of the mean of ||Az||^2, which is unbiased for its square; the error is carried through the root."""
    _enough(products, 1, "frobenius")
    squared = _mean(torch.cat([az.double().square().sum(0) for _, az in _signs(of, products, seed, "frobenius")]), products)
    root = squared.value**0.5
    return Estimate(root, squared.standard_error / (2 * root) if root else 0.0, products)


def _enough(products: int, least: int, who: str) -> None:
    if products < least:
        raise UserError(f"{who}: products = {products}; it needs at least {least}.")


def _mean(samples: Float[Tensor, " q"], products: int) -> Estimate:
    error = float(samples.std() / len(samples) ** 0.5) if len(samples) > 1 else float("nan")
    return Estimate(float(samples.mean()), error, products)


def _random_signs(of: SymmetricMap, count: int, seed: int, *labels: str | int) -> Float[Tensor, "n k"]:
    return torch.where(random_columns(of.size, count, seed, *labels, like=of) > 0, 1.0, -1.0).to(of.dtype)


def _signs(of: SymmetricMap, products: int, seed: int, label: str) -> Generator[tuple[Tensor, Tensor]]:
    """Random signs with their products, some columns at a time."""
    for start in range(0, products, CHUNK):
        z = _random_signs(of, min(CHUNK, products - start), seed, label, start)
        yield z, of @ z
