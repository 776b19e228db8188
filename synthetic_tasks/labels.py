"""Exact labels of texts: counts and positions read off the end of a text [Jain+23 §B.2].

A text is a row of terminal indices. Distance 0 is the last token of the text. `symbol` is one terminal index, or one per
text. All functions are vectorised over texts and return int64.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int, UInt8

Texts = UInt8[np.ndarray, "n length"]
Symbol = int | Int[np.ndarray, " n"]
"""One terminal index for all texts, or one per text."""

ABSENT = -1
"""Label of an occurrence that the text does not have."""


def _is(texts: Texts, symbol: Symbol) -> Bool[np.ndarray, "n length"]:
    return texts == np.asarray(symbol, dtype=np.uint8).reshape(-1, 1)


def _is_pair(texts: Texts, pair: tuple[Symbol, Symbol]) -> Bool[np.ndarray, "n length-1"]:
    """Where the LEFT symbol of the pair stands."""
    return _is(texts[:, :-1], pair[0]) & _is(texts[:, 1:], pair[1])


def _first_reach(hits: Bool[np.ndarray, "n m"], occurrence: int) -> Int[np.ndarray, " n"]:
    """Distance from the last column of the `occurrence`-th hit counted from the end, or `ABSENT`."""
    if hits.shape[1] == 0:
        return np.full(len(hits), ABSENT)
    reached = np.cumsum(hits[:, ::-1], axis=1, dtype=np.int16) >= occurrence
    return np.where(reached[:, -1], reached.argmax(axis=1), ABSENT)


def count(texts: Texts, symbol: Symbol, window: int) -> Int[np.ndarray, " n"]:
    """How often `symbol` occurs in the last `window` positions."""
    return np.count_nonzero(_is(texts[:, texts.shape[1] - window :], symbol), axis=1)


def pair_count(texts: Texts, pair: tuple[Symbol, Symbol], window: int) -> Int[np.ndarray, " n"]:
    """How often the two symbols stand side by side with both inside the last `window` positions; overlaps count."""
    return np.count_nonzero(_is_pair(texts[:, texts.shape[1] - window :], pair), axis=1)


def index_of_occurrence(texts: Texts, symbol: Symbol, occurrence: int) -> Int[np.ndarray, " n"]:
    """Distance from the end of the `occurrence`-th `symbol` counted from the end (1 = the last one), or `ABSENT`."""
    return _first_reach(_is(texts, symbol), occurrence)


def pair_index(texts: Texts, pair: tuple[Symbol, Symbol], occurrence: int) -> Int[np.ndarray, " n"]:
    """As `index_of_occurrence` for two symbols side by side; the distance is that of the LEFT symbol."""
    found = _first_reach(_is_pair(texts, pair), occurrence)
    return np.where(found == ABSENT, ABSENT, found + 1)


def token_at(texts: Texts, distance: int) -> Int[np.ndarray, " n"]:
    """The terminal index at `distance` from the end."""
    return texts[:, texts.shape[1] - 1 - distance].astype(np.int64)
