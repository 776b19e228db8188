"""Fast exact sampling from a grammar: tables of whole expansions at the bottom, ragged array expansion above.

Only a window of a derivation is ever looked at. A symbol with few possible expansions is therefore drawn as one row of a
table; the lengths of the rows place the window, and only the letters inside it are copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from jaxtyping import Float, Int, UInt8

from workbench.errors import UserError

MAX_ROWS = 8192
"""Largest number of expansions of one symbol that is tabulated."""
MAX_LETTERS = 1 << 22
"""Largest total length of the expansions of one symbol that is tabulated."""
MAX_DEPTH = 10_000
"""Levels of a derivation before a recursive grammar is given up."""

_Rules = Mapping[int, Sequence[tuple[Sequence[int], float]]]


def ragged(starts: Int[np.ndarray, " m"], lengths: Int[np.ndarray, " m"]) -> Int[np.ndarray, " total"]:
    """The concatenation of the ranges `starts[i] .. starts[i] + lengths[i] - 1`."""
    ends = np.cumsum(lengths)
    indices = np.repeat(starts - ends + lengths, lengths)
    indices += np.arange(len(indices))
    return indices


@dataclass(frozen=True)
class Table:
    """All expansions of a symbol: row i is `letters[starts[i] : starts[i] + lengths[i]]`, with probability `weights[i]`."""

    letters: UInt8[np.ndarray, " total"]
    starts: Int[np.ndarray, " rows"]
    lengths: Int[np.ndarray, " rows"]
    weights: Float[np.ndarray, " rows"]

    @staticmethod
    def of_letter(letter: int) -> Table:
        """The one expansion of a terminal."""
        return Table(np.array([letter], np.uint8), np.array([0]), np.array([1]), np.array([1.0]))

    def followed_by(self, other: Table) -> Table:
        """Every row of this table before every row of `other`."""
        n, m = len(self.weights), len(other.weights)
        starts = np.stack([np.repeat(self.starts, m), np.tile(other.starts + len(self.letters), n)], axis=1)
        lengths = np.stack([np.repeat(self.lengths, m), np.tile(other.lengths, n)], axis=1)
        letters = np.concatenate([self.letters, other.letters])[ragged(starts.ravel(), lengths.ravel())]
        total = lengths.sum(1)
        return Table(letters, np.cumsum(total) - total, total, np.outer(self.weights, other.weights).ravel())

    @staticmethod
    def union(tables: Sequence[Table], weights: Sequence[float]) -> Table:
        """The rows of all tables, each table's weights times its own weight."""
        shifts = np.cumsum([0, *(len(t.letters) for t in tables)])
        return Table(
            np.concatenate([t.letters for t in tables]),
            np.concatenate([t.starts + shift for t, shift in zip(tables, shifts, strict=False)]),
            np.concatenate([t.lengths for t in tables]),
            np.concatenate([t.weights * weight for t, weight in zip(tables, weights, strict=True)]),
        )


def alias_table(weights: Float[np.ndarray, " m"]) -> tuple[Float[np.ndarray, " m"], Int[np.ndarray, " m"]]:
    """Walker's alias table: keep cell i with probability `keep[i]`, else take `other[i]`; exact in O(1) a draw."""
    m = len(weights)
    keep, other = np.ones(m), np.arange(m)
    share = weights * (m / weights.sum())
    if np.allclose(share, 1, rtol=0, atol=1e-12):
        return keep, other
    small = [i for i in range(m) if share[i] < 1]
    large = [i for i in range(m) if share[i] >= 1]
    while small and large:
        low, high = small.pop(), large[-1]
        keep[low], other[low] = share[low], high
        share[high] -= 1 - share[low]
        if share[high] < 1:
            small.append(large.pop())
    return keep, other


def _tables(terminals: int, rules: _Rules) -> dict[int, Table]:
    """Tables of every symbol whose set of expansions is finite and small, from the bottom up."""
    tables = {letter: Table.of_letter(letter) for letter in range(terminals)}
    waiting = dict(rules)
    while True:
        ready = [name for name, rule in waiting.items() if all(x in tables for symbols, _ in rule for x in symbols)]
        if not ready:
            return tables
        for name in ready:
            rule = waiting.pop(name)
            rows = letters = 0
            for symbols, _ in rule:
                # Python integers: a product of table sizes overflows 64 bits easily.
                product = 1
                for x in symbols:
                    product *= len(tables[x].weights)
                rows += product
                letters += sum(product // len(tables[x].weights) * len(tables[x].letters) for x in symbols)
            if rows <= MAX_ROWS and letters <= MAX_LETTERS:
                parts = [reduce(Table.followed_by, (tables[x] for x in symbols)) for symbols, _ in rule]
                tables[name] = Table.union(parts, [weight for _, weight in rule])


class CompiledGrammar:
    """A sampler of one grammar; symbols are integers, terminals first."""

    def __init__(self, terminals: int, rules: _Rules, start: int) -> None:
        self.start = start
        tables = _tables(terminals, rules)
        size = terminals + len(rules)
        leaves = [x for x in range(size) if x in tables]
        self._compile_leaves(size, leaves, tables)
        self._compile_rules(size, tables, rules)

    def _compile_leaves(self, size: int, leaves: Sequence[int], tables: Mapping[int, Table]) -> None:
        everything = Table.union([tables[x] for x in leaves], [1.0] * len(leaves))
        self.letters, self.row_start, self.row_length = everything.letters, everything.starts, everything.lengths
        self.first_row, self.rows = np.zeros(size, np.int64), np.ones(size, np.int64)
        keep: list[np.ndarray] = []
        other: list[np.ndarray] = []
        offset = 0
        for x in leaves:
            k, o = alias_table(tables[x].weights)
            keep.append(k)
            other.append(o + offset)
            self.first_row[x], self.rows[x] = offset, len(k)
            offset += len(k)
        self.keep, self.other = np.concatenate(keep), np.concatenate(other)
        self.uniform = bool((self.keep == 1).all())

    def _compile_rules(self, size: int, tables: Mapping[int, Table], rules: _Rules) -> None:
        # A tabulated symbol has one "production", itself, so that one array expression expands a whole level.
        productions = {x: [([x], 1.0)] if x in tables else list(rules[x]) for x in range(size)}
        most = max(len(rule) for rule in productions.values())
        self.expands = np.array([x not in tables for x in range(size)])
        self.first_production = np.zeros(size, np.int64)
        # Upper ends of the probability intervals; the last is never passed, so rounding cannot leave the rule.
        self.passed = np.full((most - 1, size), 2.0)
        flat: list[int] = []
        starts: list[int] = []
        lengths: list[int] = []
        for x, rule in productions.items():
            self.first_production[x] = len(starts)
            ends = np.cumsum([weight for _, weight in rule])[:-1]
            self.passed[: len(ends), x] = ends
            for symbols, _ in rule:
                starts.append(len(flat))
                lengths.append(len(symbols))
                flat += symbols
        self.production_start, self.production_length = np.array(starts), np.array(lengths)
        self.production_symbols = np.array(flat)

    def _rows(self, n: int, rng: np.random.Generator) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " n"]]:
        """`n` derivations as table rows, all in one array, and where each derivation begins in it."""
        symbols, first = np.full(n, self.start), np.arange(n)
        for _ in range(MAX_DEPTH):
            if not self.expands[symbols].any():
                break
            chosen = self.first_production[symbols]
            uniform = rng.random(len(symbols))
            for ends in self.passed:
                chosen += uniform >= ends[symbols]
            lengths = self.production_length[chosen]
            first = (np.cumsum(lengths) - lengths)[first]
            symbols = self.production_symbols[ragged(self.production_start[chosen], lengths)]
        else:
            raise UserError(
                f"a derivation is deeper than {MAX_DEPTH} levels; lower the probabilities of recursive productions."
            )
        place = rng.random(len(symbols)) * self.rows[symbols]
        cell = place.astype(np.int64)
        rows = self.first_row[symbols] + cell
        if not self.uniform:
            rows = np.where(place - cell < self.keep[rows], rows, self.other[rows])
        return rows, first

    def _lengths(self, rows: Int[np.ndarray, " m"], first: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        return np.add.reduceat(self.row_length[rows], first)

    def derivation_lengths(self, n: int, rng: np.random.Generator) -> Int[np.ndarray, " n"]:
        """Lengths of `n` derivations."""
        return self._lengths(*self._rows(n, rng))

    def _long_enough(self, n: int, length: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `_rows`, with short derivations extended by further ones; also the total lengths."""
        rows, first = self._rows(n, rng)
        totals = self._lengths(rows, first)
        short = np.flatnonzero(totals < length)
        if not len(short):
            return rows, first, totals
        parts = [rows]
        owners = [np.repeat(np.arange(n), np.diff(first, append=len(rows)))]
        while len(short):
            rows, first = self._rows(len(short), rng)
            totals[short] += self._lengths(rows, first)
            parts.append(rows)
            owners.append(np.repeat(short, np.diff(first, append=len(rows))))
            short = short[totals[short] < length]
        owner = np.concatenate(owners)
        order = np.argsort(owner, kind="stable")
        return np.concatenate(parts)[order], np.searchsorted(owner[order], np.arange(n)), totals

    def sample_texts(self, n: int, length: int, rng: np.random.Generator) -> UInt8[np.ndarray, "n length"]:
        """`n` uniformly placed windows of `length` letters."""
        if n == 0:
            return np.zeros((0, length), np.uint8)
        rows, first, totals = self._long_enough(n, length, rng)
        lengths = self.row_length[rows]
        ends = np.cumsum(lengths)
        begin = (ends - lengths)[first] + (rng.random(n) * (totals - length + 1)).astype(np.int64)
        # The pieces (table rows) that a window touches, from the one that holds its first letter to that of its last.
        head = np.searchsorted(ends, begin, side="right")
        tail = np.searchsorted(ends, begin + length - 1, side="right")
        touched = tail - head + 1
        piece = ragged(head, touched)
        skip = np.repeat(begin, touched) - (ends[piece] - lengths[piece])
        used = np.minimum(lengths[piece], skip + length) - np.maximum(skip, 0)
        starts = self.row_start[rows[piece]] + np.maximum(skip, 0)
        return self.letters[ragged(starts, used)].reshape(n, length)
