"""Which symbol of the grammar made each letter of a text: the most likely parse of the two levels above the letters.

A text is a window that may begin and end within a phrase, and it may have been edited, so that no whole derivation need fit.
It is therefore cut into phrases by Viterbi's algorithm: phrases follow one another independently, each as often as the
grammar uses it; the first and the last may stick out, and a letter that fits nowhere stands alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float, Int, UInt8

from synthetic_tasks.grammar import Grammar
from synthetic_tasks.labels import ABSENT

Texts = UInt8[np.ndarray, "n length"]
SYMBOL, PHRASE = "parse symbol", "parse phrase"
"""The symbol right above a letter, and the one above that."""
ANY = 255
"""Stands for the letters outside a window."""
STRAY = -30.0
"""Log probability of a letter that is in no phrase: below that of any two phrases."""
MOST_PHRASES = 512
"""A level with more ways to write its symbols is not parsed; the one below is."""


@dataclass(frozen=True)
class Phrase:
    """One way to write a symbol of the upper of the two levels."""

    top: str
    symbols: tuple[str, ...]
    """The symbol above each of its letters."""
    letters: UInt8[np.ndarray, " l"]
    probability: float
    """Of this way to write it."""


def phrases(grammar: Grammar) -> tuple[Phrase, ...]:
    """All ways to write the symbols whose productions hold only symbols that stand right above letters, else of the latter.

    Empty where no symbol has productions of letters alone.
    """
    letter = {name: i for i, name in enumerate(grammar.terminals)}
    low = {
        name: [(np.array([letter[x] for x in p.symbols], np.uint8), p.probability) for p in rule]
        for name, rule in grammar.rules.items()
        if all(x in letter for p in rule for x in p.symbols)
    }
    lone = [Phrase(name, (name,) * len(text), text, share) for name, ways in low.items() for text, share in ways]
    high = [name for name, rule in grammar.rules.items() if all(x in low for p in rule for x in p.symbols)]
    found: list[Phrase] = []
    for name in high:
        for p in grammar.rules[name]:
            for ways in product(*(low[x] for x in p.symbols)):
                symbols = tuple(x for x, (text, _) in zip(p.symbols, ways, strict=True) for _ in text)
                share = p.probability * float(np.prod([share for _, share in ways]))
                found.append(Phrase(name, symbols, np.concatenate([text for text, _ in ways]), share))
                if len(found) > MOST_PHRASES:
                    return tuple(lone)
    return tuple(found or lone)


def uses(grammar: Grammar) -> dict[str, float]:
    """How often a derivation uses each symbol, on average."""
    code = {name: i for i, name in enumerate(grammar.rules)}
    below = np.zeros((len(code), len(code)))
    for name, rule in grammar.rules.items():
        for p in rule:
            for x in p.symbols:
                if x in code:
                    below[code[name], code[x]] += p.probability
    found = np.linalg.solve(np.eye(len(code)) - below.T, np.eye(len(code))[code[grammar.start]])
    return {name: float(found[i]) for name, i in code.items()}


def parse_texts(grammar: Grammar, texts: Texts) -> dict[str, Int[np.ndarray, "n length"]]:
    """Codes of `symbol_names` for every letter, by `SYMBOL` and, where the grammar has such a level, `PHRASE`.

    `ABSENT` where a letter is in no phrase. Empty where the grammar has no symbol right above its letters.
    """
    known = phrases(grammar)
    if not known:
        return {}
    names = symbol_names(grammar)
    n, length = texts.shape
    longest = max(len(p.letters) for p in known)
    chosen = _cut(texts, known, uses(grammar), longest)
    found = {name: np.full((n, length + 2 * longest), ABSENT) for name in (SYMBOL, PHRASE)}
    rows = np.arange(n)
    at = np.full(n, chosen.shape[1] - 1)
    while (at > 0).any():
        which = chosen[rows, at]
        for index in np.unique(which[at > 0]):
            here = rows[(at > 0) & (which == index)]
            if index < 0:  # a stray letter, or the end of the text
                at[here] -= 1
                continue
            phrase = known[index]
            size = len(phrase.letters)
            columns = at[here, None] - size + np.arange(size)
            found[SYMBOL][here[:, None], columns] = [names.index(x) for x in phrase.symbols]
            found[PHRASE][here[:, None], columns] = names.index(phrase.top)
            at[here] -= size
    kept = (SYMBOL,) if all(set(p.symbols) == {p.top} for p in known) else (SYMBOL, PHRASE)
    return {name: found[name][:, longest : longest + length] for name in kept}


def symbol_names(grammar: Grammar) -> tuple[str, ...]:
    """What the codes of a parse mean."""
    return tuple(grammar.rules)


def _cut(texts: Texts, known: tuple[Phrase, ...], often: Mapping[str, float], longest: int) -> Int[np.ndarray, "n ends"]:
    """For every end the phrase that the best cut ends with there; -1: a stray letter, or nothing outside the text."""
    n, length = texts.shape
    padded = np.full((n, length + 2 * longest), ANY, np.uint8)
    padded[:, longest : longest + length] = texts
    ends = padded.shape[1] + 1
    total = sum(often[p.top] * p.probability for p in known)
    weights = [float(np.log(often[p.top] * p.probability / total)) if often[p.top] else -np.inf for p in known]
    fits = [_fits(padded, p.letters) for p in known]
    best: Float[np.ndarray, "n ends"] = np.full((n, ends), -np.inf)
    best[:, : longest + 1] = 0.0  # the first phrase begins somewhere before the text, or with it
    chosen = np.full((n, ends), -1)
    for end in range(longest + 1, ends):
        # Behind the text nothing need follow; inside it a letter may stand alone.
        best[:, end] = best[:, end - 1] + (0.0 if end > longest + length else STRAY)
        for index, (phrase, weight) in enumerate(zip(known, weights, strict=True)):
            start = end - len(phrase.letters)
            if start >= longest + length:
                continue  # wholly behind the text
            value = np.where(fits[index][:, start], best[:, start] + weight, -np.inf)
            better = value > best[:, end]
            best[better, end], chosen[better, end] = value[better], index
    return chosen


def _fits(padded: UInt8[np.ndarray, "n width"], letters: UInt8[np.ndarray, " l"]) -> np.ndarray:
    """Where a phrase can stand, by where it begins; letters outside the window are free."""
    windows = np.lib.stride_tricks.sliding_window_view(padded, len(letters), axis=1)
    return ((windows == letters) | (windows == ANY)).all(-1)
