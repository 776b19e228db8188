"""The density of a spectrum by stochastic Lanczos quadrature, its moments with intervals, and full spectra for small matrices.

A random unit vector q sees the spectrum through the weights (q.u_i)^2; m steps of Lanczos give the Gauss quadrature of that
measure, exact for moments 0..2m-1 [Golub & Meurant 2010; Ghorbani+19 1901.10159]. The outliers carry most of the variance over
q, so the pairs that are known are taken out and put back as exact point masses. Nothing is smoothed but for drawing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.curvature.keeping import Keeper, Pieces
from workbench.curvature.lanczos import Pairs
from workbench.curvature.maps import SymmetricMap, dots, lengths, random_columns
from workbench.errors import UserError
from workbench.statistics import Floats, Interval, Numbers

BASES_BYTES = 2**30
"""Room for the bases of the probes that run together."""
TOGETHER = 32
"""Probes that run together at most."""
SAVE_EVERY = 10
"""Steps between two savings."""
FULL_BELOW = 10_000
"""The largest matrix of which the full spectrum is made."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Density:
    """Point masses: per probe the nodes with their weights, which sum to (n - k)/n, and the k deflated values with 1/n each.

    Without probes (`from_eigenvalues`, or all pairs deflated) it is the exact spectrum.
    """

    nodes: Float[np.ndarray, "probes m"]
    weights: Float[np.ndarray, "probes m"]
    deflated: Float[np.ndarray, " k"]
    size: int
    products: int = 0

    def masses(self) -> tuple[Floats, Floats]:
        """Places and masses of the mean over probes; the masses sum to 1."""
        places = np.concatenate([self.nodes.ravel(), self.deflated])
        point = np.full(len(self.deflated), 1 / self.size)
        return places, np.concatenate([self.weights.ravel() / max(1, len(self.nodes)), point])

    def mean(self, function: Callable[[Floats], Floats]) -> Interval:
        """The mean of a function over the eigenvalues with its t-interval over probes: NaN ends with one probe, none where exact."""
        exact = float(function(self.deflated).sum()) / self.size
        probes = len(self.nodes)
        if not probes:
            return Interval(exact, exact, exact)
        each = exact + (self.weights * function(self.nodes)).sum(1)
        half = np.nan
        if probes > 1:
            from scipy.special import stdtrit

            half = float(stdtrit(probes - 1, 0.5 + CONFIDENCE / 2)) * float(each.std(ddof=1)) / np.sqrt(probes)
        return Interval(float(each.mean()), float(each.mean() - half), float(each.mean() + half))

    def moment(self, power: int) -> Interval:
        """The mean of lambda^power."""
        return self.mean(lambda values: values**power)

    @property
    def trace(self) -> Interval:
        """The sum of the eigenvalues."""
        return self._total(self.moment(1))

    @property
    def frobenius_squared(self) -> Interval:
        """The sum of their squares."""
        return self._total(self.moment(2))

    def _total(self, mean: Interval) -> Interval:
        return Interval(*(self.size * x for x in (mean.value, mean.low, mean.high)))


def from_eigenvalues(values: Numbers) -> Density:
    """A known spectrum, so that it is drawn and compared like an estimated one."""
    known = np.asarray(values, dtype=np.float64).ravel()
    return Density(np.zeros((0, 0)), np.zeros((0, 0)), known, len(known))


def wasserstein(density: Density, exact: Numbers) -> float:
    """W1, the area between the two distribution functions, in units of the eigenvalues."""
    from scipy.stats import wasserstein_distance

    places, masses = density.masses()
    return float(wasserstein_distance(places, np.asarray(exact, dtype=np.float64), masses))


def symlog(values: Numbers, linear: float) -> Floats:
    """Eigenvalues in decades: linear around 0 within `linear`, logarithmic beyond, smooth between."""
    return np.arcsinh(np.asarray(values, dtype=np.float64) / (2 * linear)) / np.log(10)


def smoothed(density: Density, grid: Numbers, width: float, linear: float) -> Floats:
    """The density per decade at the grid's eigenvalues, for drawing only: normal kernels on the symlog axis.

    Args:
        density: what to draw.
        grid: eigenvalues.
        width: standard deviation of the kernel, in decades.
        linear: below this the axis is linear.
    """
    places, masses = density.masses()
    apart = (symlog(grid, linear)[:, None] - symlog(places, linear)) / width
    return np.exp(-(apart**2) / 2) @ masses / (width * np.sqrt(2 * np.pi))


def density(
    of: SymmetricMap,
    *,
    steps: int = 80,
    probes: int = 10,
    deflate: Pairs | None = None,
    seed: int = 0,
    keeper: Keeper | None = None,
) -> Density:
    """Stochastic Lanczos quadrature with normal probes and full reorthogonalisation; probes run side by side as columns.

    Args:
        of: the matrix.
        steps: products for each probe, and nodes; fewer where the complement of the deflated pairs is smaller.
        probes: random vectors. The interval is over them: at least 2 to have one.
        deflate: pairs to take out; those that are not converged stay in.
        seed: of the probes, of which each has a stream of its own.
        keeper: keeps the state about every 10 steps and what each group of probes gave; resuming gives the same bits.

    Raises:
        UserError: steps or probes less than 1.
    """
    if steps < 1 or probes < 1:
        raise UserError(f"steps = {steps}, probes = {probes}: a density needs at least 1 of each.")
    good = np.zeros(0, dtype=bool) if deflate is None else deflate.converged
    out = torch.zeros(of.size, 0, dtype=of.dtype, device=of.device)
    values = np.zeros(0)
    if deflate is not None and good.any():
        out = deflate.vectors[:, torch.from_numpy(good).to(of.device)].to(of.device, of.dtype).contiguous()
        values = deflate.values[good]
    left = of.size - len(values)
    steps = min(steps, left)
    if not left:
        return Density(np.zeros((0, 0)), np.zeros((0, 0)), values, of.size)
    room = max(1, BASES_BYTES // ((steps + 1) * of.size * of.dtype.itemsize))
    together = min(probes, room, TOGETHER)
    nodes: list[Floats] = []
    weights: list[Floats] = []
    for first in range(0, probes, together):
        chosen = range(first, min(first + together, probes))
        alpha, beta = _tridiagonal(of, out, steps, chosen, seed, keeper)
        for a, b in zip(alpha, beta, strict=True):
            found, vectors = np.linalg.eigh(np.diag(a) + np.diag(b[:-1], 1) + np.diag(b[:-1], -1))
            nodes.append(found)
            weights.append(vectors[0] ** 2 * (left / of.size))
    return Density(np.array(nodes), np.array(weights), values, of.size, steps * probes)


def _tridiagonal(
    of: SymmetricMap, out: Tensor, steps: int, probes: range, seed: int, keeper: Keeper | None
) -> tuple[Float[np.ndarray, "p m"], Float[np.ndarray, "p m"]]:
    """Lanczos from each probe in the complement of `out`: diagonals, and what follows each of them beside the diagonal.

    A probe that meets an invariant subspace goes on with zeros, whose nodes have weight 0.
    """
    name = f"density-{probes.start}"
    if keeper is not None and (done := keeper.get(name)) is not None and done["alpha"].shape == (len(probes), steps):
        return done["alpha"].numpy(), done["beta"].numpy()
    alpha, beta = (torch.zeros(len(probes), steps, dtype=torch.float64) for _ in range(2))
    rows = torch.zeros(len(probes), steps, of.size, dtype=of.dtype, device=of.device)
    pieces = Pieces(keeper, "density-state")
    begun = 0
    if (kept := pieces.load(probes.start)) is not None and kept["rows"].shape[::2] == rows.shape[::2]:
        begun = kept["rows"].shape[1] - 1
        rows[:, : begun + 1] = kept["rows"].to(of.device)
        alpha[:, :begun], beta[:, :begun] = kept["state"]["alpha"], kept["state"]["beta"]
    else:
        pieces.restart()
        drawn = torch.cat([random_columns(of.size, 1, seed, "density", i, like=of) for i in probes], dim=1)
        for _ in range(2):
            drawn = _without(drawn, out)
        rows[:, 0] = (drawn / lengths(drawn, 0).to(drawn)).T
    tiny = 100 * torch.finfo(of.dtype).eps
    for j in range(begun, steps):
        w = _without(of.apply(rows[:, j].T), out).T.contiguous()
        for p in range(len(probes)):
            v = w[p]
            a = dots(rows[p, j : j + 1], v[None])[0, 0]
            v -= a.to(v) * rows[p, j]
            if j:
                v -= beta[p, j - 1].to(v) * rows[p, j - 1]
            size = _orthogonalise(v, rows[p, : j + 1])
            alpha[p, j] = a
            scale = max(float(alpha[p].abs().max()), float(beta[p].abs().max()))
            if float(size) > tiny * scale:
                beta[p, j] = size
                if j + 1 < steps:
                    rows[p, j + 1] = v / size.to(v)
        if j + 1 < steps and (j + 1 - begun) % SAVE_EVERY == 0:
            pieces.save(probes.start, rows[:, : j + 2], {"alpha": alpha[:, : j + 1], "beta": beta[:, : j + 1]})
    if keeper is not None:
        keeper.put(name, {"alpha": alpha, "beta": beta})
        pieces.forget()
    return alpha.numpy(), beta.numpy()


def _orthogonalise(v: Float[Tensor, " n"], rows: Float[Tensor, "j n"]) -> Tensor:
    """Take out of v, in place, what lies in the rows; again where that was much [Daniel+76, "twice is enough"]. Gives its norm."""
    before = lengths(v, 0)
    v.addmv_(rows.T, rows @ v, alpha=-1)
    size = lengths(v, 0)
    if size <= before / 2:
        v.addmv_(rows.T, rows @ v, alpha=-1)
        size = lengths(v, 0)
    return size


def _without(columns: Tensor, out: Tensor) -> Tensor:
    return columns - out @ (out.T @ columns) if out.shape[1] else columns


@dataclass(frozen=True)
class Full:
    """All eigenvalues, ascending; eigenvectors as columns where asked for."""

    values: Float[np.ndarray, " n"]
    vectors: Float[Tensor, "n n"] | None
    asymmetry: float
    """||A - A^T||_F / ||A||_F of the products as they came, before symmetrising: rounding, or a wrong derivative."""


def full_spectrum(of: SymmetricMap, vectors: bool = False) -> Full:
    """Every column by a product, symmetrised, then a dense eigenproblem in double precision.

    Raises:
        UserError: more than 10,000 rows.
    """
    if of.size > FULL_BELOW:
        room = 3 * 8 * of.size**2 / 2**30
        raise UserError(
            f"a full spectrum of {of.size:,} parameters would take {room:,.0f} GiB and {of.size:,} products; the most is "
            f"{FULL_BELOW:,}. Choose some of the parameters, or ask for extreme pairs and a density."
        )
    matrix = of.dense().double()
    size = float(matrix.norm())
    asymmetry = float((matrix - matrix.T).norm()) / size if size else 0.0
    matrix = (matrix + matrix.T) / 2
    if vectors:
        found, columns = torch.linalg.eigh(matrix)
        return Full(found.cpu().numpy(), columns, asymmetry)
    return Full(torch.linalg.eigvalsh(matrix).cpu().numpy(), None, asymmetry)
