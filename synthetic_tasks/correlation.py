"""Balanced and spuriously correlated texts with exact labels [Jain+23 §5, §B.2].

A correlated text (C=1) has `target == partner + offset`; an uncorrelated one (C=0) never has. Natural labels are narrow, so
both labels are first spread evenly over a range in which every combination fits:

- counts: partner on floor(.2 w) .. floor(.45 w) of a window w;
- distances of the k-th occurrence: partner on 2(k-1) .. 2(k-1)+15;

shortened where the offset or the text would leave no room. The target's range is the partner's, extended by the offset.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8

from synthetic_tasks.edits import place_occurrences, set_counts
from workbench.errors import UserError

Texts = UInt8[np.ndarray, "n length"]
Pair = tuple[int, int]
"""Target and partner, as terminal indices."""

MAX_ROUNDS = 200
"""Rounds of rejection sampling before a relation is declared impossible."""
ROUND_SIZE = 4096


@dataclass(frozen=True)
class Ranges:
    """Admissible labels, ends included."""

    partner: tuple[int, int]
    target: tuple[int, int]
    offset: int
    distinct: bool
    """Whether the two labels can never be equal (two symbols cannot stand in one place)."""

    def draw(self, correlated: Bool[np.ndarray, " n"], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(target, partner) [n] each: related exactly where `correlated`, uniform over what is left elsewhere."""
        n = len(correlated)
        partner = rng.integers(self.partner[0], self.partner[1] + 1, size=n)
        related = partner + self.offset
        excluded = [np.minimum(partner, related), np.maximum(partner, related)] if self.distinct else [related]
        target = rng.integers(self.target[0], self.target[1] + 1 - len(excluded), size=n)
        for value in excluded:  # ascending, so that each step skips one excluded value
            target += target >= value
        return np.where(correlated, related, target), partner


def count_ranges(window: int, offset: int) -> Ranges:
    """Ranges of two counts that fit into one window together.

    Raises:
        UserError: when fewer than two partner values or target values are possible.
    """
    low, high = int(0.2 * window + 1e-9), int(0.45 * window + 1e-9)
    # Largest sum: the partner at its top and the target at its own, which an offset above 0 raises.
    first, last = max(low, -offset), min(high, (window - max(offset, 0)) // 2)
    if last <= first:
        raise UserError(
            f"offset {offset} between two counts does not fit the window {window}; "
            "use an offset nearer to 0 or a larger window."
        )
    return Ranges((first, last), (first + min(offset, 0), last + max(offset, 0)), offset, distinct=False)


def index_ranges(text_length: int, occurrence: int, offset: int) -> Ranges:
    """Ranges of the distances of two symbols' k-th occurrences.

    Raises:
        UserError: when the offset is 0 (one place cannot hold two symbols) or leaves fewer than two distances.
    """
    if offset == 0:
        raise UserError("offset 0 between two indices is impossible, since two symbols cannot share a position; use 1 or -1.")
    first = 2 * (occurrence - 1) + max(-offset, 0)
    last = min(first + 15, text_length - 1 - max(offset, 0))
    if last <= first:
        raise UserError(
            f"offset {offset} between two indices of occurrence {occurrence} does not fit the text length {text_length}; "
            "use an offset nearer to 0, an earlier occurrence or longer texts."
        )
    return Ranges((first, last), (first + min(offset, 0), last + max(offset, 0)), offset, distinct=True)


@dataclass(frozen=True)
class CountRecipe:
    """Texts with chosen counts of two symbols in the last `window` positions."""

    window: int
    terminals: int

    def correlate(
        self, texts: Texts, pair: Pair, offset: int, correlated: Bool[np.ndarray, " n"], rng: np.random.Generator
    ) -> Texts:
        """Texts with count(target) == count(partner) + offset exactly where `correlated`."""
        target, partner = count_ranges(self.window, offset).draw(correlated, rng)
        return set_counts(texts, self.window, {pair[0]: target, pair[1]: partner}, self.terminals, rng)

    def balance(self, texts: Texts, pair: Pair, rng: np.random.Generator) -> Texts:
        """Texts with independent, uniform counts, so that any relation occurs by chance only."""
        low = int(0.2 * self.window + 1e-9)
        high = min(int(0.45 * self.window + 1e-9) + 1, self.window // 2)
        counts = rng.integers(low, high + 1, size=(2, len(texts)))
        return set_counts(texts, self.window, {pair[0]: counts[0], pair[1]: counts[1]}, self.terminals, rng)


@dataclass(frozen=True)
class IndexRecipe:
    """Texts with chosen distances of the `occurrence`-th of two symbols."""

    occurrence: int
    text_length: int
    terminals: int

    def correlate(
        self, texts: Texts, pair: Pair, offset: int, correlated: Bool[np.ndarray, " n"], rng: np.random.Generator
    ) -> Texts:
        """Texts with index(target) == index(partner) + offset exactly where `correlated`."""
        target, partner = index_ranges(self.text_length, self.occurrence, offset).draw(correlated, rng)
        return place_occurrences(texts, self.occurrence, {pair[0]: target, pair[1]: partner}, self.terminals, rng)

    def balance(self, texts: Texts, pair: Pair, rng: np.random.Generator) -> Texts:
        """Texts with independent distances, uniform over pairs that differ."""
        low = 2 * (self.occurrence - 1)
        high = min(low + 16, self.text_length - 1)
        if high <= low:
            raise UserError(
                f"occurrence {self.occurrence} of two symbols cannot be placed in texts of length {self.text_length}; "
                "use an earlier occurrence, longer texts, or balanced_fraction 0."
            )
        first = rng.integers(low, high + 1, size=len(texts))
        second = rng.integers(low, high, size=len(texts))
        second += second >= first
        return place_occurrences(texts, self.occurrence, {pair[0]: first, pair[1]: second}, self.terminals, rng)


Recipe = CountRecipe | IndexRecipe


def draw_correlated(share: float, n: int, rng: np.random.Generator) -> Bool[np.ndarray, " n"]:
    """Which texts are correlated: each with probability `share`; 0 is none and 1 is all."""
    return rng.random(n) < share


def select_natural(
    draw: Callable[[int], Texts],
    relation: Callable[[Texts], tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]],
    correlated: Bool[np.ndarray, " n"],
    name: str,
) -> Texts:
    """Unedited texts that obey a relation exactly where `correlated`, by bounded rejection sampling.

    `draw(m)` gives m natural texts; `relation(texts)` gives (holds, excluded), where an excluded text is used for neither.

    Raises:
        UserError: when too few such texts are found in `MAX_ROUNDS` rounds.
    """
    wanted = {True: np.flatnonzero(correlated), False: np.flatnonzero(~correlated)}
    found: dict[bool, list[np.ndarray]] = {True: [], False: []}
    missing = {side: len(rows) for side, rows in wanted.items()}
    for _ in range(MAX_ROUNDS):
        if not any(missing.values()):
            break
        texts = draw(ROUND_SIZE)
        holds, excluded = relation(texts)
        for side, rows in ((True, holds & ~excluded), (False, ~holds & ~excluded)):
            kept = texts[rows][: missing[side]]
            found[side].append(kept)
            missing[side] -= len(kept)
    if any(missing.values()):
        raise UserError(
            f"{name} {'holds' if missing[True] else 'fails'} in too few natural texts ({sum(missing.values())} of "
            f"{len(correlated)} not found in {MAX_ROUNDS * ROUND_SIZE:,}); use another offset, or a family that can be edited "
            "(count, index)."
        )
    texts = np.concatenate([part for side in (True, False) for part in found[side]] or [draw(0)])
    result = np.empty_like(texts)
    result[np.concatenate([wanted[True], wanted[False]])] = texts
    return result
