"""The meaning of RASP programs, position by position: the twin that compiled weights are held against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from synthetic_tasks.rasp.nodes import (
    Aggregate,
    Indices,
    Map,
    Mean,
    NumericalMap,
    Operator,
    Select,
    SequenceMap,
    Tokens,
    Width,
    in_order,
)


def interpret(output: Operator, text: Sequence[str]) -> list[Any]:
    """The value of an operator at every position of a text; None where it has none."""
    found: dict[Operator, list[Any]] = {}
    for node in in_order(output):
        found[node] = _evaluate(node, text, found)
    return found[output]


def _evaluate(node: Operator, text: Sequence[str], found: dict[Operator, list[Any]]) -> list[Any]:
    match node:
        case Tokens():
            return list(text)
        case Indices():
            return list(range(len(text)))
        case Map() | NumericalMap():
            return [None if v is None else node.function(v) for v in found[node.source]]
        case SequenceMap():
            pairs = zip(found[node.left], found[node.right], strict=True)
            return [None if None in (a, b) else node.function(a, b) for a, b in pairs]
        case Width():
            return [len(row) for row in _rows(node.selector, found)]
        case Aggregate():
            seen = [{found[node.source][j] for j in row} for row in _rows(node.selector, found)]
            return [next(iter(kinds)) if len(kinds) == 1 else None for kinds in seen]
        case Mean():
            seen = [[found[node.source][j] for j in row] for row in _rows(node.selector, found)]
            return [sum(numbers) / len(numbers) if numbers else 0.0 for numbers in seen]


def _rows(selector: Select, found: dict[Operator, list[Any]]) -> list[list[int]]:
    """The columns that each row looks at."""
    keys, queries = found[selector.keys], found[selector.queries]
    return [
        [j for j, key in enumerate(keys) if None not in (key, query) and selector.predicate(key, query)] for query in queries
    ]
