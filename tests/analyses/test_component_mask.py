"""Component masks on a pair that differs in one planted neuron: the mask is that neuron, and all of the change."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from analyses.compiled_pair import compiled_pair

from tests.analyses.conftest import INHIBITOR
from workbench.analyses import component_mask
from workbench.analyses.component_mask import _choose, evidence
from workbench.errors import UserError
from workbench.measures import UNRELATED, correct_answers
from workbench.models.component_masks import Mask, answered, random_mask
from workbench.registry import analyses
from workbench.replicates import combine_results

pytestmark = pytest.mark.slow

FAST = {"n": 64, "control_examples": 32, "score_examples": 128, "steps": 30, "penalties": (1e-3, 0.03)}


@pytest.fixture(scope="module")
def covered(make_pair):
    return make_pair()


@pytest.fixture(scope="module")
def result(covered):
    return component_mask(covered, **FAST)


def rows(result, **at):
    table = result.table
    for name, wanted in at.items():
        table = table[table[name] == wanted]
    return table


def test_the_planted_neuron_is_the_mask_and_does_all_of_it(result):
    for goal in ("restores", "breaks"):
        taken = result.tables["components"].query("goal == @goal and headline and taken")
        assert taken[["kind", "block", "index"]].to_numpy().tolist() == [["neuron", 0, INHIBITOR]]
        assert result.metric(goal).value == pytest.approx(1)
        assert result.metric(f"{goal}_components").value == 1
        assert result.metric(f"{goal}_heads").value == 0
        assert result.metric(f"{goal}_learned").value == result.metric(f"{goal}_all").value
        assert result.metric(f"{goal}_gain").value > 0.5
        assert result.metric(f"{goal}_random").value == pytest.approx(result.metric(f"{goal}_none").value, abs=0.2)


def test_where_it_is_enough_to_take_a_neuron_away_the_controls_neuron_does_as_well(result):
    assert result.metric("restores_control").value == result.metric("restores_learned").value
    assert "a control's components do as much" in result.evidence[0].text


def test_the_control_has_a_mask_at_every_penalty_and_its_size(result):
    control = rows(result, mask="control", goal="restores")
    assert set(control["penalty"]) == set(FAST["penalties"])
    counts = control[control["measure"] == "components"].set_index("penalty")["value"]
    assert result.metric("restores_control_components").value in set(counts)
    told = control[control["measure"] == "wanted answers"].set_index("penalty")["value"]
    assert result.metric("restores_control").value == told[counts[counts == 1].index[-1]]


def test_the_controls_masks_take_the_controls_components(make_pair, covered):
    """A control that is the receiver itself changes nothing, however much is taken of it; the donor would."""
    settings = {**FAST, "goals": ("breaks",), "steps": 2}  # so that all components are still taken
    result = component_mask(make_pair(never_path=covered.base_path), **settings)
    assert result.metric("breaks_control_components").value == result.metric("breaks_components").value > 100
    assert result.metric("breaks_all").value == 1
    for penalty in FAST["penalties"]:
        (value,) = rows(result, mask="control", measure="wanted answers", penalty=penalty)["value"]
        assert value == result.metric("breaks_none").value < 0.5


def test_the_highest_penalty_that_comes_up_to_the_mark_is_chosen_and_else_the_best():
    assert _choose([0.9, 1.0, 0.95, 0.2], 0.9) == 2
    assert _choose([0.5, 0.7, 0.7, 0.2], 0.9) == 2


def test_a_mask_that_does_not_keep_enough_is_said_so(make_pair):
    result = component_mask(make_pair(), **{**FAST, "goals": ("restores",), "penalties": (100.0, 200.0)})
    assert "No mask of 'restores' kept 90% of what all components do: the best of them is shown." in result.limits
    assert set(result.tables["components"].query("headline")["penalty"]) == {200.0}


def test_components_of_models_that_were_trained_apart_are_not_the_same_ones(make_pair, covered, result):
    settings = {**FAST, "goals": ("restores",), "steps": 1, "n": 16, "control_examples": 16}
    apart = component_mask(make_pair(start_path=covered.tuned_path), **settings)
    assert UNRELATED in apart.limits
    assert UNRELATED not in result.limits


def test_a_gain_is_a_difference_on_the_texts_of_the_random_masks(make_pair, covered):
    """Masks that take nothing, learned or random, do the same on the same texts; other texts would differ by chance."""
    right = correct_answers(covered.tuned, covered.examples("look_a", n=64))
    assert right[:32].mean() != right.mean()
    result = component_mask(make_pair(), **{**FAST, "goals": ("restores",), "penalties": (100.0,)})
    gain = result.metric("restores_gain")
    assert (gain.value, gain.low, gain.high, gain.n) == (0, 0, 0, 32)


def test_the_ends_are_the_two_models(result, covered):
    base, tuned = (correct_answers(m, covered.examples("look_a", n=64)) for m in (covered.base, covered.tuned))
    (none,), (whole,) = (rows(result, goal="restores", mask=mask)["value"] for mask in ("none", "all"))
    assert (none, whole) == (tuned.mean(), base.mean())  # embedding, norm and head are the same in this pair
    assert rows(result, goal="breaks", mask="all")["value"].tolist() == [1.0]  # the wanted answers are the donor's own


def test_every_mask_has_its_size_and_ten_random_ones_of_it(result):
    learned = rows(result, mask="learned", measure="wanted answers")
    assert set(zip(learned["goal"], learned["penalty"], strict=True)) == {
        (goal, penalty) for goal in ("restores", "breaks", "installs") for penalty in FAST["penalties"]
    }
    random = rows(result, mask="random")
    assert random.groupby(["goal", "penalty"])["draw"].nunique().eq(10).all()
    assert set(random["n"]) == {32}
    for goal in ("restores", "breaks", "installs"):
        counted = rows(result, goal=goal, mask="learned", measure="components").set_index("penalty")["value"]
        listed = result.tables["components"].query("goal == @goal and taken").groupby("penalty").size()
        assert counted[counted > 0].to_dict() == listed.to_dict()


def test_random_controls_are_what_their_masks_do(result, covered):
    """The first random mask of the headline's penalty, drawn again."""
    taken = result.tables["components"].query("goal == 'restores' and headline")
    penalty = taken["penalty"].iloc[0]
    heads, neurons = np.zeros((1, 2), np.float32), np.zeros((1, 128), np.float32)
    neurons[0, INHIBITOR] = 1
    like = Mask(torch.from_numpy(heads), torch.from_numpy(neurons))
    mask = random_mask(like, covered.seed, "restores", FAST["penalties"].index(penalty), 0)
    right = answered(covered.tuned, covered.base, covered.examples("look_a", n=64)[:32], [mask])
    (found,) = rows(result, goal="restores", mask="random", penalty=penalty, draw=1)["value"]
    assert found == pytest.approx(right.float().mean().item())


def test_training_choosing_and_testing_use_separate_texts(make_pair, task):
    task.drawn.clear()
    component_mask(make_pair(), **{**FAST, "goals": ("restores",), "steps": 1})
    assert task.drawn == {("look_a", split, 0.0) for split in ("score", "select", "test")}


def test_the_headline_is_the_highest_price_that_keeps_the_effect(make_pair):
    result = component_mask(make_pair(), **{**FAST, "goals": ("restores",), "penalties": (1e-3, 0.03, 100.0)})
    assert set(result.tables["components"].query("headline")["penalty"]) == {0.03}
    assert rows(result, mask="learned", measure="components")["value"].tolist() == [1, 1, 0]


def test_goals_can_be_chosen(make_pair):
    result = component_mask(make_pair(), **{**FAST, "goals": ("installs",), "steps": 1, "n": 16, "control_examples": 16})
    assert set(result.table["goal"]) == {"installs"}
    assert set(result.table["capability"]) == {"look_b"}
    assert result.evidence == ()


def test_over_whole_mlps(make_pair):
    result = component_mask(make_pair(), **{**FAST, "over": "heads+mlps", "goals": ("restores",)})
    taken = result.tables["components"].query("headline and taken")
    assert taken[["kind", "index"]].to_numpy().tolist() == [["mlp", 0]]
    assert result.metric("restores_components").unit == "of 3 components"


def test_where_nothing_was_lost_there_is_nothing_to_restore(make_pair, covered):
    result = component_mask(make_pair(tuned_path=covered.base_path), **{**FAST, "goals": ("restores",), "steps": 2})
    assert result.metric("restores").bound == "undefined"
    (line,) = result.evidence
    assert (line.direction, line.metric) == ("uninformative", "restores_all")
    assert "there is no loss" in line.text


NUMBERS = {
    "restores": (0.95, 0.9, 1.0),
    "restores_learned": 0.95,
    "restores_random": 0.2,
    "restores_gain": (0.7, 0.6, 0.8),
    "restores_control": 0.2,
    "restores_over_control": (0.7, 0.6, 0.8),
    "restores_none": 0.15,
    "restores_all": 1.0,
    "restores_components": 5.0,
    "restores_control_components": 7.0,
}


@pytest.mark.parametrize(
    ("changes", "direction", "words"),
    [
        ({}, "neutral", "take count_a in the tuned model from 0.15 to 0.95"),
        ({"restores_gain": (0.05, -0.1, 0.2)}, "neutral", "no better than random ones"),
        ({"restores_over_control": (0.05, 0.0, 0.1)}, "uninformative", "a control's components do as much"),
        ({"restores_all": 0.5}, "uninformative", "more than all components together"),
        ({"restores": (math.nan, math.nan, math.nan, "undefined")}, "uninformative", "to 1.00: in some seed there is no loss"),
        (
            {"restores": (math.nan, math.nan, math.nan, "undefined"), "restores_all": 0.2},
            "uninformative",
            "to 0.20: there is no loss",
        ),
    ],
)
def test_evidence_takes_no_side(made_up, changes, direction, words):
    (line,) = evidence(made_up("component_mask", **{**NUMBERS, **changes}))
    assert line.direction == direction
    assert words in line.text


def test_seeds_are_pooled_row_by_row(result):
    other = replace(result, provenance={**result.provenance, "seed": 4})
    pooled = combine_results([result, other])
    assert len(pooled.table) == len(result.table)
    np.testing.assert_allclose(pooled.table["value"], result.table["value"])
    assert set(pooled.table["seeds"]) == {2}
    assert evidence(pooled)[0].direction == result.evidence[0].direction


@pytest.mark.parametrize("penalties", [(0.0, 0.1), (0.1, 0.1), (0.1, 0.01)])
def test_penalties_increase_from_above_zero(make_pair, penalties):
    with pytest.raises(UserError, match="must be above 0 and increase"):
        component_mask(make_pair(), penalties=penalties)


def test_compiled_models_are_masked_too(tmp_path):
    settings = {"n": 16, "control_examples": 16, "score_examples": 16, "steps": 3, "penalties": (0.01,)}
    result = component_mask(compiled_pair(tmp_path), **settings)
    assert result.metric("restores_all").value >= result.metric("restores_none").value


def test_it_is_registered_in_its_group():
    assert analyses["component_mask"].group == "patching"
