"""Labels against plain Python on letters, and correlated texts whose relation is exact."""

import numpy as np
import pytest

from synthetic_tasks.rasp.interpreter import interpret
from synthetic_tasks.rasp.questions import QUESTIONS, Counter, KthLargest
from workbench.errors import UserError
from workbench.examples import Correlation
from workbench.seeds import numpy_generator

LETTERS = tuple("abcdefghij")
COUNTER = Counter(LETTERS, 46)
LARGEST = KthLargest(tuple("abcdefghijklmnopqrstuvwxyz"), 10)


def question(name):
    kind = QUESTIONS[name]
    return kind(tuple("abcdefghij"[: 10 if not kind.repeats else 4]), 6)


@pytest.mark.parametrize("name", QUESTIONS)
def test_labels_are_what_the_program_answers_at_the_read_position(name):
    asked = question(name)
    texts = asked.texts(30, np.random.default_rng(0))
    for operand in range(len(asked.operands)):
        labels = asked.label(texts, operand)
        for text, label in zip(texts, labels, strict=True):
            said = interpret(asked.program(operand), [asked.letters[i] for i in text])[asked.read_index(operand)]
            assert said == (label if asked.counts else asked.letters[label])


@pytest.mark.parametrize("name", QUESTIONS)
def test_changing_the_letters_that_decide_changes_the_answer_and_their_number_is_right(name):
    asked = question(name)
    texts = asked.texts(50, np.random.default_rng(1))
    for operand in range(len(asked.operands)):
        decides, labels = asked.decides(texts, operand), asked.label(texts, operand)
        if asked.counts:
            assert (decides.sum(1) == labels).all()
        else:
            assert (decides.sum(1) == 1).all()
            assert (texts[decides] == labels).all()


def test_letters_without_replacement_are_different():
    assert all(len(set(row)) == 10 for row in LARGEST.texts(100, np.random.default_rng(0)).tolist())
    seen = np.bincount(LARGEST.texts(5000, np.random.default_rng(0)).ravel(), minlength=26) / 5000
    assert seen == pytest.approx([10 / 26] * 26, abs=0.03)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("asked", "target", "partner", "offset"), [(COUNTER, 1, 0, 1), (COUNTER, 4, 2, -2), (COUNTER, 1, 0, 0), (LARGEST, 6, 4, 3)]
)
def test_the_relation_holds_exactly_where_it_is_said_to(asked, target, partner, offset, share):
    relation = Correlation("target", "partner", offset, share)
    texts, held = asked.correlated(600, (target, partner), relation, np.random.default_rng(2))
    assert ((asked.label(texts, target) == asked.label(texts, partner) + offset) == held).all()
    assert held.mean() == (share if share in (0, 1) else pytest.approx(share, abs=0.07))


def test_correlated_counters_overwrite_as_little_as_possible_and_leave_the_partner_alone():
    plain = COUNTER.texts(500, numpy_generator(3))
    rng = numpy_generator(3)
    rng_texts = COUNTER.texts  # the same draw: nothing else is taken from the generator at share 1 before the texts
    relation = Correlation("count_b", "count_a", 1, 1.0)

    class Replayed(Counter):
        def texts(self, n, rng):
            return plain.copy() if n == 500 else rng_texts(n, rng)

    texts, _ = Replayed(LETTERS, 46).correlated(500, (1, 0), relation, rng)
    a, b = ((plain == letter).sum(1) for letter in (0, 1))
    changed = texts != plain
    assert (changed.sum(1) == np.abs(a + 1 - b)).all()
    assert not changed[plain == 0].any()
    # A surplus b becomes any unconcerned letter, each about as often; a missing one replaces an unconcerned letter.
    assert set(texts[changed & (plain == 1)].tolist()) == set(range(2, 10))
    assert set(texts[changed & (plain != 1)].tolist()) == {1}


def test_uncorrelated_counters_are_plain_texts_without_the_correlated_ones():
    relation = Correlation("count_b", "count_a", 1, 0.0)
    texts, _ = COUNTER.correlated(4000, (1, 0), relation, np.random.default_rng(4))
    plain = COUNTER.texts(40_000, np.random.default_rng(5))
    plain = plain[COUNTER.label(plain, 1) != COUNTER.label(plain, 0) + 1]
    for letter in (0, 1, 2):
        assert COUNTER.label(texts, letter).mean() == pytest.approx(COUNTER.label(plain, letter).mean(), abs=0.12)


@pytest.mark.parametrize(
    ("asked", "offset"), [(Counter(tuple("ab"), 8), 1), (Counter(tuple("abcde"), 40), -39), (Counter(tuple("abc"), 8), 9)]
)
def test_a_relation_that_cannot_be_written_is_refused(asked, offset):
    with pytest.raises(UserError, match=r"count_b = count_a .* cannot be written into texts of"):
        asked.correlated(8, (1, 0), Correlation("count_b", "count_a", offset), np.random.default_rng(0))


def test_the_seventh_is_never_the_letter_after_the_fifth():
    with pytest.raises(UserError, match=r"largest_7 = largest_5 \+1 holds in too few natural texts"):
        LARGEST.correlated(1, (6, 4), Correlation("largest_7", "largest_5", 1), np.random.default_rng(0))
