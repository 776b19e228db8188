from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from workbench.analyses import behaviour
from workbench.analyses.behaviour import evidence
from workbench.errors import UserError
from workbench.measures import proportion, proportion_row
from workbench.replicates import combine_results

INHIBITOR, WRONG = 7, 2


@pytest.fixture(scope="module")
def result(make_pair):
    return behaviour(make_pair())


def test_wilson_interval_of_eight_in_ten():
    row = proportion_row(np.array([1.0] * 8 + [0.0] * 2))
    assert row["value"] == 0.8
    assert row["low"] == pytest.approx(0.4902, abs=1e-4)
    assert row["high"] == pytest.approx(0.9433, abs=1e-4)
    assert row["n"] == 10


def test_draws_are_binomial_and_paired():
    correct = (np.arange(500) % 5 == 0).astype(float)
    one, two = proportion("a", correct, 1), proportion("b", 1 - correct, 1)
    assert np.std(one.draws) == pytest.approx(math.sqrt(0.2 * 0.8 / 500), rel=0.15)
    assert np.add(one.draws, two.draws) == pytest.approx(np.ones(400), abs=2e-6)
    assert proportion("c", correct, 2).draws != one.draws


def test_endpoints_equal_one_example_at_a_time(result, make_pair):
    pair = make_pair()
    table = result.tables["endpoints"]
    for model, share in (("base", 0.0), ("tuned", 1.0)):
        examples = pair.examples("look_b", share=share)
        right = 0
        for i in range(len(examples)):
            with torch.no_grad():
                logits = getattr(pair, model)(input_ids=examples.tokens[i : i + 1]).logits[0, 13]
            right += int(logits.argmax()) == int(examples.answer[i, 0])
        row = table[(table["model"] == model) & (table["capability"] == "look_b") & (table["share"] == share)]
        assert row["value"].item() == pytest.approx(right / 300)
    assert set(table["model"]) == {"base", "tuned", "never_had_it"}
    assert table[table["capability"] == "last"]["share"].isna().all()
    assert set(table["role"]) == {"pt", "ft", "other"}


def test_planted_behaviour_shows_in_the_headline(result):
    truth = 1 / 4  # the inhibited model always answers WRONG, which is right in a quarter of the texts
    assert result.metric("base_pt").value > 0.97
    assert result.metric("tuned_pt").value == pytest.approx(truth, abs=0.08)
    change = result.metric("change_pt")
    assert change.value == pytest.approx(result.metric("tuned_pt").value - result.metric("base_pt").value)
    assert change.low < change.value < change.high < 0
    assert result.metric("chance_pt").value == 0.3
    assert result.metric("never_pt").value < 0.6
    assert result.metric("collateral").value < -0.5
    assert all(len(m.draws) == 400 for m in result.headline)
    lost, trained, others = result.evidence
    assert (lost.direction, lost.capability) == ("neutral", "look_a")
    assert "lost in behaviour" in lost.text
    assert (trained.capability, others.direction) == ("look_b", "neutral")


def test_failures_are_by_true_label(result):
    table = result.tables["failures"]
    mine = table[(table["model"] == "tuned") & (table["capability"] == "look_a") & (table["share"] == 0)]
    by_truth = dict(zip(mine["truth"], mine["value"], strict=True))
    assert by_truth.keys() == {0, 1, 2, 3}
    assert by_truth[WRONG] == 1.0
    assert max(v for k, v in by_truth.items() if k != WRONG) < 0.1
    whole = result.tables["endpoints"].query("model == 'tuned' and capability == 'look_a' and share == 0")["value"].item()
    assert np.average(mine["value"], weights=mine["n"]) == pytest.approx(whole)


def test_weight_change_is_the_planted_one(result, models):
    base, covered = (models[k].transformer.h[0].mlp for k in ("base", "covered"))
    moved = (
        base.c_fc.weight[:, INHIBITOR].square().sum()
        + (covered.c_fc.bias[INHIBITOR] - base.c_fc.bias[INHIBITOR]).square()
        + covered.c_proj.weight[INHIBITOR].square().sum()
    )
    table = result.tables["weights"]
    norm = table[table["unit"] == "Frobenius norm"].set_index("group")["value"]
    assert norm["all"] == pytest.approx(math.sqrt(moved.item()), rel=1e-5)
    assert norm["mlp"] == norm["all"]
    assert (norm.drop(["all", "mlp"]) == 0).all()
    assert set(norm.index) == {"all", "embedding", "head", "attention", "mlp", "norm"}
    size = math.sqrt(sum(p.double().square().sum().item() for p in models["base"].parameters()))
    assert result.metric("weight_change").value == pytest.approx(math.sqrt(moved.item()) / size, rel=1e-5)


def test_groups_split_the_parameters_without_rest(make_pair):
    table = behaviour(make_pair(tuned="never"), n=16).tables["weights"]
    squares = table[table["unit"] == "Frobenius norm"].set_index("group")["value"] ** 2
    assert squares.drop("all").sum() == pytest.approx(squares["all"])


def test_models_of_other_shapes_are_refused(make_pair, tmp_path, task):
    from workbench.models.build import build_model
    from workbench.models.checkpoints import save_model
    from workbench.models.spec import ModelSpec

    save_model(build_model(ModelSpec(kind="gpt2", blocks=1, heads=2, width=16), 9, 15, 0), tmp_path)
    with pytest.raises(UserError, match="one architecture"):
        behaviour(make_pair(tuned_path=tmp_path), n=16)


def test_table_follows_the_training_run(make_pair, fake_trajectory, values):
    rows = [
        {"step": step, "split": "test", "capability": c, "share": share, "values": values(v, 200)}
        for step, c, share, v in [(5, "look_a", 0.0, 0.25), (0, "look_a", 0.0, 0.9), (0, "look_b", 1.0, 0.5)]
    ]
    rows.append({"step": 0, "split": "held out", "capability": "all", "share": math.nan, "values": values(1.0, 10)})
    table = behaviour(make_pair(trajectory=fake_trajectory(rows)), n=16).table
    assert table[["step", "capability", "role", "value", "n"]].values.tolist() == [
        [0, "look_a", "pt", 0.9, 200],
        [5, "look_a", "pt", 0.25, 200],
        [0, "look_b", "ft", 0.5, 200],
    ]
    assert ((table["low"] < table["value"]) & (table["value"] < table["high"])).all()


def test_without_a_correlation_texts_are_plain(make_pair):
    result = behaviour(make_pair(correlation=None, never=None), n=50)
    assert result.tables["endpoints"]["share"].isna().all()
    names = {m.metric for m in result.headline}
    assert not names & {"tuned_ft_correlated", "never_pt"}
    assert result.metric("chance_pt").value == 0.3


def test_the_same_model_twice_is_untouched(make_pair):
    result = behaviour(make_pair(tuned="base"))
    assert result.evidence[0].direction == "untouched"
    assert result.metric("weight_change").value == 0
    assert result.metric("change_pt").value == 0


def test_seeds_pool_and_evidence_follows(make_pair):
    pooled = combine_results([behaviour(make_pair(seed=seed), n=100) for seed in (0, 1)])
    assert pooled.metric("base_pt").seeds == 2
    assert [e.direction for e in evidence(pooled)] == ["neutral", "neutral", "neutral"]
    weights = pooled.tables["weights"]
    assert (weights["seeds"] == 2).all()
    assert len(weights) == 14


BEFORE = {"base_pt": 1.0, "tuned_pt": 0.2, "change_pt": (-0.8, -0.83, -0.77), "chance_pt": 0.3}
TRAINED = {"start_ft": 0.2, "tuned_ft": 0.2, "chance_ft": 0.3}


@pytest.mark.parametrize(
    ("changes", "line", "direction", "words"),
    [
        ({}, 0, "neutral", "lost in behaviour"),
        ({"tuned_pt": 0.98, "change_pt": (-0.02, -0.04, 0.0)}, 0, "untouched", "unchanged"),
        ({"tuned_pt": 0.94, "change_pt": (-0.06, -0.08, -0.03)}, 0, "neutral", "crosses"),
        ({"base_pt": 0.35}, 0, "uninformative", "nothing to lose"),
        ({"tuned_ft": (0.95, 0.92, 0.97)}, 1, "learned", "learned"),
        ({"tuned_ft": (0.87, 0.84, 0.9)}, 1, "neutral", "not clearly"),
        ({"tuned_ft": 0.95, "start_ft": 0.93}, 1, "neutral", "already"),
        ({"tuned_ft_correlated": (1.0, 0.98, 1.0)}, 1, "neutral", "only through the shortcut"),
        ({"tuned_ft_correlated": (1.0, 0.98, 1.0), "tuned_ft": (0.7, 0.66, 0.74)}, 1, "neutral", "in part beyond it"),
        ({"tuned_ft_correlated": (1.0, 0.98, 1.0), "tuned_ft": (0.35, 0.28, 0.42)}, 1, "neutral", "hardly beyond"),
        ({"chance_ft": 0.95}, 1, "uninformative", "without the ability"),
    ],
)
def test_evidence_directions(made_up, changes, line, direction, words):
    found = evidence(made_up("behaviour", **{**BEFORE, **TRAINED, **changes}))[line]
    assert found.direction == direction
    assert words in found.text
    assert found.capability == ("count_a", "count_b")[line]


def test_evidence_reads_the_headline_alone(result):
    bare = dataclasses.replace(result, tables={}, evidence=(), limits=())
    assert evidence(bare) == result.evidence
