"""Rows of `weights`: what an update did to each part of a model, beside what a random change of equal norm would have done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.analyses._ends import Update
from workbench.models.matrices import Part, change
from workbench.models.spectra import (
    entropy_rank,
    intruders,
    random_cosine,
    random_share,
    random_singular,
    rank_for,
    share_inside,
    sine,
    space,
    stable_rank,
)
from workbench.seeds import torch_generator

UNITS = {
    "norm": "weight norm",
    "relative_norm": "share of the weights' norm",
    "cosine": "cosine",
    "share_of_change": "share of the squared change",
    "undo": "cosine",
    "undone": "share of the change",
    "stable_rank": "directions",
    "entropy_rank": "directions",
    "rank_90": "directions",
    "full_rank": "directions",
    "start_rank": "directions",
    "intruders": "directions",
    "column_share": "share of the squared change",
    "row_share": "share of the squared change",
    "column_sine": "sine",
    "row_sine": "sine",
}
"""Measures of an update, and their units."""
RANKS = {"stable_rank": stable_rank, "entropy_rank": entropy_rank, "rank_90": rank_for}

Range = tuple[float, float, float]


def tables(
    updates: Sequence[Update], parts: Sequence[Part], draws: int, top: int, epsilon: float, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The tables `table` (one row per update, part, measure and source), `whole` (all weights as one vector), `spectrum`."""
    null = _Null(draws, seed)
    rows: list[dict[str, Any]] = []
    spectra: list[dict[str, Any]] = []
    whole: list[dict[str, Any]] = []
    first: list[Tensor] = []  # the fine-tuning, which the other updates are held against
    for update in updates:
        steps = [change(part, update.before, update.after) for part in parts]
        total = _square(steps)
        before = [part.of(update.before).detach().cpu().double() for part in parts]
        entries = sum(step.numel() for step in steps)
        for i, (part, weights, step) in enumerate(zip(parts, before, steps, strict=True)):
            at = {"update": update.name, "block": part.block, "kind": part.kind, "parameter": part.parameter}
            found = _sizes(weights, step, total, entries)
            if first:
                found["undo"] = cosine(first[i], step), _around(0.0, random_cosine(step.numel()))
            if part.is_matrix and bool(step.any()):
                found |= _directions(weights, step, null, top, epsilon)
                spectra += [{**at, **row} for row in _spectrum(step, null)]
            rows += [{**at, **row} for row in _rows(found, draws)]
        whole += [{"update": update.name, **row} for row in _rows(_whole(before, steps, first), draws)]
        first = first or steps
    return pd.DataFrame(rows), pd.DataFrame(whole), pd.DataFrame(spectra)


Found = dict[str, tuple[float, Range | None]]
"""A measure's value, and of a random change of equal norm, where that says something, the mean and the central 95 % or range of draws."""


def _rows(found: Found, draws: int) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for name, (value, random) in found.items():
        what = {"measure": name, "unit": UNITS[name]}
        out.append({**what, "source": "update", "value": value, "low": value, "high": value, "n": 0})
        if random is not None:
            out.append({**what, "source": "random", **dict(zip(("value", "low", "high"), random, strict=True)), "n": draws})
    return out


def _square(vectors: Sequence[Tensor]) -> float:
    return float(sum(float(v.square().sum()) for v in vectors))


def cosine(a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"]) -> float:
    """Cosine of two arrays as vectors; NaN where one is zero."""
    size = float(a.norm()) * float(b.norm())
    return float((a * b).sum()) / size if size > 0 else math.nan


def _around(value: float, half: float) -> Range:
    return value, value - half, value + half


def _same(value: float) -> Range:
    return value, value, value


def _sizes(weights: Tensor, step: Tensor, total: float, entries: int) -> Found:
    size, was = float(step.norm()), float(weights.norm())
    relative = size / was if was > 0 else math.nan
    return {
        "norm": (size, None),
        "relative_norm": (relative, None),
        # A random change is at a right angle to the weights.
        "cosine": (cosine(weights, weights + step), _same(1 / math.sqrt(1 + relative**2))),
        "share_of_change": (size**2 / total if total > 0 else math.nan, _same(step.numel() / entries)),
    }


def _whole(before: Sequence[Tensor], steps: Sequence[Tensor], first: Sequence[Tensor]) -> Found:
    square, was = _square(steps), _square(before)
    relative = math.sqrt(square / was) if was > 0 else math.nan
    along = sum(float((w * (w + d)).sum()) for w, d in zip(before, steps, strict=True))
    after = _square([w + d for w, d in zip(before, steps, strict=True)])
    found: Found = {
        "norm": (math.sqrt(square), None),
        "relative_norm": (relative, None),
        "cosine": (along / math.sqrt(was * after) if was * after > 0 else math.nan, _same(1 / math.sqrt(1 + relative**2))),
    }
    if first:
        product = sum(float((d * r).sum()) for d, r in zip(first, steps, strict=True))
        base, entries = _square(first), sum(d.numel() for d in first)
        near = random_cosine(entries)
        found["undo"] = product / math.sqrt(base * square) if base * square > 0 else math.nan, _around(0.0, near)
        scale = math.sqrt(square / base) if base > 0 else math.nan
        found["undone"] = -product / base if base > 0 else math.nan, _around(0.0, near * scale)
    return found


def _directions(weights: Tensor, step: Tensor, null: _Null, top: int, epsilon: float) -> Found:
    out, into = step.shape
    u, s, vh = torch.linalg.svd(step, full_matrices=False)
    left, right, r = space(weights)
    columns, rows = left[:, :r], right[:, :r]
    found: Found = {name: (float(of(s)), null.ranks(step.shape, name)) for name, of in RANKS.items()}
    found["full_rank"] = float(min(out, into)), None
    found["start_rank"] = float(r), None
    found["intruders"] = (
        float(intruders(weights + step, left, top, epsilon)),
        null.intruders(weights, float(step.norm()), left, top, epsilon),
    )
    found["column_share"] = share_inside(step, columns), random_share(r, out, into)
    found["row_share"] = share_inside(step.T, rows), random_share(r, into, out)
    found["column_sine"] = sine(u[:, 0], columns), _sine_range(r, out)
    found["row_sine"] = sine(vh[0], rows), _sine_range(r, into)
    return found


def _sine_range(r: int, dim: int) -> Range:
    """Root mean square and 95 % range of the sine for a random direction: its square is 1 - share."""
    mean, low, high = (math.sqrt(1 - share) for share in random_share(r, dim))
    return mean, high, low


def _spectrum(step: Tensor, null: _Null) -> list[dict[str, Any]]:
    """Singular values as shares of the Frobenius norm, largest first, and mean and range of those of random matrices."""
    own = torch.linalg.svdvals(step)
    own = (own / own.norm()).tolist()
    random = null.singular(step.shape)
    low, high = random.amin(0).tolist(), random.amax(0).tolist()
    unit = {"unit": "share of the norm"}
    mine = [{"index": i + 1, "source": "update", "value": v, "low": v, "high": v, "n": 0, **unit} for i, v in enumerate(own)]
    others = zip(random.mean(0).tolist(), low, high, strict=True)
    return mine + [
        {"index": i + 1, "source": "random", "value": m, "low": a, "high": b, "n": len(random), **unit}
        for i, (m, a, b) in enumerate(others)
    ]


class _Null:
    """What Gaussian matrices of a shape have; each shape is drawn once."""

    def __init__(self, draws: int, seed: int) -> None:
        self.draws, self.seed = draws, seed
        self.singular = cache(lambda shape: random_singular(tuple(shape), draws, seed))

    def ranks(self, shape: torch.Size, name: str) -> Range:
        return self._range(RANKS[name](self.singular(shape)))

    def intruders(self, weights: Tensor, norm: float, left: Tensor, top: int, epsilon: float) -> Range:
        generator = torch_generator(self.seed, "random change", *weights.shape)
        counts: list[int] = []
        for _ in range(self.draws):
            step = torch.randn(weights.shape, generator=generator, dtype=weights.dtype)
            counts.append(intruders(weights + step * (norm / step.norm()), left, top, epsilon))
        return self._range(torch.tensor(counts, dtype=torch.float64))

    def _range(self, values: Float[Tensor, " draws"]) -> Range:
        return float(values.mean()), float(values.min()), float(values.max())
