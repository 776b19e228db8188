"""Interpolated Kneser-Ney: against a twin that follows the formula with dictionaries, and as a probability distribution."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinystories.ngram import KneserNey
from workbench.errors import UserError

V = 5
STORIES = [[0, 1, 2, 3, 1, 2, 4], [0, 1, 2, 4, 4, 1, 2, 3], [0, 3, 3, 1], [0, 2], [0, 1, 2, 3, 1, 2, 3]]


class Twin:
    """The definition, one probability at a time."""

    def __init__(self, stories, order):
        raw = [Counter() for _ in range(order + 1)]
        before = [defaultdict(set) for _ in range(order + 1)]
        begins = [set() for _ in range(order + 1)]
        for story in stories:
            for i in range(1, len(story)):
                for k in range(1, order + 1):
                    if i >= k - 1:
                        gram = tuple(story[i - k + 1 : i + 1])
                        raw[k][gram] += 1
                        if i - k >= 0:
                            before[k][gram].add(story[i - k])
                        else:
                            begins[k].add(gram)
        self.order, self.counts, self.discount = order, [None], [None]
        for k in range(1, order + 1):
            counts = dict(raw[k])
            if k < order:
                counts = {g: raw[k][g] if g in begins[k] else len(before[k][g]) for g in raw[k]}
            self.counts.append(counts)
            one, two = (sum(c == n for c in counts.values()) for n in (1, 2))
            self.discount.append(one / (one + 2 * two) if one else 0.5)

    def p(self, context, w, k):
        if k == 0:
            return 1 / V
        context = tuple(context)[-(k - 1) :] if k > 1 else ()
        lower = self.p(context[1:], w, k - 1)
        after = {g: c for g, c in self.counts[k].items() if g[:-1] == context and c > 0}
        if len(context) < k - 1 or not after:
            return lower
        d, total = self.discount[k], sum(after.values())
        return max(after.get((*context, w), 0) - d, 0) / total + d * len(after) / total * lower

    def log_probability(self, story):
        return np.log([self.p(story[:i], story[i], min(self.order, i + 1)) for i in range(1, len(story))])


def arrays(stories):
    return [np.array(story) for story in stories]


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("story", [STORIES[0], [0, 4, 4, 4], [0, 1, 2, 3, 1, 2, 4, 1], [0, 3, 2, 1, 4]])
def test_it_is_the_formula(order, story):
    found = KneserNey.fit(arrays(STORIES), V, order).log_probability(np.array(story))
    assert np.allclose(found, Twin(STORIES, order).log_probability(story))


words = st.lists(st.integers(1, V - 1), min_size=1, max_size=9).map(lambda rest: [0, *rest])


@settings(max_examples=40, deadline=None)
@given(st.lists(words, min_size=1, max_size=6), words, st.integers(1, 4))
def test_it_is_the_formula_for_all_stories(stories, story, order):
    found = KneserNey.fit(arrays(stories), V, order).log_probability(np.array(story))
    assert np.allclose(found, Twin(stories, order).log_probability(story))


@settings(max_examples=30, deadline=None)
@given(st.lists(words, min_size=1, max_size=6), words, st.integers(1, 5))
def test_the_next_token_has_a_distribution(stories, context, order):
    model = KneserNey.fit(arrays(stories), V, order)
    after = [np.exp(model.log_probability(np.array([*context, w])))[-1] for w in range(V)]
    assert sum(after) == pytest.approx(1)
    assert min(after) > 0


def test_a_longer_context_tells_more_of_what_repeats():
    rng = np.random.default_rng(0)
    phrase = rng.integers(1, 50, 40)
    stories = [np.concatenate([[0], np.roll(phrase, -int(rng.integers(40)))]) for _ in range(60)]
    loss = [-KneserNey.fit(stories[:50], 50, k).log_probability(stories[-1]).mean() for k in (1, 2, 3)]
    assert loss[0] > 3 > 1 > loss[1] >= loss[2] - 0.01


@pytest.mark.parametrize(
    ("stories", "order", "sentence"),
    [
        ([], 5, "no story to count"),
        ([[0]], 5, "no story has two tokens"),
        ([[0, 1]], 0, "order 0"),
        ([[0, V]], 2, "token 5 is outside a vocabulary of 5"),
    ],
)
def test_bad_input_is_one_sentence(stories, order, sentence):
    with pytest.raises(UserError, match=sentence):
        KneserNey.fit(arrays(stories), V, order)
