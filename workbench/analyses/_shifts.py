"""How two clouds of activations lie to one another: by how much one is moved, how alike for all, and how far apart they are."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from workbench.measures import DRAWS, derived
from workbench.results import Metric
from workbench.statistics import resampling

NORM, CONSTANT = "relative norm", "constant share"
ROUNDING = 1e-5
"""Distances below this share of the activations' size are rounding."""


def shift(before: Float[np.ndarray, "n d"], after: Float[np.ndarray, "n d"], seed: int) -> dict[str, Metric]:
    """`NORM`: |E d| / E|before|, and `CONSTANT`: |E d|² / E|d|², of the differences d of the same n texts.

    |E d|² is estimated from pairs of different texts, (|sum d|² - sum |d|²) / (n (n - 1)), whose mean is right for any n; a draw
    of the bootstrap leaves out the pairs of a text with itself likewise. The share is undefined where nothing moved.
    """
    n = len(before)
    x, d = before.astype(np.float64), (after - before).astype(np.float64)
    squares, size = (d**2).sum(1), np.linalg.norm(x, axis=1)
    weights = resampling(n, DRAWS, seed)
    alike = (weights**2).sum(1)
    constant = (((weights @ d) ** 2).sum(1) - weights**2 @ squares) / (1 - alike)
    value = float((n * (d.mean(0) ** 2).sum() - squares.mean()) / (n - 1))
    whole, sizes = weights @ squares, weights @ size
    moved = math.sqrt(float(squares.mean())) > ROUNDING * float(size.mean())
    with np.errstate(divide="ignore", invalid="ignore"):
        share = derived(
            CONSTANT, value / float(squares.mean()) if moved else math.nan, constant / whole, n, "share of the change"
        )
        norms = np.sqrt(np.maximum(constant, 0)) / sizes
    norm = derived(NORM, math.sqrt(max(value, 0)) / float(size.mean()), norms, n, "share of the norm")
    return {NORM: norm, CONSTANT: share}


def separation(own: Float[np.ndarray, "n d"], other: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """(b - a) / max(a, b) per text and averaged over its two activations, one of each class.

    a is the distance to the mean of an activation's own class, b to that of the other; both means leave the text out. 0 where
    all activations are the same.
    """
    n = len(own)
    x, y = own.astype(np.float64), other.astype(np.float64)

    def without(z: np.ndarray) -> np.ndarray:
        return (z.sum(0) - z) / (n - 1)

    def relative(z: np.ndarray, mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        a, b = (np.linalg.norm(z - mean, axis=1) for mean in (mine, theirs))
        largest = np.maximum(a, b)
        apart = largest > ROUNDING * np.linalg.norm(z, axis=1).mean()
        return np.where(apart, (b - a) / np.where(apart, largest, 1), 0.0)

    return (relative(x, without(x), without(y)) + relative(y, without(y), without(x))) / 2
