"""A symmetric matrix that is known by its products alone, and what can be made of it: sums, blocks, other coordinates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.seeds import torch_generator

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

CHUNK = 32
"""Columns that are multiplied at once."""
STRETCH = 2**14
"""Numbers that are summed in single precision, at most; their sums go on in double."""


def dots(a: Float[Tensor, "j n"], b: Float[Tensor, "k n"]) -> Float[Tensor, "j k"]:
    """Dot products of rows, in double precision: over millions of numbers a sum in single precision is off by 1e-4 and more."""
    if a.dtype == torch.float64:
        return a @ b.T
    pieces = zip(a.split(STRETCH, dim=1), b.split(STRETCH, dim=1), strict=True)
    total = torch.zeros(len(a), len(b), dtype=torch.float64, device=a.device)
    for x, y in pieces:
        total += (x @ y.T).double()
    return total


def lengths(x: Tensor, dim: int) -> Tensor:
    """Euclidean lengths in double precision."""
    return torch.linalg.vector_norm(x, dim=dim, dtype=torch.float64)


@dataclass(frozen=True)
class SymmetricMap:
    """A symmetric `[n, n]` matrix by its products; `map @ v` takes a vector `[n]` or columns `[n, k]`."""

    size: int
    apply: Callable[[Float[Tensor, "n k"]], Float[Tensor, "n k"]]
    """The product with columns."""
    dtype: torch.dtype = torch.float64
    device: torch.device = torch.device("cpu")  # noqa: RUF009  # a device is a value

    def __matmul__(self, v: Tensor) -> Tensor:
        return self.apply(v[:, None])[:, 0] if v.ndim == 1 else self.apply(v)

    def __sub__(self, other: SymmetricMap) -> SymmetricMap:
        return replace(self, apply=lambda v: self.apply(v) - other.apply(v))

    def restricted(self, at: Int[Tensor, " d"]) -> SymmetricMap:
        """The block of rows and columns `at`: the curvature along some coordinates with all others held."""

        def apply(v: Tensor) -> Tensor:
            whole = v.new_zeros(self.size, v.shape[1])
            whole[at] = v
            return self.apply(whole)[at]

        return replace(self, size=len(at), apply=apply)

    def inside(self, basis: Float[Tensor, "n d"]) -> SymmetricMap:
        """U^T A U: the curvature inside the span of orthonormal columns."""
        return replace(self, size=basis.shape[1], apply=lambda v: basis.T @ self.apply(basis @ v))

    def scaled(self, by: Float[Tensor, " n"]) -> SymmetricMap:
        """D A D with a diagonal D, such as P^-1/2 H P^-1/2 for an optimizer that divides by P [Cohen+22 2207.14484 §2]."""
        return replace(self, apply=lambda v: by[:, None] * self.apply(by[:, None] * v))

    def watched(self, tick: Callable[[int], None]) -> SymmetricMap:
        """The same; `tick` is told the number of columns after each product, for a progress bar."""

        def apply(v: Tensor) -> Tensor:
            product = self.apply(v)
            tick(v.shape[1])
            return product

        return replace(self, apply=apply)

    def dense(self, chunk: int = CHUNK) -> Float[Tensor, "n n"]:
        """All columns, as they come: what asymmetry there is says how exact the products are."""
        parts: list[Tensor] = []
        for start in range(0, self.size, chunk):
            width = min(chunk, self.size - start)
            columns = torch.zeros(self.size, width, dtype=self.dtype, device=self.device)
            columns[torch.arange(start, start + width), torch.arange(width)] = 1
            parts.append(self.apply(columns))
        return torch.cat(parts, dim=1)

    def linear_operator(self) -> LinearOperator:
        """The same for SciPy (`eigsh`, `lobpcg`, `cg`)."""
        from scipy.sparse.linalg import LinearOperator

        def matmat(v: np.ndarray) -> np.ndarray:
            columns = torch.from_numpy(np.ascontiguousarray(v.reshape(self.size, -1))).to(self.device, self.dtype)
            return self.apply(columns).cpu().numpy().reshape(v.shape)

        kind = torch.empty(0, dtype=self.dtype).numpy().dtype
        return LinearOperator((self.size, self.size), matvec=matmat, matmat=matmat, rmatvec=matmat, dtype=kind)  # pyright: ignore


def from_dense(matrix: Float[Tensor, "n n"]) -> SymmetricMap:
    """A matrix as a map."""
    return SymmetricMap(len(matrix), lambda v: matrix @ v, matrix.dtype, matrix.device)


def random_columns(n: int, k: int, seed: int, *labels: str | int, like: SymmetricMap) -> Float[Tensor, "n k"]:
    """Standard normal columns, drawn on the CPU in double precision, so that every device sees the same."""
    generator = torch_generator(seed, "columns", *labels)
    return torch.randn(n, k, generator=generator, dtype=torch.float64).to(like.device, like.dtype)


def asymmetry(of: SymmetricMap, seed: int = 0, pairs: int = 10) -> float:
    """Max |u.Av - v.Au| / max ||Av|| over pairs of random unit vectors: 0 but for rounding if the products are a matrix's.

    A wrong second derivative shows here at once: that of layer norms by nested reverse mode is off by 3e-2 and more.
    """
    columns = random_columns(of.size, 2 * pairs, seed, "asymmetry", like=of)
    columns = columns / lengths(columns, 0).to(columns)
    products = of @ columns
    u, v, au, av = columns[:, :pairs], columns[:, pairs:], products[:, :pairs], products[:, pairs:]
    size = float(products.norm(dim=0).max())
    return float(((u * av).sum(0) - (v * au).sum(0)).abs().max()) / size if size > 0 else 0.0
