"""RASP programs as graphs of nodes: what stands at every position, and which positions are compared [Weiss+21; Lindner+23].

A sequence operator has a value at every position: categorical ones have one value of a finite set (or none), numerical
ones a number. A selector says for every pair of positions whether the query's row looks at the key's column.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

Value = Hashable
"""A letter, a number, or a tuple of these."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """The letter at each position."""

    label: str = "tokens"


@dataclass(frozen=True, eq=False)
class Indices:
    """The position, counted from 0."""

    label: str = "indices"


@dataclass(frozen=True, eq=False)
class Map:
    """A function of each value."""

    label: str
    source: Categorical
    function: Callable[[Any], Value]


@dataclass(frozen=True, eq=False)
class NumericalMap:
    """A number for each value."""

    label: str
    source: Categorical
    function: Callable[[Any], float]


@dataclass(frozen=True, eq=False)
class SequenceMap:
    """A function of the values of two sequence operators at the same position."""

    label: str
    left: Categorical
    right: Categorical
    function: Callable[[Any, Any], Value]


@dataclass(frozen=True, eq=False)
class Select:
    """Row i looks at column j where `predicate(keys[j], queries[i])`; a missing value is never looked at and never looks."""

    keys: Categorical
    queries: Categorical
    predicate: Callable[[Any, Any], bool]


@dataclass(frozen=True, eq=False)
class Width:
    """How many columns each row looks at."""

    label: str
    selector: Select


@dataclass(frozen=True, eq=False)
class Aggregate:
    """The value at the column that the row looks at: none where it looks at none, or where values differ."""

    label: str
    selector: Select
    source: Categorical


@dataclass(frozen=True, eq=False)
class Mean:
    """The mean of numbers over the columns that the row looks at, 0 where it looks at none."""

    label: str
    selector: Select
    source: NumericalMap | Mean


Categorical = Tokens | Indices | Map | SequenceMap | Width | Aggregate
Numerical = NumericalMap | Mean
Operator = Categorical | Numerical

TOKENS, INDICES = Tokens(), Indices()


def inputs(node: Operator) -> tuple[Operator, ...]:
    """The sequence operators that a node reads."""
    match node:
        case Tokens() | Indices():
            return ()
        case Map() | NumericalMap():
            return (node.source,)
        case SequenceMap():
            return node.left, node.right
        case Width():
            return node.selector.keys, node.selector.queries
        case Aggregate() | Mean():
            return node.selector.keys, node.selector.queries, node.source


def in_order(output: Operator) -> list[Operator]:
    """Every operator that the output needs, once, inputs first."""

    def walk(node: Operator) -> Iterator[Operator]:
        for source in inputs(node):
            yield from walk(source)
        yield node

    return list(dict.fromkeys(walk(output)))


def values(node: Operator, letters: tuple[str, ...], length: int) -> tuple[Value, ...]:
    """The values that a categorical operator can have on texts of up to `length` of these letters.

    Raises:
        TypeError: the operator is numerical.
    """
    match node:
        case Tokens():
            return letters
        case Indices():
            return tuple(range(length))
        case Map():
            return _distinct(node.function(v) for v in values(node.source, letters, length))
        case SequenceMap():
            left, right = (values(source, letters, length) for source in (node.left, node.right))
            return _distinct(node.function(a, b) for a in left for b in right)
        case Width():
            return tuple(range(length + 1))
        case Aggregate():
            return values(node.source, letters, length)
        case NumericalMap() | Mean():
            raise TypeError(f"{node.label} is numerical and has no set of values")


def _distinct(found: Iterator[Value]) -> tuple[Value, ...]:
    return tuple(dict.fromkeys(found))
