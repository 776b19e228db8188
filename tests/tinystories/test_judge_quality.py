"""Measures of a judge against counting by hand, scikit-learn and simulation."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, roc_auc_score

from tinystories.judge_quality import Quality, corrected, measure
from workbench.areas import area_interval, auroc
from workbench.errors import UserError
from workbench.statistics import wilson

Z = 1.959964


def quality_of(hits, positives, rejections, negatives) -> Quality:
    """Of a judge with these counts."""
    p = [0.9] * hits + [0.1] * (positives - hits) + [0.1] * rejections + [0.9] * (negatives - rejections)
    return measure(p, [True] * positives + [False] * negatives)


def test_counts_and_rates_by_hand():
    q = measure([0.5, 0.9, 0.2, 0.49999, 0.7, 0.1], [True, True, True, False, False, False])
    assert (q.positives, q.negatives, q.true_positives, q.true_negatives, q.n) == (3, 3, 2, 2, 6)
    assert q.sensitivity.value == q.specificity.value == q.balanced_accuracy.value == pytest.approx(2 / 3)
    assert (q.sensitivity.low, q.sensitivity.high) == pytest.approx([float(x) for x in wilson(2, 3)])
    assert q.auroc.value == pytest.approx(6 / 9)
    assert q.auroc_within is None
    assert quality_of(9, 10, 15, 30).majority == 0.75


def test_balanced_accuracy_adds_the_errors_of_its_halves_in_squares():
    q = quality_of(45, 50, 60, 100)
    (l1, h1), (l2, h2) = wilson(45, 50), wilson(60, 100)
    assert q.balanced_accuracy.value == pytest.approx(0.75)
    assert q.balanced_accuracy.low == pytest.approx(0.75 - math.hypot(0.9 - l1, 0.6 - l2) / 2)
    assert q.balanced_accuracy.high == pytest.approx(0.75 + math.hypot(h1 - 0.9, h2 - 0.6) / 2)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.4, 0.5, 0.9, 1.0]), st.booleans()), min_size=2, max_size=40))
@settings(max_examples=60, deadline=None)
def test_the_area_is_that_of_all_pairs_and_lies_in_its_interval(drawn):
    p, truth = np.array([x for x, _ in drawn]), np.array([y for _, y in drawn])
    if truth.all() or not truth.any():
        return
    found = auroc(p, truth)
    pairs = [(a > b) + (a == b) / 2 for a in p[truth] for b in p[~truth]]
    assert found.value == pytest.approx(np.mean(pairs))
    assert found.value == pytest.approx(roc_auc_score(truth, p))
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.high - found.low > 0


@pytest.mark.parametrize(("area", "m", "n"), [(0.8, 30, 50), (0.99, 20, 20), (0.5, 10, 90), (1.0, 40, 25)])
def test_the_ends_are_areas_whose_own_error_makes_the_observed_one_just_significant(area, m, n):
    def deviation(a):
        q1, q2 = (
            a / (2 - a),
            2 * a * a / (1 + a),
        )  # Hanley and McNeil's two probabilities; equal group sizes give Newcombe's form
        mean = (m + n) / 2 - 1
        return math.sqrt((a * (1 - a) + mean * (q1 - a * a) + mean * (q2 - a * a)) / (m * n))

    low, high = area_interval(area, m, n)
    assert (area - low) / deviation(low) == pytest.approx(Z, abs=1e-4)
    if area < 1:
        assert (high - area) / deviation(high) == pytest.approx(Z, abs=1e-4)
    else:
        assert high == 1
    assert area_interval(1 - area, m, n) == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_the_interval_of_the_area_covers():
    drawn = np.random.default_rng(0)
    truth = np.arange(90) < 40
    covered = 0
    for _ in range(400):
        found = auroc(drawn.normal(size=90) + 1.8124 * truth, truth)  # area Phi(1.8124 / sqrt 2) = .9
        covered += found.low <= 0.9 <= found.high
    assert 0.92 < covered / 400 < 0.99


def test_the_brier_score_is_scikit_learns_and_its_interval_shrinks_as_it_should():
    drawn = np.random.default_rng(1)
    p = drawn.random(800)
    truth = drawn.random(800) < p
    q = measure(p, truth)
    assert q.brier.value == pytest.approx(brier_score_loss(truth, p))
    error = ((p - truth) ** 2).std() / math.sqrt(800)
    assert q.brier.high - q.brier.low == pytest.approx(2 * Z * error, rel=0.1)
    assert q.brier.low < q.brier.value < q.brier.high
    assert measure(p, truth, seed=3).brier != q.brier
    assert measure(p, truth) == measure(p, truth)


def test_each_bin_has_its_start_and_the_last_one_its_end_too():
    p = [k / 10 for k in range(11)] + [0.95]
    truth = [k % 2 == 0 for k in range(11)] + [False]
    bins = measure(p, truth).calibration
    assert [b.n for b in bins] == [1] * 9 + [3]
    assert [b.mean for b in bins[:9]] == p[:9]
    assert bins[9].mean == pytest.approx((0.9 + 1 + 0.95) / 3)
    assert bins[9].share == pytest.approx(1 / 3)
    assert (bins[9].low, bins[9].high) == pytest.approx([float(x) for x in wilson(1, 3)])
    empty = measure([0.0, 1.0], [False, True]).calibration[4]
    assert (empty.start, empty.end, empty.n, empty.low, empty.high) == (0.4, 0.5, 0, 0, 1)
    assert math.isnan(empty.mean)
    assert math.isnan(empty.share)


def test_a_judge_that_knows_the_source_alone_is_seen_through_within_sources():
    drawn = np.random.default_rng(2)
    sources = np.repeat(["few", "many"], 300)
    truth = drawn.random(600) < np.where(sources == "few", 0.1, 0.9)
    p = np.where(sources == "few", 0.1, 0.9) + 0.05 * drawn.random(600)
    q = measure(p, truth, sources.tolist())
    assert q.auroc.value > 0.85
    pairs = [
        (a > b) + (a == b) / 2
        for source in ("few", "many")
        for a in p[(sources == source) & truth]
        for b in p[(sources == source) & ~truth]
    ]
    assert q.auroc_within is not None
    assert q.auroc_within.value == pytest.approx(np.mean(pairs))
    assert q.auroc_within.low < 0.5 < q.auroc_within.high
    one = measure(p, truth, ["same"] * 600)
    assert one.auroc_within == one.auroc
    assert measure([0.2, 0.8], [False, True], ["a", "b"]).auroc_within is None


def test_the_corrected_rate_by_hand():
    judge = quality_of(90, 100, 80, 100)
    assert corrected(100, 200, judge).value == pytest.approx(0.3 / 0.7)
    assert corrected(20, 200, judge).value == 0  # fewer positives than false alarms alone would give
    assert corrected(190, 200, judge).value == 1
    assert corrected(10, 200, judge).low == 0
    for positives in (0, 20, 100, 200):
        found = corrected(positives, 200, judge)
        assert 0 <= found.low <= found.value <= found.high <= 1
    assert corrected(100, 200, judge) == corrected(100, 200, judge)
    assert corrected(100, 200, judge, seed=1).low != corrected(100, 200, judge).low


def test_its_interval_is_that_of_the_delta_method_where_samples_are_large():
    se, sp, rate, n = 0.85, 0.9, 0.4, 4000
    found = corrected(int(rate * n), n, quality_of(1700, 2000, 2700, 3000))
    gain = se + sp - 1
    share = (rate + sp - 1) / gain
    variance = rate * (1 - rate) / n + share**2 * se * (1 - se) / 2000 + (1 - share) ** 2 * sp * (1 - sp) / 3000
    assert found.value == pytest.approx(share)
    assert found.high - found.low == pytest.approx(2 * Z * math.sqrt(variance) / gain, rel=0.04)


@pytest.mark.parametrize("share", [0.02, 0.4])
@pytest.mark.slow
def test_its_interval_covers_the_true_share(share):
    drawn = np.random.default_rng(3)
    covered = 0
    for run in range(150):
        judge = quality_of(drawn.binomial(100, 0.8), 100, drawn.binomial(150, 0.9), 150)
        found = corrected(int(drawn.binomial(200, share * 0.8 + (1 - share) * 0.1)), 200, judge, run)
        covered += found.low <= share <= found.high
    assert covered / 150 > 0.92


@pytest.mark.parametrize("rejections", [50, 30])
def test_a_judge_no_better_than_chance_bounds_nothing(rejections):
    found = corrected(30, 200, quality_of(50, 100, rejections, 100))
    assert math.isnan(found.value)
    assert (found.low, found.high) == (0, 1)
    hardly = corrected(110, 200, quality_of(6, 10, 5, 10))  # by its point estimate a little better
    assert (hardly.low, hardly.high) == (0, 1)
    for positives in (0, 200):
        found = corrected(positives, 200, quality_of(6, 10, 5, 10))
        assert (found.low, found.high) == (0, 1)


@pytest.mark.parametrize("positives", [0, 200])
def test_the_corrected_rate_lies_in_its_interval_also_at_the_ends(positives):
    many = 10**9
    judge = replace(quality_of(10, 10, 10, 10), positives=many, true_positives=many, negatives=many, true_negatives=many)
    found = corrected(positives, 200, judge)
    assert found.low <= found.value == positives / 200 <= found.high
    assert 0.005 < found.high - found.low < 0.03


def test_one_class_alone_and_texts_without_a_judgement_are_refused():
    with pytest.raises(UserError, match="0 of 2 texts have the feature"):
        measure([0.2, 0.4], [False, False])
    with pytest.raises(UserError, match="1 of 2 texts were not judged"):
        measure([0.2, math.nan], [False, True])
