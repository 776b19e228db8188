"""Areas under the curve: resampled against a loop over pairs; the closed form is tested where judges are."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.areas import area_draws, area_value, auroc
from workbench.statistics import resampling


@pytest.fixture
def drawn():
    generator = np.random.default_rng(0)
    labels = generator.random(60) < 0.3
    return np.round(generator.normal(size=60) + labels, 1), labels  # rounded, so that there are ties


def by_hand(scores, labels, weights):
    won = total = 0.0
    for i in np.flatnonzero(labels):
        for j in np.flatnonzero(~labels):
            pair = weights[i] * weights[j]
            won += pair * ((scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]))
            total += pair
    return won / total


def test_an_area_is_the_share_of_pairs_that_are_in_order(drawn):
    assert area_value(*drawn) == pytest.approx(by_hand(*drawn, np.ones(60)))
    found = auroc(*drawn)
    assert found.low < found.value < found.high


def test_draws_are_areas_of_resampled_texts(drawn):
    found = area_draws(*drawn, draws=20, seed=3)
    assert found == pytest.approx([by_hand(*drawn, w) for w in resampling(60, 20, 3)])


def test_draws_of_two_scores_are_paired(drawn):
    scores, labels = drawn
    assert area_draws(-scores, labels, 20, 3) == pytest.approx(1 - area_draws(scores, labels, 20, 3))


def test_a_draw_without_a_class_says_nothing():
    found = area_draws(np.array([0.0, 1.0]), np.array([False, True]), 40, 0)
    assert set(found[np.isfinite(found)]) == {1.0}
    assert 10 < np.isnan(found).sum() < 30
