"""The programs do what they say: the interpreter against plain Python, and compiled weights on 10,000 texts each."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthetic_tasks.rasp import programs
from synthetic_tasks.rasp.interpreter import interpret
from workbench.models.compiled import NOISE

SOME = 10_000
PAPER = "cadabcbadfbgcebbahjibdefihfegabgfhjcbeddhjibab"
"""46 letters [Jain+23 Fig 12]: 6 a, 10 b."""
TEXT = st.text("abcdef", min_size=1, max_size=8)


def worst_label(found, wanted):
    """Accuracy on the answer that is got wrong most often."""
    return min((found == wanted)[wanted == label].mean() for label in np.unique(wanted))


def place(texts):
    """Letters of rows of indices."""
    return np.array(list("abcdefghijklmnopqrstuvwxyz"))[texts]


class TestMeaning:
    """What the interpreter makes of a program is what a person would compute."""

    def test_counts_of_the_papers_text(self):
        assert interpret(programs.counter("a"), PAPER)[1] == PAPER.count("a") == 6
        assert interpret(programs.counter("b"), PAPER)[1] == PAPER.count("b") == 10

    @given(text=TEXT)
    def test_counter_counts_the_flag_of_each_row(self, text):
        # Row 0 counts what is no a, row 1 the a, the others nothing.
        expected = [len(text) - text.count("a"), text.count("a"), *[0] * 6][: len(text)]
        assert interpret(programs.counter("a"), text) == expected

    def test_largest_of_the_papers_text(self):
        text = "bdafhmxpqn"  # [Jain+23 Fig 13]
        assert interpret(programs.kth_largest(5), text)[1] == "h"
        assert interpret(programs.kth_largest(7), text)[1] == "n"

    @given(text=st.lists(st.sampled_from("abcdefgh"), min_size=5, max_size=8, unique=True), k=st.integers(1, 5))
    def test_kth_largest_is_the_kth_in_the_alphabet(self, text, k):
        assert interpret(programs.kth_largest(k), text)[1] == sorted(text)[k - 1]

    @given(text=TEXT)
    def test_programs_that_answer_everywhere(self, text):
        assert interpret(programs.reverse(), text) == list(reversed(text))
        assert interpret(programs.histogram(), text) == [text.count(letter) for letter in text]
        assert interpret(programs.sort(), text) == sorted(text)
        shares = [text[: i + 1].count("a") / (i + 1) for i in range(len(text))]
        assert interpret(programs.fraction("a"), text) == pytest.approx(shares)


class TestWeights:
    """Compiled weights without noise answer every text exactly."""

    @pytest.mark.parametrize("n", [1000, pytest.param(SOME, marks=pytest.mark.slow)])
    def test_counter(self, compiled, answers, n):
        texts = np.random.default_rng(0).integers(0, 10, (n, 46))
        found = answers(compiled(programs.counter("b"), 46, 10), texts)
        assert (found[:, 1].astype(int) == (texts == 1).sum(1)).all()
        assert (found[:, 0].astype(int) == (texts != 1).sum(1)).all()
        assert (found[:, 2:] == "0").all()

    def test_every_count_there_is(self, compiled, answers):
        texts = np.triu(np.ones((47, 46), dtype=np.int64), k=0)  # row i has i zeros, that is i letters a
        assert answers(compiled(programs.counter("a"), 46, 10), texts)[:, 1].tolist() == list(map(str, range(47)))

    @pytest.mark.parametrize("k", [5, 7])
    def test_kth_largest(self, compiled, answers, k):
        texts = np.random.default_rng(1).permuted(np.tile(np.arange(26), (SOME, 1)), axis=1)[:, :10]
        found = answers(compiled(programs.kth_largest(k), 10, 26), texts)
        assert (found[:, 1] == place(np.sort(texts, axis=1)[:, k - 1])).all()

    def test_reverse_histogram_and_sort_at_all_positions(self, compiled, answers):
        texts = np.random.default_rng(2).integers(0, 6, (SOME, 8))
        assert (answers(compiled(programs.reverse(), 8, 6), texts) == place(texts[:, ::-1])).all()
        assert (answers(compiled(programs.sort(), 8, 6), texts) == place(np.sort(texts, axis=1))).all()
        counts = (texts[:, :, None] == texts[:, None, :]).sum(2)
        assert (answers(compiled(programs.histogram(), 8, 6), texts).astype(int) == counts).all()

    @pytest.mark.parametrize("length", [1, 2, 5])
    def test_shorter_texts_than_the_longest(self, compiled, answers, length):
        texts = np.random.default_rng(3).integers(0, 6, (200, length))
        assert (answers(compiled(programs.reverse(), 8, 6), texts) == place(texts[:, ::-1])).all()
        assert (answers(compiled(programs.sort(), 8, 6), texts) == place(np.sort(texts, axis=1))).all()

    @pytest.mark.parametrize("seed", range(5))
    def test_the_noise_before_training_costs_no_label_its_accuracy(self, compiled, answers, seed):
        """The paper's two programs: every count there is, and every letter that occurs (worst of 5 seeds measured: 1.0)."""
        rng = np.random.default_rng(seed)
        held = rng.permuted(np.repeat(np.tri(47, 46, -1, dtype=bool), 10, axis=0), axis=1)  # 0..46 places, ten times each
        texts = np.where(held, 0, rng.integers(1, 10, held.shape))
        found = answers(compiled(programs.counter("a"), 46, 10), texts, noise=NOISE, seed=seed)[:, 1]
        assert worst_label(found, (texts == 0).sum(1).astype(str)) >= 0.99
        texts = rng.permuted(np.tile(np.arange(26), (500, 1)), axis=1)[:, :10]
        for k in (5, 7):
            found = answers(compiled(programs.kth_largest(k), 10, 26), texts, noise=NOISE, seed=seed)[:, 1]
            assert worst_label(found, place(np.sort(texts, axis=1)[:, k - 1])) >= 0.99

    @pytest.mark.parametrize("seed", range(2))
    def test_nor_do_the_other_programs_lose_one(self, compiled, answers, seed):
        texts = np.random.default_rng(seed).integers(0, 6, (500, 8))
        counts = (texts[:, :, None] == texts[:, None, :]).sum(2)
        for program, wanted in (
            (programs.reverse(), place(texts[:, ::-1])),
            (programs.sort(), place(np.sort(texts, axis=1))),
            (programs.histogram(), counts.astype(str)),
        ):
            assert worst_label(answers(compiled(program, 8, 6), texts, noise=NOISE, seed=seed), wanted) >= 0.99

    def test_ten_times_that_noise_would_cost_large_counts(self, compiled, answers):
        """Why the noise is no larger: the error of a width grows with the width."""
        texts = np.triu(np.ones((47, 46), dtype=np.int64), k=0)
        wrong = [
            answers(compiled(programs.counter("a"), 46, 10), texts, noise=10 * NOISE, seed=seed)[:, 1]
            != np.arange(47).astype(str)
            for seed in range(5)
        ]
        assert not np.any(wrong, axis=0)[:5].any()
        assert np.any(wrong, axis=0)[20:40].mean() > 0.5
