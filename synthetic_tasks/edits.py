"""Exact edits of texts: set the counts of symbols in a window, or the distances of their k-th occurrences."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Int, UInt8, UInt64

Texts = UInt8[np.ndarray, "n length"]


def _keys(n: int, width: int, rng: np.random.Generator) -> UInt64[np.ndarray, "n width"]:
    """Random sort keys, all different within a row: 48 random bits above 16 bits of position."""
    keys = rng.integers(0, 1 << 64, size=(n, width), dtype=np.uint64)
    keys >>= np.uint64(16)
    keys <<= np.uint64(16)
    keys |= np.arange(width, dtype=np.uint64)
    return keys


def _fillers(shape: tuple[int, int], terminals: int, named: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Random terminals that are not `named`."""
    others = np.array([x for x in range(terminals) if x not in named], dtype=np.uint8)
    return np.broadcast_to(others, shape) if len(others) == 1 else others[rng.integers(len(others), size=shape)]


def set_counts(
    texts: Texts, window: int, targets: Mapping[int, Int[np.ndarray, " n"]], terminals: int, rng: np.random.Generator
) -> Texts:
    """Texts in which symbol s occurs exactly `targets[s]` times in the last `window` positions.

    The number of changed positions is the smallest possible: as many as the symbols (with all unnamed ones taken as one
    class, the filler) have too many of. Which ones change is random, nothing before the window does, and a position turned
    into filler becomes a random unnamed terminal.

    Raises:
        ValueError: when targets are negative, exceed the window, or leave room for a filler that does not exist.
    """
    n, length = texts.shape
    symbols = tuple(targets)
    wanted = [np.asarray(targets[s]) for s in symbols]
    wanted.append(window - sum(wanted, np.zeros(n, np.int64)))
    if min(int(w.min(initial=0)) for w in wanted) < 0:
        raise ValueError(f"counts must be at least 0 and sum to at most the window {window}")
    if len(symbols) == terminals and wanted[-1].any():
        raise ValueError(f"all terminals are named but their counts do not sum to the window {window}")
    keys = _keys(n, window, rng)
    keys.sort(axis=1)
    order = (keys & np.uint64(0xFFFF)).astype(np.int64)
    flat = order + (np.arange(n) * length + length - window)[:, None]
    tail = texts.ravel()[flat]  # the window in random order, so "the first m of a class" are m random ones
    class_of = np.full(terminals, len(symbols), dtype=np.uint8)
    class_of[list(symbols)] = np.arange(len(symbols))
    classes = class_of[tail]
    freed = np.zeros_like(tail, dtype=bool)
    deficits = np.zeros((len(wanted), n), dtype=np.int64)
    for c, want in enumerate(wanted):
        hits = classes == c
        rank = np.cumsum(hits, axis=1, dtype=np.int16)
        surplus = rank[:, -1] - want
        freed |= hits & (rank <= surplus[:, None])
        deficits[c] = np.maximum(-surplus, 0)
    rank = np.cumsum(freed, axis=1, dtype=np.int16)
    new = np.zeros_like(classes)
    for edge in np.cumsum(deficits, axis=0)[:-1]:
        new += rank > edge[:, None]
    palette = np.array([*symbols, 0], dtype=np.uint8)
    replacement = palette[new]
    if len(symbols) < terminals:
        replacement = np.where(new == len(symbols), _fillers(new.shape, terminals, symbols, rng), replacement)
    edited = texts.copy()
    edited.ravel()[flat] = np.where(freed, replacement, tail)
    return edited


def _choose(allowed: Bool[np.ndarray, "n width"], k: int, rng: np.random.Generator) -> Bool[np.ndarray, "n width"]:
    """A uniformly random set of `k` of the allowed positions of each row."""
    if k == 0:
        return np.zeros_like(allowed)
    keys = np.where(allowed, _keys(len(allowed), allowed.shape[1], rng), np.uint64(0xFFFF_FFFF_FFFF_FFFF))
    return keys <= np.sort(keys, axis=1)[:, k - 1 : k]


def place_occurrences(
    texts: Texts, occurrence: int, distances: Mapping[int, Int[np.ndarray, " n"]], terminals: int, rng: np.random.Generator
) -> Texts:
    """Texts in which the `occurrence`-th symbol s from the end stands at distance `distances[s]`, for two symbols.

    Everything farther from the end than both stays untouched. Nearer, the symbols' other occurrences are placed at random,
    the rest is filler, and between the two distances also further copies of the nearer symbol.

    Raises:
        ValueError: when two distances are equal, outside the text, or too near to the end for the occurrences before them.
    """
    (a, at_a), (b, at_b) = distances.items()
    near, far = np.minimum(at_a, at_b), np.maximum(at_a, at_b)
    if len(texts) == 0:
        return texts.copy()
    k, length = occurrence - 1, texts.shape[1]
    if (near == far).any() or (near < k).any() or (far < 2 * k + 1).any() or (far >= length).any():
        raise ValueError(f"distances do not leave room for occurrence {occurrence} of both symbols in {length} positions")
    nearer = np.where(at_a < at_b, a, b).astype(np.uint8)[:, None]
    farther = np.where(at_a < at_b, b, a).astype(np.uint8)[:, None]
    near, far = near[:, None], far[:, None]
    reach = int(far.max()) + 1
    position = np.arange(reach)
    is_nearer = _choose(position < near, k, rng)
    is_farther = _choose((position < far) & (position != near) & ~is_nearer, k, rng)
    coin = rng.random((len(texts), reach)) < 0.5
    is_nearer |= (position == near) | ((position > near) & coin)
    new = np.where(is_nearer, nearer, _fillers((len(texts), reach), terminals, (a, b), rng))
    new = np.where(is_farther | (position == far), farther, new)
    edited = texts.copy()
    tail = edited[:, ::-1][:, :reach]  # a view in order of distance
    tail[...] = np.where(position <= far, new, tail)
    return edited
