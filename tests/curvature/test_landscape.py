"""The landscape of a small model whose fine-tuning and revival kept their checkpoints, and of pairs in which things are missing."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from analyses.compiled_pair import compiled_pair
from analyses.conftest import LookupTask
from analyses.finished_arm import finished_arm
from curvature.landscape_pair import STEPS, trained_pair

from workbench.curvature._way import plane_of, stops_of
from workbench.curvature.landscape import RISE_AT, _rise_draws, evidence, landscape
from workbench.curvature.slices import filters, random_direction
from workbench.errors import UserError
from workbench.figures import alt, figure, has_builder
from workbench.figures.theme import STYLES
from workbench.measures import correct_answers
from workbench.models.build import build_model
from workbench.models.checkpoints import load_model, save_model
from workbench.models.fingerprint import weights_sha256
from workbench.models.forward import evaluate, nll
from workbench.models.spec import ModelSpec
from workbench.replicates import combine_results

FEW = {"n": 32, "grid": 5, "directions": 2, "side": 2, "checkpoints": 4}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    never = build_model(ModelSpec(kind="gpt2", blocks=1, heads=2, width=16), 9, 15, 1)
    return trained_pair(LookupTask(), tmp_path_factory.mktemp("pair"), never=never)


@pytest.fixture(scope="module")
def result(pair):
    return landscape(pair, **FEW)


@pytest.fixture(scope="module")
def alone(pair, tmp_path_factory):
    """Neither checkpoints nor a revival, and a control of another shape."""
    folder = tmp_path_factory.mktemp("small")
    save_model(build_model(ModelSpec(blocks=1, heads=2, width=8), 9, 15, 0), folder)
    return landscape(replace(pair, trajectory=None, arms={}, never_path=folder), **FEW)


def flat(model):
    return torch.cat([p.detach().double().reshape(-1) for p in model.parameters()])


def rows(table, **at):
    for name, value in at.items():
        table = table[table[name] == value]
    return table


def loss_at(pair, vector, examples):
    """Of a naive twin."""
    model, start = copy.deepcopy(pair.base), 0
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(vector[start : start + p.numel()].reshape(p.shape))
            start += p.numel()
    return float(evaluate(model, examples, nll).double().mean())


def test_the_path_is_what_was_measured_at_the_checkpoints(result, pair):
    path = rows(result.tables["path"], role="pt")
    grid = [0, 5, 10, STEPS]
    assert set(path["training"]) == {"finetune", "revived"}
    steps = rows(path, training="finetune")["step"].tolist()
    assert (steps[0], steps[-1], len(steps)) == (0, STEPS, len(grid))
    assert 0 not in rows(path, training="revived")["step"].tolist()  # it is the tuned model
    assert path["model"].tolist() == ["base", "", "", "tuned", "", "", "revived"]
    examples = {"pt": pair.examples("look_a", n=32), "ft": pair.examples("look_b", share=1.0, n=32)}
    trainings = {"finetune": pair.trajectory, "revived": pair.arms["revived"]}
    for row in result.tables["path"].itertuples():
        model = load_model(trainings[row.training].run.checkpoint(row.step).path)
        assert row.loss_nats == pytest.approx(float(evaluate(model, examples[row.role], nll).double().mean()), rel=1e-6)
        assert row.accuracy == correct_answers(model, examples[row.role]).mean()
        assert row.n == 32


def test_coordinates_are_distances_in_units_of_the_way_from_base_to_tuned(result, pair):
    path = rows(result.tables["path"], role="pt")
    base, tuned, revived = (flat(m) for m in pair.states.values())
    unit = (tuned - base).norm()
    for name, vector in (("base", base), ("tuned", tuned), ("revived", revived)):
        row = rows(path, model=name).iloc[0]
        far = float((vector - revived).norm() / unit)
        assert np.sqrt(row.x**2 + row.y**2 + row.distance**2) == pytest.approx(far, abs=1e-9)
        assert row.outside == pytest.approx((row.distance / far) ** 2 if far else 0)
    last = path.iloc[-1]
    assert (last.x, last.y, last.distance) == (0, 0, 0)
    assert last.loss_nats == pytest.approx(last.on_plane_nats, rel=1e-6)
    off = path[path["distance"] > 0.05]
    assert (off["loss_nats"] != off["on_plane_nats"]).all()
    assert result.metric("off_plane").value == path["distance"].max()
    assert result.metric("outside").value == path[path["model"] != ""]["outside"].max()


def test_shares_of_components_are_numpys_and_the_walk_is_beside_them(result, pair):
    vectors = []
    for row in rows(result.tables["path"], role="pt").itertuples():
        training = pair.trajectory if row.training == "finetune" else pair.arms["revived"]
        vectors.append(flat(load_model(training.run.checkpoint(row.step).path)).numpy())
    singular = np.linalg.svd(np.array(vectors) - vectors[-1], compute_uv=False) ** 2
    components = result.tables["components"]
    np.testing.assert_allclose(rows(components, source="path")["value"], singular[:-1] / singular.sum(), atol=1e-9)
    assert result.metric("explained").value == pytest.approx(singular[:2].sum() / singular.sum())
    walk = rows(components, source="random walk")["value"]
    assert result.metric("explained_walk").value == pytest.approx(walk.iloc[:2].sum())
    assert 0.5 < result.metric("explained_walk").value < result.metric("explained").value


def test_through_the_models_the_plane_shows_them_whole_and_its_grid_is_the_loss_there(pair):
    found = landscape(pair, **FEW, plane="models")
    path, grid = found.tables["path"], found.table
    base, tuned, revived = (flat(m) for m in pair.states.values())
    named = rows(path, role="pt").set_index("model")
    assert (named.loc["base", "x"], named.loc["base", "y"]) == (0, 0)
    assert (named.loc["tuned", "x"], named.loc["tuned", "y"]) == (pytest.approx(1), pytest.approx(0, abs=1e-9))
    assert named.loc["revived", "y"] > 0.05
    assert found.metric("outside").value < 1e-12
    for row in path[path["model"] != ""].itertuples():
        assert row.loss_nats == pytest.approx(row.on_plane_nats, rel=1e-5)
    assert "components" not in found.tables
    assert set(grid["plane"]) == {"models"}
    unit = (tuned - base).norm()
    a = (tuned - base) / unit
    b = (revived - base) - a * (a @ (revived - base))
    b = b / b.norm()
    examples = pair.examples("look_a", n=32)
    for row in rows(grid, role="pt", measure="loss").iloc[[0, 7, 12, 24]].itertuples():
        assert row.value == pytest.approx(loss_at(pair, base + unit * (row.x * a + row.y * b), examples), rel=1e-4)
        assert row.low <= row.value <= row.high
    for side in ("x", "y"):
        assert grid[side].min() < path[side].min()
        assert grid[side].max() > path[side].max()
        assert grid[side].nunique() == 5
    assert grid["x"].max() - grid["x"].min() == pytest.approx(grid["y"].max() - grid["y"].min())


def test_lines_meet_in_the_model_and_the_rise_is_the_mean_of_both_signs_over_directions(result, pair):
    line = rows(result.tables["line"], measure="loss")
    assert set(line["model"]) == {"base", "tuned", "revived", "never_had_it", "untrained"}
    assert sorted(set(line["alpha"])) == [-1, -0.5, 0, 0.5, 1]
    examples = pair.examples("look_a", n=32)
    models = {**pair.states, "never_had_it": pair.never_had_it, "untrained": pair.untrained}
    for name, model in models.items():
        mine = rows(line, model=name, role="pt")
        centre = rows(mine, alpha=0)["value"]
        assert centre.nunique() == 1
        assert centre.iloc[0] == pytest.approx(float(evaluate(model, examples, nll).double().mean()), rel=1e-6)
        rise = mine[mine["alpha"].abs() == RISE_AT]["value"].mean() - centre.iloc[0]
        found = result.metric(f"rise_{name}_pt")
        assert found.value == pytest.approx(rise, abs=1e-9)
        assert found.low < found.value < found.high
        assert (found.n, len(found.draws)) == (32, 400)
    change = result.metric("rise_change_pt")
    tuned, base = (result.metric(f"rise_{name}_pt") for name in ("tuned", "base"))
    assert change.value == pytest.approx(tuned.value - base.value)
    np.testing.assert_allclose(change.draws, np.subtract(tuned.draws, base.draws), atol=2e-6)
    ends = rows(line, model="revived", role="pt", alpha=1.0)["value"]
    assert ends.nunique() == 2  # two directions


def test_intervals_of_a_rise_know_that_directions_are_a_sample_as_examples_are():
    rng = np.random.default_rng(0)
    directions = np.repeat(rng.normal(size=(40, 1)), 50, axis=1)
    examples = np.repeat(rng.normal(size=(1, 50)), 40, axis=0)
    for values, count in ((directions, 40), (examples, 50)):
        draws = _rise_draws(values, 1, 2)
        assert np.std(draws) == pytest.approx(np.std(values) / np.sqrt(count), rel=0.15)
        np.testing.assert_array_equal(draws, _rise_draws(values, 1, 2))
    both = np.std(_rise_draws(directions + examples, 1, 2))
    assert both == pytest.approx(np.hypot(np.std(directions) / 40**0.5, np.std(examples) / 50**0.5), rel=0.15)


@pytest.mark.parametrize("wanted", ["auto", "path", "models"])
def test_missing_checkpoints_are_said_and_the_plane_falls_back(pair, wanted):
    bare = replace(pair, trajectory=None, arms={"revived": finished_arm(pair.arms["revived"].run.checkpoint().path)})
    stops, limits = stops_of(bare, 4)
    assert [stop.model for stop in stops] == ["base", "tuned", "revived"]
    assert [limit.split(" were kept")[0] for limit in limits] == [
        "No checkpoints of fine-tuning",
        "No checkpoints of the revival",
    ]
    kind, plane, components, more = plane_of(bare, stops, wanted, "zero")
    assert (kind, components) == ("models", None)
    assert ["0 checkpoints were kept, and a plane of their own needs 3" in limit for limit in more] == [True] * (
        wanted != "models"
    )
    assert max(plane.place(stop.vector).outside for stop in stops) < 1e-12


def test_a_path_on_a_line_falls_back_too(pair):
    stops, _ = stops_of(pair, 4)
    base, tuned = (flat(m) for m in (pair.base, pair.tuned))
    straight = [replace(stop, vector=base + i / 7 * (tuned - base)) for i, stop in enumerate(stops)]
    kind, _, _, limits = plane_of(pair, straight, "path", "zero")
    assert kind == "models"
    assert "the 7 points of the path lie on one line" in limits[0]


def test_where_nothing_was_revived_a_random_direction_stands_in(alone, pair):
    assert any("no third model off the line from base to tuned, one of the plane's" in limit for limit in alone.limits)
    assert rows(alone.tables["path"], role="pt")["x"].tolist() == [0, pytest.approx(1)]
    assert not any("never" in m.metric or "revived" in m.metric for m in alone.headline)  # one of another shape is no control
    same = replace(pair, trajectory=None, arms={}, tuned_path=pair.base_path)
    _, plane, _, limits = plane_of(same, stops_of(same, 4)[0], "models", "zero")
    assert "the tuned model is the base, both of the plane's directions are random" in limits[0]
    assert plane.unit == pytest.approx(float(random_direction(flat(pair.base), filters(pair.base), 3, "plane", 1).norm()))


def test_models_of_another_shape_are_refused(pair, tmp_path):
    save_model(build_model(ModelSpec(blocks=1, heads=2, width=8), 9, 15, 0), tmp_path)
    with pytest.raises(UserError, match="the models of pair 'trained' differ in shape"):
        landscape(replace(pair, tuned_path=tmp_path), **FEW)


@pytest.mark.slow
def test_compiled_models_have_a_landscape(tmp_path):
    bare = compiled_pair(tmp_path)
    found = landscape(replace(bare, never_path=bare.tuned_path), **FEW)
    assert found.metric("rise_base_pt").value > 0
    assert found.metric("rise_tuned_pt").value == found.metric("rise_never_had_it_pt").value
    assert np.isfinite(found.table["value"]).all()


def test_evidence_takes_no_side_and_the_models_stay_as_they_are(result, pair):
    (line,) = result.evidence
    assert (line.direction, line.capability, line.metric) == ("neutral", "look_a", "rise_change_pt")
    assert "revived" in line.text
    assert "a random walk of such steps" in line.text
    assert evidence(result) == (line,)
    assert result.provenance["tuned_sha256"] == weights_sha256(load_model(pair.tuned_path))
    assert any("Filter normalisation" in limit for limit in result.limits)


def pooled_of(result):
    second = replace(result, provenance={**result.provenance, "seed": 4})
    return combine_results([result, second])


@pytest.mark.parametrize("which", ["one", "pooled"])
def test_the_figure_draws_the_grid_the_way_and_the_lines(result, which):
    given = result if which == "one" else pooled_of(result)
    assert has_builder("landscape")
    before = {key: table.copy() for key, table in given.tables.items()}
    fig = figure(given)
    for key, table in given.tables.items():
        pd.testing.assert_frame_equal(table, before[key])
    contours = [t for t in fig.data if t.type == "contour"]
    grid = rows(result.table, measure="loss")
    for contour, role in zip(contours, ("pt", "ft"), strict=True):
        loss = rows(grid, role=role)
        expected = np.log10(np.maximum(loss["value"].to_numpy().reshape(5, 5), 1e-3))
        np.testing.assert_allclose(contour.z, expected)
        np.testing.assert_allclose(contour.y, sorted(set(loss["y"])))
    axis = fig.layout.coloraxis
    assert "nats" in axis.colorbar.title.text
    for place, words in zip(axis.colorbar.tickvals, axis.colorbar.ticktext, strict=True):
        assert 10**place == pytest.approx(float(words))
    for role, axes in (("pt", "x"), ("ft", "x2")):
        path = rows(result.tables["path"], role=role)
        for name in ("base", "tuned", "revived"):
            (mark,) = (
                t
                for t in fig.data
                if t.type == "scatter" and t.mode == "markers" and t.xaxis == axes and t.marker.color == STYLES[name].color
            )
            row = rows(path, model=name).iloc[0]
            assert (mark.x[0], mark.y[0]) == (row.x, row.y)
        (way,) = (t for t in fig.data if t.name == "way of the revival" and t.xaxis == axes)
        revived = rows(path, training="revived")
        np.testing.assert_allclose(way.x, [rows(path, model="tuned")["x"].iloc[0], *revived["x"]])
    (mean,) = (t for t in fig.data if t.name and t.name.startswith("revived (mean") and t.xaxis == "x3" and t.fill is None)
    line = rows(result.tables["line"], model="revived", role="pt", measure="loss")
    np.testing.assert_allclose(mean.y, line.groupby("alpha")["value"].mean())
    shown = [t.name for t in fig.data if t.name and t.showlegend is not False]
    assert len(shown) == len(set(shown)) == 10
    assert not any("_" in entry for entry in shown)
    assert fig.layout.paper_bgcolor == fig.layout.plot_bgcolor == "rgba(0,0,0,0)"
    subtitle = fig.layout.title.subtitle.text
    assert (
        "seeds 3 and 4; 95 % intervals; the plane is that of seed 3" if which == "pooled" else "32 texts, seed 3"
    ) in subtitle
    said = alt(given)
    assert said.endswith(".")
    assert "look a" in said
    assert "random walk" in said
    assert "_" not in said


def test_the_figure_of_a_bare_pair_says_what_its_plane_does_not_show(alone):
    fig = figure(alone)
    assert not [t for t in fig.data if t.name and t.name.startswith("way of")]
    assert fig.layout.xaxis.title.text.startswith("base to fine-tuned")
    assert "of a model's squared distance lies outside the plane" in alt(alone)
