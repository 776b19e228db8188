"""Probabilistic context-free grammars: a plain text format, its checks, and sampling of texts [Jain+23 §B.2].

The format, one statement a line, `#` starts a comment:

    terminals: a b c            # required, single lower-case letters
    start: s                    # optional; the first rule otherwise
    s -> r q [0.5] | a s [0.5]  # probabilities on all productions of a rule, or on none (then uniform)

A symbol with a rule is a nonterminal. A symbol that is neither declared as a terminal nor has a rule is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from importlib.resources import files
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from synthetic_tasks.sampling import CompiledGrammar
from workbench.errors import UserError, did_you_mean

LONGEST_EXPECTED_TEXT = 1_000_000
"""Grammars whose derivations are longer than this on average are refused: one batch would not fit in memory."""

_SYMBOL = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_PROBABILITY = re.compile(r"\[([^\]]*)\]$")


@dataclass(frozen=True)
class Production:
    """One right-hand side of a rule."""

    symbols: tuple[str, ...]
    probability: float


@dataclass(frozen=True, eq=False)
class Grammar:
    """A checked grammar: every symbol is known and can end, and a derivation has a finite expected length."""

    terminals: tuple[str, ...]
    """The letters of a text; a text holds their indices in this order."""
    rules: Mapping[str, tuple[Production, ...]]
    start: str
    text: str = ""
    """Where it is the user's own: the rules in one spelling, which `load` reads again."""

    def __post_init__(self) -> None:
        _check_symbols(self)
        _check_endings(self)
        length = self.expected_length
        if length > LONGEST_EXPECTED_TEXT:
            raise UserError(
                f"a derivation of {self.start!r} has expected length {length:.3g}; lower the probabilities of the productions "
                f"that repeat a symbol until it is finite and below {LONGEST_EXPECTED_TEXT:,}."
            )

    @classmethod
    def parse(cls, text: str) -> Grammar:
        """A grammar from its text format.

        Raises:
            UserError: on a line that cannot be read (with its number), an unknown symbol, a duplicate rule, probabilities
                that do not sum to 1, a symbol that never ends, or an infinite expected length.
        """
        terminals: tuple[str, ...] | None = None
        start: str | None = None
        rules: dict[str, tuple[Production, ...]] = {}
        for number, raw in enumerate(text.splitlines(), 1):
            line = raw.split("#", 1)[0].strip()
            if not line:
                continue
            if "->" in line:
                name, productions = _rule(line, number)
                if name in rules:
                    raise UserError(f"grammar line {number}: {name!r} already has a rule; join the two with '|'.")
                rules[name] = productions
            elif line.startswith("terminals:") and terminals is None:
                terminals = tuple(line.removeprefix("terminals:").split())
            elif line.startswith("start:") and start is None:
                start = line.removeprefix("start:").strip()
            else:
                raise UserError(
                    f"grammar line {number}: cannot read {line!r}; write 'symbol -> x y [0.5] | z [0.5]', "
                    "or one 'terminals: a b c' line, or one 'start: symbol' line."
                )
        if terminals is None:
            raise UserError("the grammar declares no terminals; add a line such as 'terminals: a b c'.")
        if not rules:
            raise UserError("the grammar has no rule; add a line such as 's -> a b [0.5] | b a [0.5]'.")
        return cls(terminals, rules, start or next(iter(rules)))

    @classmethod
    def load(cls, name_or_path: str | Path) -> Grammar:
        """A bundled grammar by name (`jain23`), one from a user's file, or one that is given as text of several lines.

        Raises:
            UserError: when there is neither such a name nor such a file, or as `parse` does.
        """
        bundled = {Path(entry.name).stem: entry for entry in files("synthetic_tasks").joinpath("grammars").iterdir()}
        name = str(name_or_path)
        if name in bundled:
            return cls.parse(bundled[name].read_text(encoding="utf-8"))
        if "\n" in name.strip():
            return cls.parse(name)._spelled()
        path = Path(name).expanduser()
        if not path.is_file():
            raise UserError(f"there is no grammar named {name!r} and no file at that path{did_you_mean(name, bundled)}")
        try:
            return cls.parse(path.read_text(encoding="utf-8"))._spelled()
        except UnicodeDecodeError:
            raise UserError(f"the grammar file {name!r} is not UTF-8 text; save it as plain text.") from None

    @cached_property
    def expected_length(self) -> float:
        """Mean number of terminals in a derivation."""
        return _expected_length(self)

    def _spelled(self) -> Grammar:
        """The same grammar with its text: equal for files that differ in comments and spaces alone."""
        lines = [f"terminals: {' '.join(self.terminals)}", f"start: {self.start}"]
        for name, productions in self.rules.items():
            parts = (f"{' '.join(p.symbols)} [{p.probability!r}]" for p in productions)
            lines.append(f"{name} -> {' | '.join(parts)}")
        return replace(self, text="\n".join(lines) + "\n")

    @cached_property
    def _compiled(self) -> CompiledGrammar:
        names = [*self.terminals, *self.rules]
        code = {name: i for i, name in enumerate(names)}
        rules = {
            code[name]: [([code[x] for x in p.symbols], p.probability) for p in productions]
            for name, productions in self.rules.items()
        }
        return CompiledGrammar(len(self.terminals), rules, code[self.start])

    def sample_texts(self, n: int, length: int, rng: np.random.Generator) -> UInt8[np.ndarray, "n length"]:
        """`n` uniformly placed contiguous windows of `length` terminals (as indices), each of its own derivation.

        A derivation shorter than `length` is extended by further independent derivations until it is long enough, and the
        window is then placed uniformly in the whole [Jain+23 §B.2].
        """
        return self._compiled.sample_texts(n, length, rng)

    def derivation_lengths(self, n: int, rng: np.random.Generator) -> Int[np.ndarray, " n"]:
        """Lengths, in terminals, of `n` independent derivations."""
        return self._compiled.derivation_lengths(n, rng)

    def read(self, text: str) -> UInt8[np.ndarray, " length"]:
        """A text given as letters, as terminal indices.

        Raises:
            UserError: on a letter that is no terminal.
        """
        for letter in text:
            if letter not in self.terminals:
                raise UserError(f"{letter!r} is no terminal of the grammar{did_you_mean(letter, self.terminals)}")
        return np.array([self.terminals.index(letter) for letter in text], dtype=np.uint8)


def _rule(line: str, number: int) -> tuple[str, tuple[Production, ...]]:
    name, _, right = (part.strip() for part in line.partition("->"))
    alternatives: list[tuple[str, ...]] = []
    probabilities: list[float | None] = []
    for part in right.split("|"):
        body = part.strip()
        found = _PROBABILITY.search(body)
        probabilities.append(None if found is None else _probability(found[1], number))
        alternatives.append(tuple((body if found is None else body[: found.start()]).split()))
    for symbol in (name, *(symbol for alternative in alternatives for symbol in alternative)):
        if not _SYMBOL.fullmatch(symbol):
            raise UserError(f"grammar line {number}: {symbol!r} is no symbol; use letters, digits and '_', a letter first.")
    if not all(alternatives):
        raise UserError(f"grammar line {number}: {name!r} has an empty production; every production needs a symbol.")
    given = [p for p in probabilities if p is not None]
    if not given:
        given = [1 / len(alternatives)] * len(alternatives)
    if len(given) != len(alternatives):
        raise UserError(f"grammar line {number}: {name!r} has a production without probability; give all of them or none.")
    if abs(sum(given) - 1) > 1e-6:
        raise UserError(f"grammar line {number}: the probabilities of {name!r} sum to {sum(given):g}; make them sum to 1.")
    return name, tuple(Production(a, p / sum(given)) for a, p in zip(alternatives, given, strict=True))


def _probability(text: str, number: int) -> float:
    try:
        value = float(Fraction(text.strip()))
    except (ValueError, ZeroDivisionError):
        value = -1.0
    if not 0 < value <= 1:
        raise UserError(f"grammar line {number}: {text!r} is no probability; write a number in (0, 1] such as [0.5] or [1/3].")
    return value


def _check_symbols(grammar: Grammar) -> None:
    terminals = grammar.terminals
    for terminal in terminals:
        if not re.fullmatch("[a-z]", terminal):
            raise UserError(f"terminal {terminal!r} is not a single lower-case letter; rename it.")
        if terminal in grammar.rules:
            raise UserError(f"{terminal!r} is declared as a terminal and has a rule; drop one of the two.")
    if len(set(terminals)) < max(2, len(terminals)):
        raise UserError(f"the terminals {' '.join(terminals)!r} are not two or more different letters; list each once.")
    known = {*terminals, *grammar.rules}
    if grammar.start not in grammar.rules:
        raise UserError(f"the start symbol {grammar.start!r} has no rule{did_you_mean(grammar.start, grammar.rules)}")
    for name, productions in grammar.rules.items():
        for symbol in (symbol for production in productions for symbol in production.symbols):
            if symbol not in known:
                raise UserError(
                    f"unknown symbol {symbol!r} in the rule of {name!r}; give it a rule or list it in the 'terminals:' line."
                )


def _check_endings(grammar: Grammar) -> None:
    ends = set(grammar.terminals)
    while True:
        more = {n for n, rule in grammar.rules.items() if n not in ends and any(ends.issuperset(p.symbols) for p in rule)}
        if not more:
            break
        ends |= more
    for name in grammar.rules:
        if name not in ends:
            raise UserError(f"no terminal text can be reached from {name!r}; give it a production that ends in terminals.")


def _expected_length(grammar: Grammar) -> float:
    """Expected number of terminals below the start symbol, infinite when the recursion does not die out."""
    reachable = [grammar.start]
    for name in reachable:
        below = {symbol for production in grammar.rules[name] for symbol in production.symbols}
        reachable += sorted(symbol for symbol in below if symbol in grammar.rules and symbol not in reachable)
    code = {name: i for i, name in enumerate(reachable)}
    offspring = np.zeros((len(code), len(code)))
    letters = np.zeros(len(code))
    for name, i in code.items():
        for production in grammar.rules[name]:
            for symbol in production.symbols:
                if symbol in code:
                    offspring[i, code[symbol]] += production.probability
                else:
                    letters[i] += production.probability
    try:
        # For a non-negative M, (I - M) x = 1 has a positive solution exactly when the spectral radius of M is below 1.
        # Eigenvalues would be inaccurate here: a deep grammar without recursion is nilpotent.
        solution = np.linalg.solve(np.eye(len(code)) - offspring, np.stack([np.ones(len(code)), letters], axis=1))
    except np.linalg.LinAlgError:
        return float("inf")
    return float(solution[0, 1]) if (solution[:, 0] >= 1 - 1e-9).all() else float("inf")
