"""All rankings side by side, on a model whose one harmful neuron is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from workbench.analyses import pruning_scores
from workbench.analyses.pruning import k_grid
from workbench.analyses.pruning_scores import area_weights, correlations, evidence
from workbench.measures import correct_answers
from workbench.models.scores import SCORES
from workbench.replicates import combine_results

pytestmark = pytest.mark.slow

FINDS = ("signed_taylor", "leave_one_out", "leave_one_out_accuracy", "difference")


@pytest.fixture(scope="module")
def result(make_pair):
    return pruning_scores(make_pair(), n=100, max_units=5, score_examples=64, probes=4)


def test_every_score_has_its_curves_and_the_control_ten_orders(result):
    table = result.table
    asked = table[table["draw"] == 0]
    assert set(asked["ranking"]) == set(SCORES) - {"random"}
    shown = asked.groupby(["ranking", "capability"])["k"].apply(tuple)
    assert shown.map(lambda k: k == k_grid(5)).all()
    assert set(shown.index.get_level_values("capability")) == {"look_a", "look_b"}
    assert set(asked[asked["capability"] == "look_b"]["share"]) == {1.0}
    random = table[table["draw"] > 0]
    assert set(random["ranking"]) == {"random"}
    assert random.groupby("k")["draw"].nunique().eq(10).all()
    assert set(random["k"]) == set(k_grid(5))


def test_scores_that_find_the_planted_neuron_bring_all_back_and_others_nothing(result):
    for name in FINDS:
        assert result.metric(f"recovered_{name}").value == 1
        assert result.metric(f"area_{name}").value > 0.7
    for name in ("abs_taylor", "snip", "wanda", "set_difference", "input_taylor"):
        assert abs(result.metric(f"recovered_{name}").value) < 0.2
    assert abs(result.metric("recovered_random").value) < 0.1


def test_the_headline_is_that_of_the_chosen_ranking_against_the_best_random_order(result):
    assert result.metric("pruned_pt").value == result.metric("base_pt").value
    assert result.metric("units").value == 1
    gain = result.metric("pruned_pt").value - result.metric("random_pt").value
    assert result.metric("gain").value == pytest.approx(gain, abs=0.02)
    chosen = result.table[(result.table["draw"] > 0) & (result.table["k"] > 0)].groupby("draw")["value"].max()
    assert result.metric("random_pt").value <= chosen.max()
    (line,) = result.evidence
    assert (line.analysis, line.direction, line.capability) == ("pruning_scores", "masked", "look_a")
    assert "the best of 12 on separate examples" in result.limits[0]


def test_ranking_choice_and_judgement_have_draws_of_their_own(make_pair, task):
    task.drawn.clear()
    pruning_scores(make_pair(), n=16, max_units=1, score_examples=16, control_examples=16, probes=1)
    assert task.drawn == {
        ("look_a", "score", 0.0),
        ("look_a", "select", 0.0),
        ("look_a", "test", 0.0),
        ("look_b", "score", 1.0),  # protected where it was trained, as the other family is
        ("look_b", "test", 1.0),
        ("last", "score", None),
    }


def test_the_judge_is_the_test_draw(make_pair, result):
    pair = make_pair()
    test = pair.examples("look_a", n=100)
    assert result.metric("unpruned_pt").value == correct_answers(pair.tuned, test).mean()
    assert result.metric("base_pt").value == correct_answers(pair.base, test).mean()


def test_area_is_the_mean_over_the_curve(result):
    table = result.table
    rows = table[(table["ranking"] == "signed_taylor") & (table["capability"] == "look_a")].sort_values("k")
    before, base = rows["value"].iloc[0], result.metric("base_pt").value
    at = np.log1p(rows["k"].to_numpy(float))
    expected = np.trapezoid((rows["value"] - before) / (base - before), at) / (at[-1] - at[0])
    assert result.metric("area_signed_taylor").value == pytest.approx(expected)


@pytest.mark.parametrize("grid", [(0, 1), (0, 1, 2, 3, 5, 7, 10)])
def test_area_weights_are_a_mean(grid):
    weights = area_weights(grid)
    assert weights.sum() == pytest.approx(1)
    assert weights @ np.log1p(grid) == pytest.approx(np.log1p(grid[-1]) / 2)


def test_table_of_scores_says_which_end_goes_first_and_why(result):
    scores = result.tables["scores"]
    assert set(scores["quantity"]) == {"recovered", "area", "units", "left of O_FT"}
    first = scores.drop_duplicates("score").set_index("score")["first"]
    assert (first["signed_taylor"], first["wanda"]) == ("largest", "smallest")
    assert scores["why"].map(len).min() > 10
    left = scores[(scores["score"] == "signed_taylor") & (scores["quantity"] == "left of O_FT")]["value"].item()
    assert left > 0.97


def test_correlations_are_spearmans_with_the_direction_of_removal():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, generator=generator)
    given = {
        "signed_taylor": x,
        "leave_one_out": x + torch.randn(50, generator=generator),
        "wanda": -x,  # the smallest goes first: the same order
        "snip": x,
        "leave_one_out_accuracy": torch.zeros(50),
    }
    table = correlations(given).set_index(["score", "other"])
    expected = spearmanr(x, given["leave_one_out"]).statistic
    row = table.loc[("signed_taylor", "leave_one_out")]
    assert row["value"] == pytest.approx(expected)
    z, se = math.atanh(expected), math.sqrt((1 + expected**2 / 2) / 47)
    assert (row["low"], row["high"]) == (
        pytest.approx(math.tanh(z - 1.959964 * se)),
        pytest.approx(math.tanh(z + 1.959964 * se)),
    )
    assert table.loc[("signed_taylor", "wanda"), "value"] == pytest.approx(1)
    assert table.loc[("signed_taylor", "snip"), "value"] == pytest.approx(-1)
    assert math.isnan(table.loc[("snip", "leave_one_out_accuracy"), "value"])
    assert (table["n"] == 50).all()


def test_other_units_have_fewer_scores_and_nothing_lost_is_uninformative(make_pair):
    result = pruning_scores(make_pair(tuned="base"), units="heads", n=32, max_units=2, score_examples=32, probes=1)
    assert "input_taylor" not in set(result.table["ranking"])
    assert result.metric("units").unit == "heads"
    assert result.tables["correlations"]["low"].isna().all()  # two heads: no interval
    assert result.evidence[0].direction == "uninformative"
    assert result.metric("recovered_snip").bound == "undefined"


def test_seeds_pool_and_evidence_follows(result):
    pooled = combine_results([result, replace(result, provenance={**result.provenance, "seed": 4})])
    assert evidence(pooled)[0].direction == "masked"
    assert set(pooled.tables["correlations"]["seeds"]) == {2}
