"""Connectivity of a base, a copy with a planted neuron, and a model that was trained apart."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from analyses.compiled_pair import compiled_pair
from analyses.finished_arm import finished_arm

from workbench.analyses import connectivity
from workbench.analyses.connectivity import BEYOND, evidence
from workbench.errors import UserError
from workbench.measures import correct_answers
from workbench.models.build import build_model
from workbench.models.checkpoints import save_model
from workbench.models.forward import evaluate, nll
from workbench.models.spec import ModelSpec
from workbench.replicates import combine_results

FEW = {"n": 60, "steps": 0, "control_examples": 16, "points": 5}


@pytest.fixture(scope="module")
def covered(make_pair):
    """Reverse fine-tuning ended at the base itself."""
    pair = make_pair()
    return replace(pair, arms={"revived": finished_arm(pair.base_path)})


@pytest.fixture(scope="module")
def result(covered):
    return connectivity(covered, **{**FEW, "n": 200, "steps": 2})


@pytest.fixture(scope="module")
def apart(make_pair):
    """The revived model is of another training: a curve from the base to it must leave the line."""
    pair = make_pair(capability="look_b", tuned_on="look_a", correlation=None)
    return replace(pair, arms={"revived": finished_arm(pair.never_path)})


def rows(table, **at):
    for name, value in at.items():
        table = table[table[name] == value]
    return table.sort_values("alpha") if "alpha" in table else table


def mixed(a, b, alpha):
    """Weights put together one by one, in double precision."""
    model, other = copy.deepcopy(a).double(), dict(b.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_((1 - alpha) * parameter + alpha * other[name].double())
    return model


def test_the_ends_of_lines_are_the_models(result, covered):
    models = {"base": covered.base, "tuned": covered.tuned, "revived": covered.base, "never_had_it": covered.never_had_it}
    sets = {"pt": covered.examples("look_a", n=200), "ft": covered.examples("look_b", share=1.0, n=200)}
    assert set(result.table["line"]) == {"base to tuned", "tuned to revived", "base to revived", "base to never_had_it"}
    for line in set(result.table["line"]):
        for end, name in zip((0.0, 1.0), line.split(" to "), strict=True):
            for role, examples in sets.items():
                at = {"line": line, "path": "straight", "role": role, "alpha": end}
                (loss,), (right,) = (rows(result.table, measure=m, **at)["value"] for m in ("loss", "accuracy"))
                assert loss == pytest.approx(float(evaluate(models[name], examples, nll).double().mean()), rel=1e-6)
                assert right == correct_answers(models[name], examples).mean()


@pytest.mark.parametrize("alpha", [-1.0, 0.25, 0.75, 2.0])
@pytest.mark.slow
def test_points_between_and_beyond_are_those_of_a_naive_twin_in_double_precision(result, covered, alpha):
    examples = covered.examples("look_a", n=200)
    twin = mixed(covered.base, covered.tuned, alpha)
    at = {"line": "base to tuned", "path": "straight", "role": "pt", "alpha": alpha}
    (loss,) = rows(result.table, measure="loss", **at)["value"]
    expected = np.mean([float(nll(twin, examples[i : i + 1]).detach()) for i in range(200)])
    assert loss == pytest.approx(expected, rel=1e-4)
    (right,) = rows(result.table, measure="accuracy", **at)["value"]
    assert right == pytest.approx(correct_answers(twin, examples).mean(), abs=0.0051)


def test_the_tuned_vector_goes_beyond_its_ends_and_no_other_line_does(result):
    grid = np.linspace(0, 1, 5)
    for line, found in result.table[result.table["path"] == "straight"].groupby("line"):
        expected = sorted({*grid, *BEYOND}) if line == "base to tuned" else grid
        np.testing.assert_allclose(sorted(set(found["alpha"])), expected)


def test_a_model_has_no_barrier_to_itself(result):
    line = rows(result.table, line="base to revived", path="straight", role="pt", measure="loss")
    assert line["value"].nunique() == 1
    (barrier,) = rows(result.tables["barriers"], line="base to revived", path="straight", role="pt", measure="barrier")["value"]
    assert barrier == 0
    dip = result.metric("dip_base_revived_pt")
    assert (dip.value, dip.low) == (0, 0)
    assert 0 < dip.high < 0.02  # none of 200 is not none


def test_a_barrier_is_the_highest_rise_over_the_chord(result):
    for (line, path, role), found in result.tables["barriers"].groupby(["line", "path", "role"]):
        curve = rows(result.table, line=line, path=path, role=role)
        curve = curve[curve["alpha"].between(0, 1)]
        for measure, name, sign in (("loss", "barrier", 1), ("accuracy", "dip", -1)):
            points = curve[curve["measure"] == measure][["alpha", "value"]].to_numpy()
            chord = points[0, 1] + points[:, 0] * (points[-1, 1] - points[0, 1])
            rise = sign * (points[:, 1] - chord)
            assert rows(found, measure=name)["value"].item() == pytest.approx(max(rise), abs=1e-9)
            if name == "barrier" and rise.max() > 1e-6:
                assert rows(found, measure="peak")["value"].item() == points[rise.argmax(), 0]


def test_the_maximum_in_each_draw_is_biased_upwards(result):
    optimism = rows(result.tables["barriers"], measure="optimism")
    assert (optimism["value"] >= 0).all()
    assert optimism["value"].max() > 1e-4
    far = rows(result.tables["barriers"], line="base to never_had_it", role="ft", measure="barrier").iloc[0]
    assert 0 < far["low"] < far["value"] < far["high"]
    assert len(result.metric("barrier_base_never_had_it_pt").draws) == 400


@pytest.mark.slow
def test_a_trained_curve_goes_round_what_the_line_runs_into(apart):
    """On texts that it was not trained on; with the training switched off there is no curve."""
    settings = {**FEW, "n": 150, "control_examples": 16}
    trained = connectivity(apart, **{**settings, "steps": 60, "lr": 3e-3})
    assert trained.metric("barrier_base_revived_pt").value > 0.5
    assert trained.metric("barrier_base_revived_bezier_pt").value < trained.metric("barrier_base_revived_pt").value / 2
    saved = trained.metric("barrier_saved")
    assert saved.low > 0
    for role in ("pt", "ft"):
        ends = {}
        for path in ("straight", "bezier"):
            found = rows(trained.table, line="base to revived", path=path, role=role, measure="loss")
            ends[path] = found["value"].iloc[[0, -1]].tolist()
        assert ends["straight"] == ends["bezier"]
    none = connectivity(apart, **settings)
    assert set(none.table["path"]) == {"straight", "random"}
    assert not [m.metric for m in none.headline if "bezier" in m.metric]


def test_distances(result, covered):
    a, b = (torch.cat([p.detach().double().flatten() for p in m.parameters()]) for m in (covered.base, covered.tuned))
    found = result.tables["distances"]
    assert rows(found, line="base to tuned", measure="distance")["value"].item() == pytest.approx(float((a - b).norm()))
    assert result.metric("distance_base_tuned").value == pytest.approx(float((a - b).norm() / a.norm()))
    assert result.metric("distance_base_revived").value == 0


def test_multiples_of_the_change_and_random_ones(result, covered):
    examples = covered.examples("look_a", n=200)
    assert result.metric("start_pt").value == correct_answers(covered.base, examples).mean()
    assert result.metric("tuned_pt").value == correct_answers(covered.tuned, examples).mean()
    random = result.table[result.table["path"] == "random"]
    assert random.groupby("alpha")["draw"].nunique().to_dict() == {1.0: 10, 2.0: 10}
    assert set(random["role"]) == {"pt"}
    assert result.metric("random_pt").value > result.metric("tuned_pt").value
    both = result.metric("both_alpha").value
    (value,) = rows(result.table, line="base to tuned", path="straight", role="pt", alpha=both, measure="accuracy")["value"]
    assert result.metric("both_pt").value == value


def test_start_has_a_line_of_its_own_and_a_control_of_another_shape_none(make_pair, covered, tmp_path):
    save_model(build_model(ModelSpec(blocks=1, heads=2, width=16), 9, 15, 0), tmp_path)
    pair = make_pair(start_path=covered.never_path, never_path=tmp_path)
    found = connectivity(pair, **FEW)
    assert list(dict.fromkeys(found.table["line"])) == ["start to tuned", "base to tuned"]
    beyond = found.table[(found.table["alpha"] > 1) & (found.table["path"] == "straight")]
    assert set(beyond["line"]) == {"start to tuned"}
    assert found.metric("base_pt").value > found.metric("start_pt").value
    assert found.evidence[0].direction == "uninformative"


def test_curves_and_multiples_are_chosen_on_other_texts(covered, task):
    task.drawn.clear()
    connectivity(covered, n=16, steps=1, score_examples=16, control_examples=16, points=5)
    test = {("look_a", "test", 0.0), ("look_b", "test", 1.0)}
    assert task.drawn == test | {("look_a", "score", 0.0), ("look_a", "select", 0.0), ("look_b", "select", 1.0)}


def test_a_compiled_pair(tmp_path):
    found = connectivity(compiled_pair(tmp_path), **FEW)
    assert set(found.table["line"]) == {"base to tuned"}
    assert found.metric("start_pt").value == 1
    assert found.evidence[0].direction == "uninformative"  # nothing was revived


def test_models_of_another_shape_are_refused(make_pair, tmp_path):
    save_model(build_model(ModelSpec(blocks=1, heads=2, width=16), 9, 15, 0), tmp_path)
    with pytest.raises(UserError, match="the models of pair 'planted' differ in shape"):
        connectivity(make_pair(tuned_path=tmp_path), **FEW)


NUMBERS = {"base_pt": 1.0, "tuned_pt": 0.2, "barrier_base_revived_pt": (0.1, 0.0, 0.2)}


@pytest.mark.parametrize(
    ("changes", "direction", "words"),
    [
        (
            {"dip_base_revived_pt": (0.0, 0.0, 0.012)},
            "neutral",
            "0.00 [0.00, 0.01] and its loss rises by 0.10 nats: they are linearly",
        ),
        ({"dip_base_revived_pt": (0.4, 0.3, 0.5)}, "neutral", "they are not linearly connected"),
        ({"dip_base_revived_pt": (0.02, 0.0, 0.05)}, "neutral", "stays open"),
        (
            {"dip_base_revived_pt": (0.4, 0.3, 0.5), "dip_base_revived_bezier_pt": 0.03},
            "neutral",
            "trained curve it dips by 0.03",
        ),
        ({"dip_base_revived_pt": (0.4, 0.3, 0.5), "distance_start_tuned": 0.1}, "neutral", "two pretrainings lie between them"),
        ({"dip_base_revived_pt": (0.0, 0.0, 0.01), "dip_base_never_had_it_pt": 0.4}, "neutral", "of other pretraining: 0.40"),
        ({"dip_base_revived_pt": (0.0, 0.0, 0.01), "tuned_pt": 0.95}, "uninformative", "no loss that could"),
        ({}, "uninformative", "no revived model"),
    ],
)
def test_evidence_takes_no_side(made_up, changes, direction, words):
    (line,) = evidence(made_up("connectivity", **{**NUMBERS, **changes}))
    assert (line.direction, line.capability) == (direction, "count_a")
    assert words in line.text


def test_seeds_pool_and_evidence_follows(result):
    pooled = combine_results([result, replace(result, provenance={**result.provenance, "seed": 4})])
    for name, table in result.tables.items():
        assert len(pooled.tables[name]) == len(table)
    assert evidence(pooled)[0].direction == "neutral"
