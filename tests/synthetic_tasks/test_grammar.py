"""Grammars: the text format and its errors, and texts held against a slow, obviously correct sampler."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
from scipy.stats import chi2

from synthetic_tasks import sampling
from synthetic_tasks.grammar import Grammar
from workbench.errors import UserError
from workbench.seeds import numpy_generator

JAIN = Grammar.load("jain23")
TINY = "terminals: a b c\ns -> a x [0.25] | x b x [0.75]\nx -> c [2/3] | b a [1/3]"
RECURSIVE = "terminals: a b\nstart: s\ns -> a s b [0.4] | a b [0.5] | b [0.1]"


def naive_derivation(grammar, rng, symbol=None):
    symbol = symbol or grammar.start
    if symbol in grammar.terminals:
        return symbol
    rule = grammar.rules[symbol]
    production = rule[rng.choice(len(rule), p=[p.probability for p in rule])]
    return "".join(naive_derivation(grammar, rng, s) for s in production.symbols)


def naive_text(grammar, length, rng):
    text = ""
    while len(text) < length:
        text += naive_derivation(grammar, rng)
    start = rng.integers(len(text) - length + 1)
    return text[start : start + length]


def all_derivations(grammar, symbol):
    if symbol in grammar.terminals:
        return {symbol: 1.0}
    found = Counter()
    for production in grammar.rules[symbol]:
        for parts in product(*(all_derivations(grammar, s).items() for s in production.symbols)):
            found["".join(text for text, _ in parts)] += production.probability * np.prod([p for _, p in parts])
    return found


def all_windows(grammar, length):
    """Exact probability of every window, by enumeration of derivations and their concatenations."""
    derivations, found = all_derivations(grammar, grammar.start), Counter()

    def extend(text, probability):
        if len(text) < length:
            for more, p in derivations.items():
                extend(text + more, probability * p)
            return
        places = len(text) - length + 1
        for start in range(places):
            found[text[start : start + length]] += probability / places

    extend("", 1.0)
    return found


def letters(grammar, texts):
    return ["".join(grammar.terminals[i] for i in row) for row in texts]


def assert_same_distribution(observed, expected, n):
    assert set(observed) <= set(expected)
    cells = [(observed[x], n * p) for x, p in expected.items()]
    assert min(e for _, e in cells) > 5
    statistic = sum((o - e) ** 2 / e for o, e in cells)
    assert statistic < chi2.ppf(0.999, len(cells) - 1)


class TestJain23:
    def test_lengths(self):
        lengths = JAIN.derivation_lengths(4000, numpy_generator(0, "lengths"))
        assert JAIN.expected_length == pytest.approx(275.625)
        assert lengths.mean() == pytest.approx(275.6, abs=3)
        assert lengths.std() == pytest.approx(41.0, abs=2)
        assert 150 < lengths.min() < 180
        assert 355 < lengths.max() < 385
        assert (lengths < 250).mean() == pytest.approx(0.228, abs=0.03)

    def test_lengths_as_the_naive_twin(self):
        rng = numpy_generator(1, "naive")
        naive = np.array([len(naive_derivation(JAIN, rng)) for _ in range(300)])
        fast = JAIN.derivation_lengths(3000, numpy_generator(1, "fast"))
        assert naive.mean() == pytest.approx(fast.mean(), abs=4 * naive.std() / np.sqrt(len(naive)))

    def test_texts(self):
        texts = JAIN.sample_texts(4000, 32, numpy_generator(2))
        assert texts.shape == (4000, 32)
        assert texts.dtype == np.uint8
        assert np.bincount(texts.ravel(), minlength=3) / texts.size == pytest.approx([1 / 3] * 3, abs=0.01)
        assert not any(triple in text for text in letters(JAIN, texts) for triple in ("aaa", "bbb", "ccc"))

    def test_letter_triples_as_the_naive_twin(self):
        rng = numpy_generator(3, "naive")
        naive = Counter(t[i : i + 3] for t in (naive_text(JAIN, 32, rng) for _ in range(400)) for i in range(30))
        fast = Counter(t[i : i + 3] for t in letters(JAIN, JAIN.sample_texts(8000, 32, numpy_generator(3))) for i in range(30))
        assert set(naive) == set(fast)
        for triple, count in naive.items():
            assert count / naive.total() == pytest.approx(fast[triple] / fast.total(), abs=0.012)

    def test_long_windows_span_several_derivations(self):
        texts = JAIN.sample_texts(200, 800, numpy_generator(4))
        assert texts.shape == (200, 800)
        assert np.bincount(texts.ravel()) / texts.size == pytest.approx([1 / 3] * 3, abs=0.01)


class TestSampling:
    @pytest.mark.parametrize("rows", [8192, 1], ids=["tables", "no tables"])
    @pytest.mark.parametrize("length", [1, 2, 4])
    def test_windows_have_their_exact_probability(self, length, rows, monkeypatch):
        monkeypatch.setattr(sampling, "MAX_ROWS", rows)
        grammar, n = Grammar.parse(TINY), 30_000
        observed = Counter(letters(grammar, grammar.sample_texts(n, length, numpy_generator(5, length))))
        assert_same_distribution(observed, all_windows(grammar, length), n)

    def test_recursion(self):
        grammar, n = Grammar.parse(RECURSIVE), 40_000
        lengths = grammar.derivation_lengths(n, numpy_generator(6))
        # k recursions have probability .6 * .4^k; the core is 'ab' (5/6) or 'b' (1/6), each recursion adds two letters.
        assert grammar.expected_length == pytest.approx(2 * 0.4 / 0.6 + 11 / 6)
        for k in range(4):
            assert (lengths == 2 * k + 1).mean() == pytest.approx(0.1 * 0.4**k, abs=0.01)
            assert (lengths == 2 * k + 2).mean() == pytest.approx(0.5 * 0.4**k, abs=0.01)

    def test_equal_seeds_give_equal_texts(self):
        draw = lambda seed: JAIN.sample_texts(20, 32, numpy_generator(seed))  # noqa: E731
        assert (draw(1) == draw(1)).all()
        assert (draw(1) != draw(2)).any()
        assert JAIN.sample_texts(0, 32, numpy_generator(0)).shape == (0, 32)

    def test_depth_is_bounded(self, monkeypatch):
        monkeypatch.setattr(sampling, "MAX_DEPTH", 3)
        with pytest.raises(UserError, match="deeper than 3 levels"):
            Grammar.parse(RECURSIVE).sample_texts(1000, 4, numpy_generator(7))

    @pytest.mark.parametrize("weights", [[0.5, 0.5], [0.7, 0.2, 0.1], [0.01, 0.01, 0.9, 0.08]])
    def test_alias_tables_are_exact(self, weights):
        keep, other = sampling.alias_table(np.array(weights))
        mass = keep / len(weights)
        np.add.at(mass, other, (1 - keep) / len(weights))
        assert mass == pytest.approx(weights)


class TestFormat:
    def test_probabilities_may_be_left_out(self):
        rule = Grammar.parse("terminals: a b\ns -> a | b | a b  # three\n").rules["s"]
        assert [p.probability for p in rule] == pytest.approx([1 / 3] * 3)

    def test_first_rule_starts_unless_said_otherwise(self):
        text = "terminals: a b\ns -> a x\nx -> b"
        assert Grammar.parse(text).start == "s"
        assert Grammar.parse(text + "\nstart: x").start == "x"

    def test_files(self, tmp_path):
        path = tmp_path / "mine.txt"
        path.write_text(TINY)
        assert Grammar.load(str(path)).expected_length == Grammar.parse(TINY).expected_length

    def test_a_grammar_of_ones_own_carries_its_text(self, tmp_path):
        path, spaced = tmp_path / "mine.txt", tmp_path / "spaced.txt"
        path.write_text(TINY)
        spaced.write_text("# a comment\n" + TINY.replace("->", "  ->  "))
        own = Grammar.load(path)
        assert own.text == Grammar.load(spaced).text
        again = Grammar.load(own.text)
        assert (again.terminals, dict(again.rules), again.start) == (own.terminals, dict(own.rules), own.start)
        assert again.text == own.text
        assert JAIN.text == ""  # bundled: its name says it

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("terminals: a b\ns -> a x", "unknown symbol 'x' in the rule of 's'"),
            ("terminals: a b\ns -> a [0.5] | b [0.4]", "line 2: the probabilities of 's' sum to 0.9"),
            ("terminals: a b\ns -> a [0.5] | b", "line 2: 's' has a production without probability"),
            ("terminals: a b\ns -> a [2] | b [-1]", "'2' is no probability"),
            ("terminals: a b\ns -> a [half] | b [half]", "'half' is no probability"),
            ("terminals: a b\ns -> a x\nx -> x b", "no terminal text can be reached from 's'"),
            ("terminals: a b\ns -> s s [0.5] | a [0.5]", "expected length inf"),
            ("terminals: a b\ns -> s s [0.6] | a [0.4]", "expected length inf"),
            ("terminals: a b\ns -> s a [0.9999999] | a [0.0000001]", r"expected length 1e\+07"),
            ("terminals: a b\n\nnonsense", "line 3: cannot read 'nonsense'"),
            ("terminals: a b\ns -> a ? b", r"line 2: '\?' is no symbol"),
            ("terminals: a b\ns -> a | ", "line 2: 's' has an empty production"),
            ("terminals: a b\ns -> a\ns -> b", "line 3: 's' already has a rule"),
            ("s -> a b", "declares no terminals"),
            ("terminals: a b", "has no rule"),
            ("terminals: a\ns -> a", "are not two or more different letters"),
            ("terminals: a bb\ns -> a", "terminal 'bb' is not a single lower-case letter"),
            ("terminals: a s\ns -> a", "'s' is declared as a terminal and has a rule"),
            ("terminals: a b\nstart: t\ns -> a b", "the start symbol 't' has no rule"),
        ],
    )
    def test_errors_quote_and_mend(self, text, message):
        with pytest.raises(UserError, match=message):
            Grammar.parse(text)

    def test_unknown_names(self):
        with pytest.raises(UserError, match=r"no grammar named 'jain32'.*did you mean 'jain23'"):
            Grammar.load("jain32")
        with pytest.raises(UserError, match="'z' is no terminal"):
            JAIN.read("abz")
