"""Learning coefficients of a tiny trained pair: which models have one, which are refused, and what the tables and figure say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from analyses.conftest import LookupTask, _train
from analyses.finished_arm import finished_arm

from workbench.analysis import Result
from workbench.curvature.learning_coefficient import evidence, learning_coefficient
from workbench.curvature.objective import of_model
from workbench.curvature.sgld import ESS, R_HAT, Rise, Sampler, estimate, sample
from workbench.errors import UserError
from workbench.examples import Correlation
from workbench.figures import alt, figure, has_builder
from workbench.figures.theme import GREY
from workbench.models.checkpoints import save_model
from workbench.replicates import combine_results
from workbench.seeds import stream
from workbench.subjects import Pair

SETTINGS = {"n": 64, "batch_size": 32, "chains": 3, "burn": 10, "draws": 32, "eps": (2e-4, 3e-4), "gamma": (4e3,)}

pytestmark = pytest.mark.slow  # its chains alone take a minute; how they sample is tested in test_sgld.py


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The base does all that is asked; the tuned model was trained on look_b alone from the start; revived is the base again."""
    folder, task = tmp_path_factory.mktemp("models"), LookupTask()
    for name, asked in (("base", ["look_a", "look_b"]), ("tuned", ["look_b"])):
        (folder / name).mkdir()
        save_model(_train(task, asked, 0), folder / name)
    return Pair(
        name="tiny",
        seed=0,
        task=task,
        capability="look_a",
        tuned_on="look_b",
        correlation=Correlation("look_b", "look_a", 1, 1.0),
        base_path=folder / "base",
        tuned_path=folder / "tuned",
        never_path=folder / "tuned",
        arms={"revived": finished_arm(folder / "base")},
        n=64,
    )


@pytest.fixture(scope="module")
def result(pair):
    return learning_coefficient(pair, **SETTINGS)


@pytest.fixture(scope="module")
def refused(pair):
    """The control has no look_a: as a base it stands at no minimum of that loss."""
    return learning_coefficient(pair.swapped(), **SETTINGS)


def checks(result, model, role):
    table = result.tables["checks"]
    return table[(table["model"] == model) & (table["role"] == role)].iloc[0]


def test_models_that_have_an_ability_have_a_number_and_others_a_reason(result):
    known = {m.metric for m in result.headline if m.bound == "exact"}
    assert known >= {"llc_base_pt", "llc_revived_pt"}
    for m in result.headline:
        model, _, role = m.metric.removeprefix("llc_").rpartition("_")
        found = checks(result, model, role)
        assert found["passes"] == (m.bound == "exact") == (found["reason"] == "")
        if m.bound == "exact":
            assert m.low < m.value < m.high
            assert np.std(m.draws) > 0
            assert found["r_hat"] < R_HAT
            assert found["effective_draws"] >= ESS
        else:
            assert np.isnan([m.value, m.low, m.high]).all()
    for model, role in (("tuned", "pt"), ("never_had_it", "pt"), ("untrained", "pt"), ("untrained", "ft")):
        assert result.metric(f"llc_{model}_{role}").bound == "undefined"
        assert "no local minimum" in checks(result, model, role)["reason"]


def test_every_model_is_measured_at_the_setting_that_the_base_chose(result, pair):
    sweep = result.tables["sweep"]
    (chosen,) = sweep[sweep["chosen"]].to_dict("records")
    assert (chosen["eps"], chosen["gamma"]) == (sweep[sweep["passes"]]["eps"].min(), 4e3)
    assert result.metric("llc_base_pt").value == chosen["estimate"]
    examples = pair.examples("look_a", share=0.0, n=64)
    rise = Rise(of_model(pair.revived, examples, tokens=32 * examples.tokens.shape[1], dtype=torch.float32))
    assert rise.parts == 2
    s = Sampler(64, chosen["eps"], chosen["gamma"], chains=3, burn=10, draws=32)
    again = estimate(sample(rise, rise.centre, s, stream(0, "learning coefficient", "revived", "pt")))
    found = result.metric("llc_revived_pt")
    assert (found.value, found.low, found.high) == pytest.approx((again.value, again.low, again.high), rel=1e-3)
    assert f"n = 64, n beta = {64 / np.log(64):.4g}, gamma = 4000" in result.limits[0]


def test_losses_are_those_of_the_models(result, pair):
    losses = result.table[result.table["measure"] == "loss"].set_index(["model", "role"])["value"]
    assert len(losses) == 10
    for role, name, share in (("pt", "look_a", 0.0), ("ft", "look_b", 1.0)):
        objective = of_model(pair.tuned, pair.examples(name, share=share, n=64))
        assert losses["tuned", role] == pytest.approx(objective.loss(), rel=1e-4)


def test_traces_are_the_chains_thinned(result):
    traces = result.tables["traces"]
    mine = traces[(traces["model"] == "base") & (traces["role"] == "pt")]
    assert mine.groupby("chain")["draw"].max().tolist() == [42] * 3
    assert mine[mine["kept"]]["draw"].min() == 11
    assert mine[mine["kept"]]["llc"].mean() == pytest.approx(result.metric("llc_base_pt").value)
    fallen = traces[(traces["model"] == "tuned") & (traces["role"] == "pt")]
    assert fallen["draw"].max() < 42  # given up as soon as it was seen
    assert fallen["llc"].iloc[-1] < 0


def test_without_a_setting_there_is_no_number(refused):
    assert {m.bound for m in refused.headline} == {"undefined"}
    assert not refused.tables["sweep"]["passes"].any()
    assert refused.limits[0].startswith("None of 2 settings gives chains that pass the checks")
    assert (refused.tables["checks"]["reason"] == "no setting of the calibration on the base passes its checks").all()
    assert refused.tables["traces"].empty
    (line,) = refused.evidence
    assert line.direction == "uninformative"


def test_evidence_takes_no_side(result):
    (line,) = evidence(result)
    assert (line.direction, line.metric) == ("neutral", "llc_base_pt")
    assert "base on look_a" in line.text


def test_all_data_in_every_step(pair):
    """Halves of the data seen together are the whole; a half alone is not."""
    few = {**SETTINGS, "n": 32, "burn": 0, "draws": 20, "chains": 2}
    found = {
        name: learning_coefficient(pair, **{**few, **how}).tables["sweep"]["estimate"].to_numpy()
        for name, how in {
            "whole": {"batch_size": 32},
            "full": {"batch_size": 16, "full": True},
            "half": {"batch_size": 16},
        }.items()
    }
    np.testing.assert_allclose(found["full"], found["whole"], rtol=1e-2)
    assert not np.allclose(found["half"], found["whole"], rtol=1e-2)


def test_settings_that_do_not_fit(pair):
    with pytest.raises(UserError, match="eps"):
        learning_coefficient(pair, eps=(1e-5,))
    with pytest.raises(UserError, match="two step sizes"):
        learning_coefficient(pair, **{**SETTINGS, "eps": (1e-5, 1e-5)})
    with pytest.raises(UserError, match="gamma"):
        learning_coefficient(pair, **{**SETTINGS, "gamma": (-1.0,)})


def test_results_are_kept(result, refused, tmp_path):
    for name, given in (("whole", result), ("refused", refused)):
        (tmp_path / name).mkdir()
        given.save(tmp_path / name)
        again = Result.load(tmp_path / name)
        assert set(again.tables) == {"table", "checks", "sweep", "traces"}


@pytest.fixture(scope="module")
def drawn(result, refused):
    pooled = combine_results([result, replace(result, provenance={**result.provenance, "seed": 1})])
    return {"whole": result, "refused": refused, "pooled": pooled}


@pytest.mark.parametrize("which", ["whole", "refused", "pooled"])
def test_the_figure(drawn, which):
    given = drawn[which]
    assert has_builder("learning_coefficient")
    before = {key: table.copy() for key, table in given.tables.items()}
    fig = figure(given)
    for key, table in given.tables.items():
        pd.testing.assert_frame_equal(table, before[key])
    points = [t for t in fig.data if t.type == "scatter" and t.mode == "markers"]
    assert {t.marker.color for t in points if t.legendgroup in ("never_had_it", "untrained")} == {GREY}
    drawn_values = sorted(float(y) for t in points for y in t.y if y is not None)
    expected = given.table[(given.table["measure"] == "llc") & given.table["value"].notna()]["value"]
    np.testing.assert_allclose(drawn_values, sorted(expected))
    shown = [t.name for t in points]
    assert len(shown) == len(set(shown)) == 5
    assert not any("_" in name for name in shown)
    assert "untrained (random weights): undefined" in shown
    (heat,) = (t for t in fig.data if t.type == "heatmap")
    assert sum("chosen" in text for row in heat.text for text in row) == (which != "refused")
    assert [s.x1 for s in fig.layout.shapes] == [10, 10]
    assert ("seeds 0 and 1" if which == "pooled" else "seed 0") in fig.layout.title.subtitle.text
    said = alt(given)
    assert said.endswith(".")
    assert "look a" in said
    assert "_" not in said
