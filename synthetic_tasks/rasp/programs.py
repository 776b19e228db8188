"""Programs: those of [Jain+23 Alg 1, 2], and a few that answer at every position."""

from __future__ import annotations

from synthetic_tasks.rasp.nodes import (
    INDICES,
    TOKENS,
    Aggregate,
    Map,
    Mean,
    NumericalMap,
    Operator,
    Select,
    SequenceMap,
    Width,
)

READ_INDEX = 1
"""Where `counter` and `kth_largest` answer: row 1 of their last selector is the one that looks at the flag 1."""


def counter(letter: str) -> Operator:
    """How often a letter occurs, at index 1; the number of other letters at index 0, and 0 elsewhere [Jain+23 Alg 1].

    The width of row i of `flags == i` is the number of positions whose flag is i.
    """
    flag = Map(f"is_{letter}", TOKENS, lambda token: int(token == letter))
    width = Width("width", Select(flag, INDICES, lambda key, query: key == query))
    return Aggregate("count", Select(INDICES, INDICES, lambda key, query: key == query), width)


def kth_largest(k: int) -> Operator:
    """The k-th largest of different letters, at index 1 (a > b > c ...) [Jain+23 Alg 2].

    It is the letter that k - 1 others sort before; elsewhere the output has no meaning.
    """
    larger = Width("larger", Select(TOKENS, TOKENS, lambda key, query: key < query))
    flag = Map(f"is_{k}th", larger, lambda width: int(width == k - 1))
    return Aggregate("largest", Select(flag, INDICES, lambda key, query: key == query), TOKENS)


def reverse() -> Operator:
    """The text backwards, of any length."""
    length = Width("length", Select(TOKENS, TOKENS, lambda key, query: True))
    opposite = SequenceMap("opposite", length, INDICES, lambda width, index: width - 1 - index)
    return Aggregate("reversed", Select(INDICES, opposite, lambda key, query: key == query), TOKENS)


def histogram() -> Operator:
    """At every position, how often its letter occurs in the text."""
    return Width("histogram", Select(TOKENS, TOKENS, lambda key, query: key == query))


def sort() -> Operator:
    """The letters in order, equal ones in the order in which they stand."""
    key = SequenceMap("key", TOKENS, INDICES, lambda token, index: (token, index))
    place = Width("place", Select(key, key, lambda other, own: other < own))
    return Aggregate("sorted", Select(place, INDICES, lambda key, query: key == query), TOKENS)


def fraction(letter: str) -> Operator:
    """At every position, the share of a letter among the tokens up to and including it [Lindner+23]."""
    flag = NumericalMap(f"is_{letter}", TOKENS, lambda token: float(token == letter))
    return Mean(f"fraction_{letter}", Select(INDICES, INDICES, lambda key, query: key <= query), flag)
