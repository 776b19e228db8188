"""Labels against hand-counted texts and naive twins on Python strings."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthetic_tasks.labels import ABSENT, count, index_of_occurrence, pair_count, pair_index, token_at

SHORT = "cabacbcabbacbaabcacb"
LONG = (
    "cabacabaaacbcbbbabcacbcaacacaaccabacbbaaacbcbbcaacbcbcbacbcbaccbbaccbaaabacbbaaacbcbbcaacbcbcbacbcbaccbbaccbaaabacbbaaacbcb"
    "bcaacbcbcbaaabbabbababbcbacccbacacbaccbcbbaaacacbcbacbcbaccbbaaacacbcbacbcbacbbaacbbaaacabcacbcabcbaababcacacbbcbbaacbcbab"
)
A, B, C = 0, 1, 2
PAIRS = {"aa": (A, A), "bb": (B, B), "cc": (C, C), "ab": (A, B)}


def rows(*texts):
    return np.array([["abc".index(x) for x in text] for text in texts], dtype=np.uint8)


class TestKnownAnswers:
    def test_counts_of_the_short_text(self):
        assert [count(rows(SHORT), s, 10)[0] for s in (A, B, C)] == [4, 3, 3]
        assert [count(rows(SHORT), s, 20)[0] for s in (A, B, C)] == [7, 7, 6]
        assert [pair_count(rows(SHORT), PAIRS[p], 10)[0] for p in ("aa", "ab")] == [1, 1]
        assert [pair_count(rows(SHORT), PAIRS[p], 20)[0] for p in ("aa", "bb")] == [1, 1]

    def test_indices_of_the_short_text(self):
        assert [index_of_occurrence(rows(SHORT), s, 3)[0] for s in (A, B, C)] == [6, 7, 8]
        assert pair_index(rows(SHORT), PAIRS["aa"], 1)[0] == 6
        assert pair_index(rows(SHORT), PAIRS["bb"], 2)[0] == ABSENT
        assert token_at(rows(SHORT), 4)[0] == B

    def test_the_printed_text_of_the_paper(self):
        text = rows(LONG)
        assert text.shape == (1, 245)
        assert [count(text, s, 40)[0] for s in (A, B, C)] == [14, 15, 11]
        assert [count(text, s, 42)[0] for s in (A, B, C)] == [15, 15, 12]
        assert pair_count(text, PAIRS["aa"], 40)[0] == 4
        assert [index_of_occurrence(text, s, 6)[0] for s in (A, B, C)] == [19, 11, 17]
        assert [pair_index(text, PAIRS[p], 6)[0] for p in ("aa", "bb", "cc")] == [59, 81, 144]
        assert token_at(text, 40)[0] == C

    def test_distance_zero_is_the_last_token(self):
        assert index_of_occurrence(rows("bca"), A, 1)[0] == 0
        assert token_at(rows("bca"), 0)[0] == A
        assert token_at(rows("bca"), 2)[0] == B

    def test_both_symbols_of_a_pair_lie_in_the_window(self):
        assert pair_count(rows("baab"), PAIRS["aa"], 3)[0] == 1
        assert pair_count(rows("baab"), PAIRS["aa"], 2)[0] == 0
        assert pair_count(rows("baab"), PAIRS["aa"], 1)[0] == 0

    def test_a_pair_index_is_that_of_the_left_symbol(self):
        assert pair_index(rows("abcc"), PAIRS["ab"], 1)[0] == 3
        assert pair_index(rows("c"), PAIRS["cc"], 1)[0] == ABSENT


def naive_index(text, piece, occurrence):
    starts = [i for i in range(len(text)) if text[i:].startswith(piece)][::-1]
    return len(text) - 1 - starts[occurrence - 1] if len(starts) >= occurrence else -1


@st.composite
def texts(draw):
    length = draw(st.integers(1, 30))
    return draw(st.lists(st.text("abc", min_size=length, max_size=length), min_size=1, max_size=5))


@given(texts(), st.data())
def test_labels_equal_their_naive_twins(strings, data):
    length = len(strings[0])
    window, distance = data.draw(st.integers(1, length)), data.draw(st.integers(0, length - 1))
    occurrence = data.draw(st.integers(1, 6))
    for code, symbol in enumerate("abc"):
        assert count(rows(*strings), code, window).tolist() == [t[-window:].count(symbol) for t in strings]
        found = index_of_occurrence(rows(*strings), code, occurrence)
        assert found.tolist() == [naive_index(t, symbol, occurrence) for t in strings]
    for piece, pair in PAIRS.items():
        found = pair_count(rows(*strings), pair, window)
        assert found.tolist() == [sum(t[-window:][i : i + 2] == piece for i in range(window)) for t in strings]
        found = pair_index(rows(*strings), pair, occurrence)
        assert found.tolist() == [naive_index(t, piece, occurrence) for t in strings]
    assert token_at(rows(*strings), distance).tolist() == ["abc".index(t[-1 - distance]) for t in strings]


def test_one_symbol_per_text():
    several = rows(SHORT, SHORT, SHORT)
    each = np.array([A, B, C])
    assert count(several, each, 10).tolist() == [4, 3, 3]
    assert index_of_occurrence(several, each, 3).tolist() == [6, 7, 8]
    assert pair_index(several, (each, each), 1).tolist() == [6, 11, ABSENT]


def test_long_texts_do_not_overflow():
    assert count(np.zeros((2, 3000), np.uint8), A, 3000).tolist() == [3000, 3000]
    assert index_of_occurrence(np.zeros((1, 3000), np.uint8), A, 2900)[0] == 2899


@pytest.mark.parametrize("label", [lambda t: count(t, A, 2), lambda t: index_of_occurrence(t, A, 1), lambda t: token_at(t, 1)])
def test_labels_are_integers(label):
    assert label(rows("abc")).dtype == np.int64
