"""Extreme eigenpairs of a map, each with its measured residual: block Lanczos with thick restarts [Wu & Simon 2000 TRLan].

A block of b finds eigenvalues up to b times each; a single vector sees one copy of a double eigenvalue however long it runs.
New directions are orthogonalised twice against all others, so that no ghost copies appear.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.curvature.keeping import Keeper, Pieces
from workbench.curvature.maps import SymmetricMap, dots, lengths, random_columns
from workbench.errors import UserError

Which = Literal["top", "bottom"]
FLOOR = {torch.float64: 1e-12, torch.float32: 1e-5}
"""Residuals, relative to the largest eigenvalue, below which the products' own rounding lies."""
GUARD = 1e-2
"""Relative residual to which the pairs next to the wanted ones must have settled, lest one of them still rise among these."""
SEARCHED = 1e-3
"""Relative residual to which the best of a confirming search must have settled, if it comes near the k-th value."""
LEAST_STEPS = 8
"""Blocks before anything counts as settled: beside a start that solves its own eigenproblem, random vectors need them to rise."""
BASIS_BYTES = 2**30
"""Room for the basis, where the caller does not say how many vectors it may hold."""
SAVE_EVERY = 10
"""Products between two savings."""


@dataclass(frozen=True)
class Pairs:
    """Eigenpairs, outermost first. Of n < k all n; otherwise k, of which those not `converged` are the best so far."""

    values: Float[np.ndarray, " k"]
    vectors: Float[Tensor, "n k"]
    """Orthonormal columns."""
    residuals: Float[np.ndarray, " k"]
    """||A v - value v||, measured by a product of its own: some eigenvalue lies within this of the value."""
    converged: Bool[np.ndarray, " k"]
    """Whether the residual is at most `tolerance * scale`."""
    products: int
    """Columns multiplied, those of the residuals included."""
    tolerance: float
    """The one used: what was asked for, but not below what the precision allows."""
    scale: float
    """The largest absolute Ritz value."""
    confirmed: bool
    """Whether nothing can have been passed over: a search of the complement found nothing, or all of the space was spanned."""


def extreme_pairs(
    of: SymmetricMap,
    k: int,
    which: Which = "top",
    *,
    tolerance: float = 1e-6,
    block: int = 2,
    basis: int | None = None,
    most_products: int | None = None,
    confirm: bool = False,
    seed: int = 0,
    start: Float[Tensor, "n s"] | None = None,
    keeper: Keeper | None = None,
) -> Pairs:
    """The k algebraically largest or smallest eigenvalues with vectors.

    Args:
        of: the matrix.
        k: how many pairs.
        which: `top` in descending order, or `bottom` in ascending order (the most negative first).
        tolerance: largest residual relative to the largest absolute eigenvalue; at least 1e-5 is used in float32.
        block: vectors that are multiplied at once; eigenvalues of higher multiplicity are sure to be found whole only with `confirm`.
        basis: vectors held at most; 3 k + 90 if None, as far as 1 GiB holds them.
        most_products: products after which it stops with what it has, once it has k vectors; 40 k + 400 if None.
        confirm: search once more from random vectors in the complement of the pairs found, until nothing further in is
            found there; done anyway where the search ran into an invariant subspace.
        seed: of the random vectors.
        start: columns to begin from, such as the vectors of a nearby matrix: their sum takes the place of one random vector.
            Another is kept (the block is 2 at least), lest a start in the span of other eigenvectors be taken for the answer.
        keeper: keeps the state, about every 10 products, and the result; a resumed computation gives the same bits.

    Raises:
        UserError: k, block, basis or tolerance that cannot be.
    """
    if k < 1 or block < 1 or not tolerance > 0:
        raise UserError(
            f"k = {k}, block = {block}, tolerance = {tolerance:g}: k and block must be at least 1, tolerance more than 0."
        )
    k = min(k, of.size)
    name = f"pairs-{which}"
    if keeper is not None and (done := keeper.get(name)) is not None and done["vectors"].shape == (of.size, k):
        return _unpacked(done, of)
    width = min(block if start is None else max(block, 2), of.size)
    room = _room(of, k, width, basis)
    search = _Search(of, k, -1.0 if which == "bottom" else 1.0, max(tolerance, FLOOR.get(of.dtype, 1e-2)), room, seed, confirm)
    pieces = Pieces(keeper, f"{name}-state")
    search.begin(pieces, width, start)
    pairs = search.run(pieces, 40 * k + 400 if most_products is None else most_products)
    if keeper is not None:
        keeper.put(name, _packed(pairs))
        pieces.forget()
    return pairs


def _room(of: SymmetricMap, k: int, width: int, basis: int | None) -> int:
    least = k + 3 * width
    if basis is not None and basis < min(least, of.size):
        raise UserError(f"basis = {basis}: {k} pairs with blocks of {width} need room for at least {least} vectors.")
    affordable = BASIS_BYTES // (of.size * of.dtype.itemsize)
    return min(of.size, basis or max(least, min(3 * k + 90, affordable)))


@dataclass
class _Search:
    """Basis Q (rows), projected matrix T = Q A Q^T, and the next block, with A Q^T = Q^T T + next^T [0 ... 0 coupling]."""

    of: SymmetricMap
    k: int
    sign: float
    tolerance: float
    room: int
    seed: int
    confirm: bool
    rows: Tensor = field(init=False)
    """`[room + width, n]`: the basis, then the next block, then what is not yet used."""
    projected: Float[np.ndarray, "m m"] = field(init=False)
    coupling: Float[np.ndarray, "b b"] = field(init=False)
    """Of the next block (its rows) with the last block of the basis."""
    size: int = 0
    ahead: int = 0
    """Vectors of the next block; 0 where the basis spans everything."""
    products: int = 0
    restarts: int = 0
    drawn: int = 0
    """Random columns drawn, each of which has a stream of its own."""
    broke: bool = False
    """Whether an invariant subspace was met that nothing has been compared with since."""
    since: int = -1
    """While confirming: the vectors that were found before; else -1."""
    began: int = 0
    """The products before the confirming search."""
    confirmed: bool = False
    bar: float = 0.0
    """While confirming: the k-th value that was found before."""

    # --- state

    def begin(self, pieces: Pieces, width: int, start: Tensor | None) -> None:
        """From what was kept, or else from random vectors and the start."""
        of = self.of
        self.rows = torch.zeros(self.room + width, of.size, dtype=of.dtype, device=of.device)
        self.projected = np.zeros((self.room, self.room))
        if (kept := pieces.load()) is not None and kept["rows"].shape[-1] == of.size:
            self.rows[: len(kept["rows"])] = kept["rows"].to(of.device)
            state = kept["state"]
            numbers = [int(x) for x in state["numbers"]]
            self.size, self.ahead, self.products, self.restarts, self.drawn, broke, self.since, self.began = numbers
            self.broke, self.bar = bool(broke), float(state["bar"])
            self.projected[: self.size, : self.size] = state["projected"].numpy()
            self.coupling = state["coupling"].numpy()
            return
        pieces.restart()
        first = self._random(width)
        if start is not None:
            first[0] = torch.nn.functional.normalize(start.to(of.device, of.dtype), dim=0).sum(1)
        self._next_block(first)
        self.coupling = np.zeros((self.ahead, 0))
        self.broke = False  # start columns that depend on each other say nothing of the matrix

    def _save(self, pieces: Pieces) -> None:
        numbers = [self.size, self.ahead, self.products, self.restarts, self.drawn, int(self.broke), self.since, self.began]
        state = {
            "numbers": torch.tensor(numbers),
            "bar": torch.tensor(self.bar, dtype=torch.float64),
            "projected": torch.from_numpy(self.projected[: self.size, : self.size].copy()),
            "coupling": torch.from_numpy(self.coupling.copy()),
        }
        pieces.save(self.restarts, self.rows[: self.size + self.ahead], state)

    # --- the iteration

    def run(self, pieces: Pieces, most_products: int) -> Pairs:
        """Until the pairs have settled, or the products are spent."""
        saved = self.products
        while self.ahead and (self.size < self.k or self.products + self.ahead + self.k <= most_products):
            if self.size + self.ahead > self.room:
                self._restart()
                pieces.restart()
                self._save(pieces)
                saved = self.products
            self._step()
            # Small eigenproblems cost little beside a product, but not where the basis is large and the matrix small.
            look = self.size % max(1, self.size // 32) == 0 or self.size + self.ahead > self.room
            if look and self.size >= self.k and self._settled():
                if self.since < 0 and (self.confirm or self.broke) and self.ahead:
                    self._search_again()
                    pieces.restart()
                else:
                    self.confirmed = self.since >= 0
                    break
            if self.products - saved >= SAVE_EVERY:
                self._save(pieces)
                saved = self.products
        return self._measured()

    def _step(self) -> None:
        """One product with the next block, which joins the basis."""
        old, end = self.size, self.size + self.ahead
        w = self.sign * self.of.apply(self.rows[old:end].T).T.contiguous()
        self.products += self.ahead
        basis = self.rows[:end]
        along = dots(basis, w).T
        w = w - along.to(w) @ basis
        found = self._next_block(w)
        column = (along + found).T.cpu().numpy()
        self.projected[:end, old:end] = column
        self.projected[old:end, :end] = column.T
        within = column[old:end]
        self.projected[old:end, old:end] = (within + within.T) / 2

    def _next_block(self, w: Tensor) -> Tensor:
        """Orthonormal rows for what is left of a product; random ones where nothing is. Gives what lay in the basis after all."""
        end = self.size + self.ahead
        basis = self.rows[:end]
        # In double, since what comes out has to have length 1: w^T = u s vh, `[n, b] [b] [b, b]`.
        u, s, vh = torch.linalg.svd(w.T.double(), full_matrices=False)
        rows, weights = u.T.to(w.dtype).contiguous(), s[:, None] * vh
        count = min(len(rows), self.of.size - end)
        scale = float(np.abs(self.projected[:end, :end]).max(initial=0.0))
        nothing = 100 * torch.finfo(w.dtype).eps * max(scale, float(s[0]) if end == 0 else 0.0)
        alive = int((s > nothing).sum())
        along = torch.zeros(len(w), end, dtype=torch.float64, device=w.device)
        if alive:
            inside = dots(basis, rows[:alive]).T
            rows[:alive] -= inside.to(w) @ basis
            along = weights[:alive].T @ inside
        live = min(alive, count)
        if live < count:
            rows[live:count] = self._random(count - live)
            self.broke = True
        for turn in range(2 if live < count else 1):  # random rows twice too
            rows[live:count] -= dots(rows[live:count], basis).to(w) @ basis
            q, r = torch.linalg.qr(rows[:count].T.double())
            if turn == 0 and live:
                weights = r[:live, :live] @ weights[:live]
            rows = q.T.to(w.dtype).contiguous()
        coupling = torch.zeros(count, len(w), dtype=torch.float64)
        coupling[:live] = weights[:live].cpu()
        self.coupling = coupling.numpy()
        self.size, self.ahead = end, count
        self.rows[end : end + count] = rows[:count]
        return along

    def _random(self, count: int) -> Tensor:
        columns = [random_columns(self.of.size, 1, self.seed, "lanczos", self.drawn + i, like=self.of) for i in range(count)]
        self.drawn += count
        return torch.cat(columns, dim=1).T if columns else self.rows[:0]

    def _ritz(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values in descending order, vectors in the basis, and what the coupling says of their residuals."""
        values, vectors = np.linalg.eigh(self.projected[: self.size, : self.size])
        values, vectors = values[::-1].copy(), vectors[:, ::-1].copy()
        last = self.coupling.shape[1]
        return values, vectors, np.linalg.norm(self.coupling @ vectors[self.size - last :], axis=0)

    def _settled(self) -> bool:
        values, _, residuals = self._ritz()
        scale = np.abs(values).max()
        bound = self.tolerance * scale
        if self.since >= 0:
            inside, vectors = self._complement()
            if inside[0] > self.bar + bound:  # news: it joins what is found, which has to be confirmed in turn
                self.since, self.broke = -1, True
            else:
                last = self.coupling.shape[1]
                rest = float(np.linalg.norm(self.coupling @ vectors[len(vectors) - last :, 0]))
                enough = self.products - self.began >= LEAST_STEPS * self.ahead or not self.ahead
                return enough and bool(inside[0] + rest <= self.bar or rest <= SEARCHED * scale)
        if self.products < LEAST_STEPS * self.ahead or (residuals[: self.k] > bound / 2).any():  # half, for rounding
            return False
        return bool((residuals[self.k : self.k + self.coupling.shape[1]] <= GUARD * scale).all())

    def _complement(self) -> tuple[np.ndarray, np.ndarray]:
        """Ritz values and vectors of what a confirming search has seen, descending."""
        values, vectors = np.linalg.eigh(self.projected[self.since : self.size, self.since : self.size])
        return values[::-1].copy(), vectors[:, ::-1].copy()

    # --- restarts

    def _restart(self) -> None:
        """Keep the best Ritz vectors, in a confirming search those of the complement beside what was found; and the next block."""
        fixed = max(self.since, 0)
        keep = max(self.k - fixed, 1) + (self.room - self.k - 2 * self.ahead) // 2
        best = self._complement()[1] if fixed else self._ritz()[1]
        turn = np.eye(self.size, fixed + keep)
        turn[fixed:, fixed:] = best[:, :keep]
        self._turn(turn)

    def _turn(self, turn: Float[np.ndarray, "j p"]) -> None:
        """Keep these orthonormal combinations of the basis."""
        keep = turn.shape[1]
        after = self.rows[self.size : self.size + self.ahead].clone()
        self.rows[:keep] = torch.from_numpy(turn).to(self.rows.device, self.rows.dtype).T @ self.rows[: self.size]
        self.rows[keep : keep + self.ahead] = after
        kept = turn.T @ self.projected[: self.size, : self.size] @ turn
        self.projected[:] = 0
        self.projected[:keep, :keep] = (kept + kept.T) / 2
        self.coupling = np.zeros((self.ahead, 0))  # with all that is kept; the next product tells
        self.size = keep
        self.restarts += 1

    def _search_again(self) -> None:
        """Random vectors in the complement of the wanted pairs, to see whether anything was passed over."""
        width = self.ahead
        self._turn(self._ritz()[1][:, : self.k])
        self.ahead = 0
        self._next_block(self._random(width))
        self.coupling = np.zeros((self.ahead, 0))
        self.bar = float(self.projected.diagonal()[: self.k].min())
        self.broke, self.since, self.began = False, self.k, self.products

    def _measured(self) -> Pairs:
        values, vectors, _ = self._ritz()
        k = min(self.k, self.size)
        chosen = torch.from_numpy(vectors[:, :k]).to(self.rows.device, self.rows.dtype)
        found = self.rows[: self.size].T @ chosen
        found = found / lengths(found, 0).to(found)
        image = self.of @ found
        sharp = (found.double() * image.double()).sum(0)
        residuals = (image.double() - sharp * found.double()).norm(dim=0).cpu().numpy()
        scale = float(np.abs(values).max())
        converged, confirmed = residuals <= self.tolerance * scale, self.confirmed or not self.ahead
        products = self.products + k
        return Pairs(sharp.cpu().numpy(), found, residuals, converged, products, self.tolerance, scale, confirmed)


NUMBERS = ("products", "tolerance", "scale", "confirmed")


def _packed(pairs: Pairs) -> dict[str, Tensor]:
    arrays = {name: torch.from_numpy(getattr(pairs, name).copy()) for name in ("values", "residuals", "converged")}
    numbers = torch.tensor([getattr(pairs, name) for name in NUMBERS], dtype=torch.float64)
    return {**arrays, "vectors": pairs.vectors, "numbers": numbers}


def _unpacked(kept: dict[str, Tensor], of: SymmetricMap) -> Pairs:
    values, residuals, converged = (kept[name].numpy() for name in ("values", "residuals", "converged"))
    products, tolerance, scale, confirmed = kept["numbers"].tolist()
    vectors = kept["vectors"].to(of.device)
    return Pairs(values, vectors, residuals, converged, int(products), tolerance, scale, bool(confirmed))
