"""Edits are exact and minimal, balanced labels have their ranges, and C=0 and C=1 hold without exception."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from synthetic_tasks.correlation import (
    CountRecipe,
    IndexRecipe,
    count_ranges,
    draw_correlated,
    index_ranges,
    select_natural,
)
from synthetic_tasks.edits import place_occurrences, set_counts
from synthetic_tasks.grammar import Grammar
from synthetic_tasks.labels import count, index_of_occurrence
from workbench.errors import UserError
from workbench.seeds import numpy_generator

JAIN = Grammar.load("jain23")
A, B, C = 0, 1, 2
N = 3000


def natural(n=N, length=250, seed=0):
    return JAIN.sample_texts(n, length, numpy_generator(seed, "texts"))


class TestSetCounts:
    @given(st.data())
    def test_exact_minimal_and_inside_the_window(self, data):
        terminals = data.draw(st.integers(2, 5))
        named = data.draw(st.lists(st.integers(0, terminals - 1), unique=True, max_size=terminals - 1))
        length = data.draw(st.integers(1, 20))
        window = data.draw(st.integers(1, length))
        rng = numpy_generator(data.draw(st.integers(0, 10**6)))
        texts = rng.integers(terminals, size=(6, length), dtype=np.uint8)
        # Any split of the window over the named symbols and the filler.
        parts = rng.multinomial(window, np.full(len(named) + 1, 1 / (len(named) + 1)), size=6)
        targets = {s: parts[:, i] for i, s in enumerate(named)}
        edited = set_counts(texts, window, targets, terminals, rng)
        moved = np.zeros(6, int)
        for s, wanted in targets.items():
            assert (count(edited, s, window) == wanted).all()
            moved += np.maximum(0, count(texts, s, window) - wanted)
        filler = window - sum(count(texts, s, window) for s in named)
        moved += np.maximum(0, filler - parts[:, -1])
        changed = edited != texts
        assert (changed.sum(1) == moved).all()
        assert not changed[:, : length - window].any()
        assert edited.max() < terminals

    def test_all_terminals_may_be_named(self):
        edited = set_counts(natural(5), 12, {s: np.full(5, 4) for s in (A, B, C)}, 3, numpy_generator(1))
        assert [count(edited, s, 12).tolist() for s in (A, B, C)] == [[4] * 5] * 3

    def test_every_position_is_as_likely_to_change(self):
        texts = np.zeros((6000, 6), np.uint8)
        edited = set_counts(texts, 5, {A: np.full(6000, 3)}, 3, numpy_generator(2))
        share = (edited != texts).mean(0)
        assert share == pytest.approx([0, 0.4, 0.4, 0.4, 0.4, 0.4], abs=0.03)
        assert (edited[edited != A] == B).mean() == pytest.approx(0.5, abs=0.02)  # both fillers are used

    @pytest.mark.parametrize("targets", [{A: [13]}, {A: [-1]}, {A: [7], B: [6]}, {A: [1], B: [1], C: [1]}])
    def test_impossible_counts(self, targets):
        with pytest.raises(ValueError, match="window 12"):
            set_counts(natural(1), 12, {s: np.array(v) for s, v in targets.items()}, 3, numpy_generator(0))


class TestPlaceOccurrences:
    @given(st.integers(1, 4), st.integers(3, 5), st.integers(0, 10**6))
    def test_exact_and_local(self, occurrence, terminals, seed):
        rng = numpy_generator(seed)
        texts = rng.integers(terminals, size=(8, 30), dtype=np.uint8)
        first = rng.integers(2 * (occurrence - 1), 29, size=8)
        second = rng.integers(2 * (occurrence - 1), 28, size=8)
        second += second >= first
        edited = place_occurrences(texts, occurrence, {2: first, 0: second}, terminals, rng)
        assert (index_of_occurrence(edited, 2, occurrence) == first).all()
        assert (index_of_occurrence(edited, 0, occurrence) == second).all()
        beyond = np.arange(29, -1, -1) > np.maximum(first, second)[:, None]
        assert (edited == texts)[beyond].all()
        assert edited.max() < terminals

    def test_the_space_between_holds_filler_and_the_nearer_symbol(self):
        n = 4000
        edited = place_occurrences(natural(n), 1, {A: np.full(n, 2), B: np.full(n, 9)}, 3, numpy_generator(1))[:, ::-1]
        assert (edited[:, :2] == C).all()
        assert (edited[:, 3:9] == A).mean() == pytest.approx(0.5, abs=0.02)
        assert not (edited[:, 3:9] == B).any()

    def test_earlier_occurrences_are_placed_uniformly(self):
        n = 8000
        edited = place_occurrences(natural(n), 2, {A: np.full(n, 4), B: np.full(n, 8)}, 3, numpy_generator(1))[:, ::-1]
        assert (edited[:, :4] == A).mean(0) == pytest.approx([1 / 4] * 4, abs=0.02)
        # One of the four nearest places is taken by a; b has the other three and the three places between a and itself.
        assert (edited[:, [0, 1, 2, 3, 5, 6, 7]] == B).mean(0) == pytest.approx([1 / 8] * 4 + [1 / 6] * 3, abs=0.02)

    @pytest.mark.parametrize(("a", "b"), [(7, 7), (1, 9), (4, 3), (40, 10)])
    def test_impossible_distances(self, a, b):
        with pytest.raises(ValueError, match="leave room"):
            place_occurrences(natural(1, 32), 3, {A: np.array([a]), B: np.array([b])}, 3, numpy_generator(0))


class TestCounter:
    def draw(self, share, offset=1, window=40, n=N):
        rng = numpy_generator(int(100 * share), "counter", offset)
        correlated = draw_correlated(share, n, rng)
        texts = CountRecipe(window, 3).correlate(natural(n), (B, A), offset, correlated, rng)
        return count(texts, A, window), count(texts, B, window), correlated

    def test_ranges_of_the_paper_window(self):
        for share in (0, 1):
            a, b, _ = self.draw(share)
            assert (a.min(), a.max(), b.min(), b.max()) == (8, 18, 8 + share, 19)
        assert count_ranges(16, 1).partner == (3, 7)
        assert count_ranges(12, 1).partner == (2, 5)

    def test_floors_of_the_oracles(self):
        a, b, _ = self.draw(0)
        assert (a == b).mean() == pytest.approx(0.091, abs=0.02)  # a perfect-b model asked for a, and the reverse
        assert not (b == a + 1).any()  # the shortcut asked for b
        assert np.bincount(a).max() / N == pytest.approx(0.091, abs=0.02)  # a constant answer
        a, b, _ = self.draw(1)
        assert not (a == b).any()
        assert (b == a + 1).all()

    def test_floor_of_the_smaller_window(self):
        a, b, _ = self.draw(0, window=16)
        assert (a == b).mean() == pytest.approx(0.20, abs=0.03)

    @pytest.mark.parametrize("offset", [-3, -1, 0, 1, 2, 4])
    @pytest.mark.parametrize("window", [12, 40])
    @pytest.mark.parametrize("share", [0, 0.5, 1])
    def test_the_relation_holds_exactly_where_it_should(self, share, window, offset):
        a, b, correlated = self.draw(share, offset, window, n=1000)
        assert ((b == a + offset) == correlated).all()
        assert binom.ppf(1e-4, 1000, share) <= correlated.sum() <= binom.ppf(1 - 1e-4, 1000, share)
        assert len(set(a)) >= 2

    def test_independent_counts(self):
        rng = numpy_generator(3)
        texts = CountRecipe(40, 3).balance(natural(), (B, A), rng)
        a, b = count(texts, A, 40), count(texts, B, 40)
        assert (a.min(), a.max(), b.min(), b.max()) == (8, 19, 8, 19)
        assert (b == a + 1).mean() == pytest.approx(11 / 144, abs=0.02)
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.06

    @pytest.mark.parametrize("window", range(1, 60))
    def test_balanced_counts_fit_every_window(self, window):
        assert CountRecipe(window, 3).balance(natural(50, 64), (B, A), numpy_generator(window)).shape == (50, 64)

    @pytest.mark.parametrize("offset", [9, -5, 100])
    def test_offsets_that_do_not_fit(self, offset):
        with pytest.raises(UserError, match=f"offset {offset} between two counts does not fit the window 12"):
            count_ranges(12, offset)


class TestIndexer:
    def draw(self, share, offset=1, occurrence=6, length=250, n=N):
        rng = numpy_generator(int(100 * share), "indexer", offset)
        correlated = draw_correlated(share, n, rng)
        recipe = IndexRecipe(occurrence, length, 3)
        texts = recipe.correlate(natural(n, length), (B, A), offset, correlated, rng)
        return index_of_occurrence(texts, A, occurrence), index_of_occurrence(texts, B, occurrence), correlated

    def test_ranges_of_the_paper(self):
        a, b, _ = self.draw(0)
        assert (a.min(), a.max(), b.min(), b.max()) == (10, 25, 10, 26)
        assert not (a == b).any()
        assert not (b == a + 1).any()
        a, b, _ = self.draw(1)
        assert (b == a + 1).all()

    @pytest.mark.parametrize("offset", [-4, -1, 1, 3])
    @pytest.mark.parametrize("share", [0, 0.5, 1])
    def test_the_relation_holds_exactly_where_it_should(self, share, offset):
        a, b, correlated = self.draw(share, offset, occurrence=3, length=32, n=1000)
        assert ((b == a + offset) == correlated).all()
        assert not (a == b).any()
        assert binom.ppf(1e-4, 1000, share) <= correlated.sum() <= binom.ppf(1 - 1e-4, 1000, share)

    def test_independent_distances(self):
        texts = IndexRecipe(6, 250, 3).balance(natural(), (B, A), numpy_generator(4))
        a, b = index_of_occurrence(texts, A, 6), index_of_occurrence(texts, B, 6)
        assert (a.min(), a.max(), b.min(), b.max()) == (10, 26, 10, 26)
        assert not (a == b).any()
        assert (b == a + 1).mean() == pytest.approx(16 / (17 * 16), abs=0.02)

    def test_offsets_that_do_not_fit(self):
        with pytest.raises(UserError, match="offset 0 between two indices is impossible"):
            index_ranges(32, 3, 0)
        with pytest.raises(UserError, match=r"offset 27 .* does not fit the text length 32"):
            index_ranges(32, 3, 27)
        with pytest.raises(UserError, match="cannot be placed in texts of length 8"):
            IndexRecipe(5, 8, 3).balance(natural(2, 8), (B, A), numpy_generator(0))


class TestNaturalSelection:
    def relation(self, texts):
        return texts[:, 0] == texts[:, 1], texts[:, 2] == A

    def test_rows_are_placed_by_their_side(self):
        rng = numpy_generator(5)
        wanted = rng.random(500) < 0.3
        texts = select_natural(lambda m: JAIN.sample_texts(m, 5, rng), self.relation, wanted, "rule")
        holds, excluded = self.relation(texts)
        assert (holds == wanted).all()
        assert not excluded.any()

    def test_impossible_relations_end_in_an_error(self, monkeypatch):
        monkeypatch.setattr("synthetic_tasks.correlation.MAX_ROUNDS", 2)
        never = lambda texts: (np.zeros(len(texts), bool), np.zeros(len(texts), bool))  # noqa: E731
        with pytest.raises(UserError, match="x = y holds in too few natural texts"):
            select_natural(lambda m: natural(m, 5), never, np.array([True, False]), "x = y")
