"""Parses of windows against derivations that are really made, symbol by symbol, with what stood above every letter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthetic_tasks.grammar import Grammar
from synthetic_tasks.labels import ABSENT
from synthetic_tasks.parse import PHRASE, SYMBOL, parse_texts, phrases, symbol_names, uses
from synthetic_tasks.pcfg import PcfgTask

GRAMMAR = Grammar.load("jain23")
LOW, HIGH = "def", "ghi"


def derive(symbol, rng, low="", high=""):
    """`(letter, symbol above, symbol above that)` of a derivation."""
    if symbol in GRAMMAR.terminals:
        return [(GRAMMAR.terminals.index(symbol), low, high)]
    rule = GRAMMAR.rules[symbol]
    production = rule[rng.choice(len(rule), p=[p.probability for p in rule])]
    low, high = (symbol if symbol in LOW else low), (symbol if symbol in HIGH else high)
    return [letter for x in production.symbols for letter in derive(x, rng, low, high)]


def window(length, rng):
    found = []
    while len(found) < length:
        found += derive(GRAMMAR.start, rng)
    start = rng.integers(0, len(found) - length + 1)
    return found[start : start + length]


def truth(n, length, seed):
    rng = np.random.default_rng(seed)
    made = [window(length, rng) for _ in range(n)]
    names = symbol_names(GRAMMAR)
    texts = np.array([[letter for letter, _, _ in text] for text in made], np.uint8)
    above = {name: np.array([[names.index(x[i]) for x in text] for text in made]) for i, name in ((1, SYMBOL), (2, PHRASE))}
    return texts, above


def test_the_paper_grammar_is_read_exactly_but_for_the_ends():
    """Its phrases cannot be mistaken once a whole one is seen: eight letters from either end every symbol is right."""
    texts, above = truth(200, 40, 0)
    found = parse_texts(GRAMMAR, texts)
    for name, true in above.items():
        assert (found[name] == true)[:, 8:-8].all()
        assert (found[name] == true).mean() > 0.95


def test_an_edited_letter_disturbs_its_surroundings_most():
    """Other phrases may fit the edited text as well, so that some cuts differ further off."""
    texts, above = truth(100, 60, 1)
    edited = texts.copy()
    edited[:, 30] = (edited[:, 30] + 1) % 3
    right = parse_texts(GRAMMAR, edited)[SYMBOL] == above[SYMBOL]
    near, far = right[:, 26:35].mean(), np.concatenate([right[:, 8:20], right[:, 42:-8]], axis=1).mean()
    assert far > 0.97
    assert near < 0.9


def test_a_letter_that_fits_nowhere_stands_alone():
    grammar = Grammar.parse("terminals: a b c\nstart: s\ns -> x s [0.5] | x [0.5]\nx -> a b [1.0]\n")
    found = parse_texts(grammar, np.array([[1, 0, 1, 2, 0, 1, 2, 0]], np.uint8))
    x = symbol_names(grammar).index("x")
    assert found[SYMBOL].tolist() == [[x, x, x, ABSENT, x, x, ABSENT, x]]
    assert set(found) == {SYMBOL}  # s holds itself: no level of its own


@given(st.integers(1, 12), st.integers(0, 1000))
def test_windows_shorter_than_a_phrase(length, seed):
    texts, _ = truth(3, length, seed)
    found = parse_texts(GRAMMAR, texts)
    assert all(codes.shape == texts.shape for codes in found.values())
    assert (found[SYMBOL] >= 0).all()  # every such window is part of some two phrases


def test_all_ways_to_write_a_phrase_and_how_often():
    known = phrases(GRAMMAR)
    assert len(known) == 6 * 2**3  # two orders of three symbols with two spellings each
    assert {p.top for p in known} == set(HIGH)
    for top in HIGH:
        assert sum(p.probability for p in known if p.top == top) == pytest.approx(1)
    often = uses(GRAMMAR)
    assert often["s"] == 1
    assert often["r"] + often["q"] + often["p"] == pytest.approx(2)  # each half of s has two
    letters = sum(often[x] * np.mean([len(p.symbols) for p in GRAMMAR.rules[x]]) for x in LOW)
    assert letters == pytest.approx(GRAMMAR.expected_length)


@pytest.mark.parametrize(("rare", "often"), [("x", "y"), ("y", "x")])
@pytest.mark.parametrize("level", ["", "up -> x [1.0]\nvp -> y [1.0]\n"])
def test_of_two_symbols_that_write_the_same_the_more_frequent_made_it(rare, often, level):
    """As often as the production above says, or the derivation from further above."""
    share = {rare: 0.2, often: 0.8}
    above = ("up", "vp") if level else ("x", "y")
    start = " | ".join(f"{name} [{share[x]}]" for name, x in zip(above, "xy", strict=True))
    grammar = Grammar.parse(f"terminals: a b\nstart: s\ns -> {start}\n{level}x -> a b [1.0]\ny -> a b [1.0]\n")
    found = parse_texts(grammar, np.array([[0, 1, 0, 1]], np.uint8))
    assert found[SYMBOL].tolist() == [[symbol_names(grammar).index(often)] * 4]


def test_a_frequent_long_phrase_is_likelier_than_two_rare_short_ones():
    def symbols(long):
        grammar = Grammar.parse(
            f"terminals: a b\nstart: s\ns -> l s [{long}] | k s [{0.9 - long:.2f}] | l [0.1]\nl -> a b a b [1.0]\nk -> a b [1.0]\n"
        )
        names = symbol_names(grammar)
        return [names[code] for code in parse_texts(grammar, np.array([[0, 1] * 4], np.uint8))[SYMBOL][0]]

    assert "k" not in symbols(0.8)
    assert "l" not in symbols(0.02)


def test_a_grammar_without_symbols_of_letters_alone_has_no_labels():
    grammar = Grammar.parse("terminals: a b\nstart: s\ns -> a t [1.0]\nt -> b s [0.5] | b t [0.2] | a [0.3]\n")
    assert parse_texts(grammar, np.zeros((2, 5), np.uint8)) == {}


def test_tokens_of_prompts_are_labelled_where_the_text_stands():
    task = PcfgTask.from_settings({"text_length": 40, "window": 12})
    examples = task.capability("count_a").examples(5, 0)
    labels = task.token_labels(examples)
    assert set(labels) == {SYMBOL, PHRASE}
    text = examples.roles["text"]
    for name, codes in labels.items():
        assert codes.shape == examples.tokens.shape
        assert (codes[~text] == ABSENT).all()
        assert {task.label_name(name, int(code)) for code in codes[text]} <= set(LOW if name == SYMBOL else HIGH)
    assert task.label_name(SYMBOL, ABSENT) == "none"
