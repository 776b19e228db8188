from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch

from workbench.analyses import revival
from workbench.analyses.revival import evidence
from workbench.errors import UserError
from workbench.figures import figure
from workbench.replicates import combine_results
from workbench.results import Result

GRID = (0, 5, 10, 20, 40, 80, 160)


@pytest.fixture
def arm(fake_trajectory, values):
    """An arm by its accuracies on the grid; decoys of another share and another capability beside them."""

    def make(*accuracies, batch_size=64, share=0.0, n=1000):
        rows = []
        for step, accuracy in zip(GRID, accuracies, strict=False):
            right = values(accuracy, n)
            rows.append({"step": step, "split": "test", "capability": "look_a", "share": share, "values": right})
            rows.append({"step": step, "split": "test", "capability": "look_a", "share": 1.0, "values": 1 - right})
            rows.append({"step": step, "split": "test", "capability": "look_b", "share": 0.0, "values": 1 - right})
        return fake_trajectory(rows[::-1], batch_size)  # the order of rows says nothing

    return make


@pytest.fixture
def run(make_pair):
    return lambda **arms: revival(make_pair(arms=arms))


def test_crossings_on_and_between_grid_points(run, arm):
    # .95 exactly at step 10; between 10 and 20 half of the way, that is sqrt(11 * 21) - 1 on the scale log(1 + step).
    result = run(revived=arm(0.2, 0.5, 0.95, 1.0, 1.0), never_had_it=arm(0.2, 0.2, 0.9, 1.0, 1.0))
    assert result.metric("steps_revived").value == pytest.approx(10)
    assert result.metric("steps_never_had_it").value == pytest.approx(math.sqrt(11 * 21) - 1)
    assert result.metric("ratio").value == pytest.approx(10 / (math.sqrt(231) - 1))
    assert result.metric("ratio").pool == "geometric"
    assert result.metric("examples_revived").value == pytest.approx(640)
    assert {m.bound for m in result.headline} == {"exact"}
    assert all(len(m.draws) == 400 for m in result.headline)


def test_cheap_revival_is_masked(run, arm):
    result = run(revived=arm(0.2, 0.9, 1.0, 1.0), never_had_it=arm(0.2, 0.2, 0.3, 0.5, 0.9, 1.0, 1.0))
    ratio = result.metric("ratio")
    assert ratio.low <= ratio.value <= ratio.high < 1 / 3
    (line,) = result.evidence
    assert (line.direction, line.metric, line.capability) == ("masked", "ratio", "look_a")


def test_relearning_at_the_controls_pace_is_erased(run, arm):
    same = (0.2, 0.2, 0.3, 0.5, 0.9, 1.0, 1.0)
    result = run(revived=arm(*same), never_had_it=arm(*same))
    # The same examples are resampled in both arms, so that equal arms are equal in every draw.
    assert set(result.metric("ratio").draws) == {1.0}
    assert result.evidence[0].direction == "erased"


def test_control_that_never_arrives_gives_an_upper_bound(run, arm):
    result = run(revived=arm(0.2, 0.9, 1.0, 1.0), never_had_it=arm(0.2, 0.2, 0.2, 0.3, 0.3, 0.5))
    never, ratio = result.metric("steps_never_had_it"), result.metric("ratio")
    assert (never.value, never.bound) == (80, "lower")
    assert ratio.bound == "upper"
    assert ratio.value == pytest.approx(result.metric("steps_revived").value / 80)
    assert result.evidence[0].direction == "masked"
    assert "at most" in result.evidence[0].text


def test_upper_bound_near_one_does_not_say_erased(run, arm):
    result = run(revived=arm(0.2, 0.2, 0.2, 0.2, 0.9, 1.0, 1.0), never_had_it=arm(0.2, 0.2, 0.2, 0.2, 0.2, 0.5))
    assert result.metric("ratio").value > 0.5
    assert result.metric("ratio").bound == "upper"
    assert result.evidence[0].direction == "neutral"


def test_subject_that_never_arrives_gives_a_lower_bound(run, arm):
    result = run(revived=arm(0.2, 0.2, 0.2, 0.3, 0.3, 0.5), never_had_it=arm(0.2, 0.2, 0.9, 1.0, 1.0, 1.0, 1.0))
    assert result.metric("ratio").bound == "lower"
    assert result.evidence[0].direction == "erased"
    assert "at least" in result.evidence[0].text


def test_neither_arrives(run, arm):
    flat = (0.2, 0.2, 0.2, 0.3, 0.3, 0.5)
    result = run(revived=arm(*flat), never_had_it=arm(*flat))
    assert result.metric("ratio").bound == "undefined"
    assert math.isnan(result.metric("ratio").value)
    assert result.evidence[0].direction == "uninformative"


def test_an_arm_stopped_at_its_ceiling_ends_there(run, arm):
    result = run(revived=arm(0.2, 0.9, 1.0, 1.0), never_had_it=arm(0.2, 0.2, 0.3, 0.5, 0.9, 1.0, 1.0))
    table = result.table
    assert table[table["arm"] == "revived"]["step"].tolist() == [0, 5, 10, 20]
    assert table[table["arm"] == "never_had_it"]["step"].max() == 160
    assert table[table["arm"] == "revived"]["value"].tolist() == [0.2, 0.9, 1.0, 1.0]


def test_one_lucky_evaluation_is_no_revival(run, arm):
    result = run(revived=arm(0.2, 0.96, 0.7, 0.9, 1.0, 1.0, 1.0), never_had_it=arm(0.2, 0.2, 0.3, 0.5, 0.9, 1.0, 1.0))
    assert 20 < result.metric("steps_revived").value < 40


def test_arms_are_compared_by_examples(run, arm):
    same = (0.2, 0.2, 0.95, 1.0, 1.0)
    result = run(revived=arm(*same, batch_size=32), never_had_it=arm(*same, batch_size=128))
    assert result.metric("steps_revived").value == result.metric("steps_never_had_it").value
    assert result.metric("ratio").value == pytest.approx(0.25)
    steps = result.tables["steps"].set_index(["arm", "unit"])["value"]
    assert steps["revived", "examples"] == pytest.approx(320)
    assert steps["never_had_it", "examples"] == pytest.approx(1280)


def test_other_rates_have_ratios_of_their_own_and_no_say_in_the_verdict(run, arm):
    main = {"revived": arm(0.2, 0.5, 0.95, 1.0, 1.0), "never_had_it": arm(0.2, 0.2, 0.3, 0.5, 0.95, 1.0, 1.0)}
    fast = {"revived@0.001": arm(0.2, 0.95, 1.0, 1.0), "never_had_it@0.001": arm(0.2, 0.95, 1.0, 1.0)}
    alone, both = run(**main), run(**main, **fast)
    assert both.metric("ratio@0.001").value == pytest.approx(1)
    assert both.metric("steps_revived@0.001").value == pytest.approx(5)
    assert both.metric("ratio") == alone.metric("ratio")
    assert both.evidence == alone.evidence
    assert run(**main, **{"revived@0.001": arm(0.2)}).evidence == alone.evidence  # its control is missing: no ratio


def test_arriving_at_the_last_step_alone_is_no_arrival(run, arm):
    late = arm(0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.97)
    result = run(revived=late, never_had_it=late)
    assert [(result.metric(f"steps_{a}").value, result.metric(f"steps_{a}").bound) for a in ("revived", "never_had_it")] == [
        (80, "lower")
    ] * 2
    assert result.metric("ratio").bound == "undefined"


def test_a_ratio_whose_draws_are_often_censored_is_a_bound(run, arm):
    # Just above the threshold at the last two points: many resamplings of the examples do not arrive.
    barely = arm(0.2, 0.2, 0.2, 0.2, 0.2, 0.955, 0.955, n=200)
    surely = arm(0.2, 0.2, 0.2, 0.2, 0.2, 1.0, 1.0, n=200)
    assert run(revived=surely, never_had_it=surely).metric("ratio").bound == "exact"
    assert run(revived=surely, never_had_it=barely).metric("ratio").bound == "upper"
    assert run(revived=barely, never_had_it=surely).metric("ratio").bound == "lower"
    assert run(revived=barely, never_had_it=barely).metric("ratio").bound == "undefined"
    assert run(revived=barely, never_had_it=barely).metric("steps_revived").bound == "lower"


def test_random_weights_that_learn_as_fast_forbid_the_verdict(run, arm):
    arms = {"revived": arm(0.2, 0.5, 0.95, 1.0, 1.0), "never_had_it": arm(0.2, 0.2, 0.2, 0.2, 0.9, 1.0, 1.0)}
    assert run(**arms, scratch=arm(0.2, 0.2, 0.2, 0.95, 1.0, 1.0)).evidence[0].direction == "masked"
    line = run(**arms, scratch=arm(0.2, 0.5, 0.95, 1.0, 1.0)).evidence[0]
    assert line.direction == "neutral"
    assert "random weights learn it as fast" in line.text


def test_plain_texts_count_as_the_uncorrelated_set(run, arm):
    result = run(revived=arm(0.2, 0.95, 1.0, 1.0, share=math.nan), never_had_it=arm(0.2, 0.5, 0.95, 1.0, 1.0, share=math.nan))
    assert result.metric("steps_revived").value == pytest.approx(5)


@pytest.mark.parametrize(
    ("unshown", "direction", "said"),
    [
        ("irrelevant", "masked", "it cannot have been taught by them"),
        ("unrelated", "masked", "random strings"),
        ("other_operands", "neutral", "other operands of its family"),
    ],
)
def test_training_that_never_shows_it_and_revives_it_is_called_out(run, arm, unshown, direction, said):
    arms = {"revived": arm(0.2, 0.9, 1.0, 1.0), "never_had_it": arm(0.2, 0.2, 0.3, 0.5, 0.9, 1.0, 1.0)}
    assert len(run(**arms, **{unshown: arm(0.2, 0.2, 0.3, 0.3, 0.3, 0.3)}).evidence) == 1
    lines = run(**arms, **{unshown: arm(0.2, 0.9, 1.0, 1.0)}).evidence
    assert said in lines[1].text
    assert lines[1].direction == direction
    assert lines[1].metric == f"steps_{unshown}"


def test_nothing_lost_is_uninformative_not_masked(run, arm):
    result = run(revived=arm(0.97, 1.0, 1.0), never_had_it=arm(0.2, 0.2, 0.3, 0.5, 0.9, 1.0, 1.0))
    assert result.metric("steps_revived").value == 0
    assert result.evidence[0].direction == "uninformative"
    assert result.metric("ratio").value > 0  # a geometric mean over seeds stays possible


def test_a_control_that_has_the_ability_is_no_control(run, arm):
    result = run(revived=arm(0.2, 0.9, 1.0, 1.0), never_had_it=arm(0.9, 0.9, 0.9, 0.9, 0.9, 1.0, 1.0))
    assert result.evidence[0].direction == "uninformative"
    assert "no control" in result.evidence[0].text


def test_missing_arms(run, arm):
    result = run(revived=arm(0.2, 0.9, 1.0, 1.0), scratch=arm(0.2, 0.2, 0.2))
    assert result.evidence[0].direction == "uninformative"
    assert "the ratio to the model that never had it was not measured" in result.evidence[0].text
    assert evidence(Result("revival", {}, ()))[0].direction == "uninformative"


def test_an_arm_that_was_not_measured_is_named(run, arm, fake_trajectory):
    with pytest.raises(UserError, match="'never_had_it' was not measured on 'look_a'"):
        run(revived=arm(0.2, 0.9, 1.0), never_had_it=fake_trajectory([]))


def test_seeds_pool_on_the_log_scale(make_pair, arm):
    never = arm(0.2, 0.2, 0.2, 0.2, 0.95, 1.0, 1.0)
    results = [
        revival(make_pair(seed=0, arms={"revived": arm(0.2, 0.95, 1.0, 1.0), "never_had_it": never})),
        revival(make_pair(seed=1, arms={"revived": arm(0.2, 0.5, 0.95, 1.0, 1.0), "never_had_it": never})),
    ]
    pooled = combine_results(results)
    assert pooled.metric("ratio").value == pytest.approx(math.sqrt(5 / 40 * 10 / 40))
    curve = pooled.table[pooled.table["arm"] == "revived"].sort_values("step")
    # The first seed stopped after 20 steps: beyond, it counts as there, and the curve is not that of the slow seed alone.
    assert curve["value"].tolist() == pytest.approx([0.2, 0.725, 0.975, 1.0, 1.0])
    assert curve["seeds"].tolist() == [2] * 5
    (line,) = evidence(pooled)
    assert line.direction == "masked"
    assert "Steps to 95 % on look_a: 8 for the tuned model, 40 for one that never had it" in line.text


@pytest.mark.parametrize(
    ("ratio", "direction"),
    [
        ((0.2, 0.15, 0.3), "masked"),
        ((0.3, 0.2, 0.4), "neutral"),
        ((0.5, 0.4, 0.6), "neutral"),
        ((0.9, 0.7, 1.1), "neutral"),
        ((1.0, 0.9, 1.1), "erased"),
        ((0.2, 0.15, 0.3, "lower"), "neutral"),
        ((1.0, 0.9, 1.1, "upper"), "neutral"),
    ],
)
def test_evidence_takes_the_whole_interval(made_up, ratio, direction):
    starts = {"start_revived": 0.2, "start_never_had_it": 0.2}
    result = made_up("revival", steps_revived=20.0, steps_never_had_it=100.0, ratio=ratio, **starts)
    (line,) = evidence(result)
    assert line.direction == direction
    assert np.isfinite(line.value)


class TestWherePromptsDoNotDetermineTheirAnswers:
    """The goal is 95 % of the way from chance to what the base does on the texts of the arms."""

    @pytest.fixture
    def relative(self, make_pair, monkeypatch):
        def make(base, **arms):
            pair = make_pair(arms=arms, n=64)
            monkeypatch.setattr(type(pair.task), "determined", False, raising=False)
            expected = pair.examples("look_a", n=1000).tokens  # as many as the arms were measured on

            def measured(model, examples):
                assert model is pair.base
                assert torch.equal(examples.tokens, expected)
                return (np.arange(1000) < base * 1000).astype(float)

            monkeypatch.setattr(sys.modules["workbench.analyses.revival"], "correct_answers", measured)
            return revival(pair)

        return make

    def test_the_goal_lies_between_chance_and_the_base(self, relative, arm):
        # chance is .3: .3 + .95 * (.8 - .3) = .775, which stands exactly at step 10
        result = relative(0.8, revived=arm(0.2, 0.5, 0.776, 0.8, 0.8), never_had_it=arm(0.2, 0.2, 0.2, 0.3, 0.5, 0.776, 0.8))
        assert result.metric("goal").value == pytest.approx(0.775)
        assert result.metric("steps_revived").value == pytest.approx(10, abs=0.1)
        assert result.metric("steps_never_had_it").value == pytest.approx(80, abs=0.5)
        assert result.evidence[0].direction == "masked"
        assert (
            "Steps to 95 % of what the base has over chance (0.77) on look_a: 10 for the tuned model" in result.evidence[0].text
        )
        assert any("from chance to the base" in limit for limit in result.limits)
        drawn = figure(result)
        lines = {a.text: a.y for a in drawn.layout.annotations}
        assert lines["95 % of what the base has over chance (0.77): counts as revived"] == pytest.approx(0.775)

    def test_a_start_that_is_near_the_goal_leaves_nothing_to_revive(self, relative, arm):
        result = relative(0.8, revived=arm(0.7, 0.775, 0.8, 0.8), never_had_it=arm(0.2, 0.2, 0.2, 0.775, 0.8))
        assert result.evidence[0].direction == "uninformative"
        assert "starts at 0.70: there is next to nothing to revive" in result.evidence[0].text
