"""The three studies of the Hessian [Sagun+17 1706.04454] at sizes of seconds, and their figures; at their own sizes, slowly."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
import torch

import workbench as wb
from workbench.curvature.hessian_width import ZERO, tangent
from workbench.curvature.outliers import FLOOR, GAP
from workbench.curvature.small_problems import problem
from workbench.figures import alt, figure, has_builder

FEW = {"seeds": 2, "rows": 60}
SMALL = {
    "hessian_width": {**FEW, "sources": ["blobs", "digits"], "widths": [4, 8], "classes": 3, "loss": 0.2},
    "hessian_clusters": {**FEW, "sources": ["blobs"], "classes": [2, 3], "width": 8, "steps": 60, "rows": 40},
    "hessian_batch_path": {**FEW, "sources": ["blobs"], "classes": 3, "width": 8, "steps": 150, "small": 8},
}
NAMES = pytest.mark.parametrize("name", SMALL)


@pytest.fixture(scope="module")
def results():
    return {name: getattr(wb.labs, name)(**settings) for name, settings in SMALL.items()}


@NAMES
def test_tables_numbers_and_limits_are_there(results, name):
    result = results[name]
    assert {"value", "low", "high", "n", "seeds"} <= set(result.table)
    assert result.limits
    assert len({m.metric for m in result.headline}) == len(result.headline)
    assert all(m.n > 0 and m.seeds <= 2 for m in result.headline)
    expected = result.tables["expectations"]
    assert set(expected["held"]) <= {"yes", "no", "open"}
    assert set(expected["metric"]) <= {m.metric for m in result.headline}
    assert all(table.notna().any(axis=None) for table in result.tables.values() if len(table))


@NAMES
def test_the_figure_says_what_it_shows_and_leaves_tables_alone(results, name):
    result = results[name]
    assert has_builder(name)
    before = {key: table.copy() for key, table in result.tables.items()}
    fig = figure(result)
    for key, table in result.tables.items():
        pd.testing.assert_frame_equal(table, before[key])
    shown = [t.name for t in fig.data if t.name and t.showlegend is not False]
    assert len(shown) == len(set(shown)) >= 3
    assert not any("_" in entry for entry in shown)
    assert fig.layout.paper_bgcolor == "rgba(0,0,0,0)"
    assert "seeds 0 and 1" in fig.layout.title.subtitle.text
    assert alt(result).endswith(".")
    assert "_" not in alt(result)
    figure(getattr(wb.labs, name)(**{**SMALL[name], "seeds": 1, "sources": ["blobs"]}))  # one seed has no intervals


@NAMES
@pytest.mark.slow
def test_a_lab_repeats_itself(results, name):
    again = getattr(wb.labs, name)(**{**SMALL[name], "sources": SMALL[name]["sources"][:1]})
    source = SMALL[name]["sources"][0]
    first = results[name].table
    pd.testing.assert_frame_equal(again.table, first[first["source"] == source].reset_index(drop=True))


def test_spectra_are_whole_and_counts_are_theirs(results):
    result = results["hessian_width"]
    for run in result.tables["runs"].to_dict("records"):
        spectrum = result.tables["spectrum"].query(
            "source == @run['source'] and width == @run['width'] and seed == @run['seed']"
        )
        values = spectrum["value"].to_numpy()
        assert len(values) == run["parameters"] == run["zero"] + run["nonzero"]
        assert run["zero"] == (np.abs(values) < ZERO * values[0]).sum()
        assert values[:3].tolist() == [run[f"lambda_{i}"] for i in (1, 2, 3)]
        assert run["asymmetry"] < 1e-12
        assert run["loss"] <= 0.2


def test_the_scale_of_gradients_is_that_of_a_loop():
    given = problem("blobs", 3, 6, 0)
    net = given.net(3, 0)
    squares = []
    for value in net(given.inputs).flatten():
        slopes = torch.autograd.grad(value, list(net.parameters()), retain_graph=True)
        squares.append(sum(float(s.square().sum()) for s in slopes))
    assert tangent(given.objective(net), 0, draws=3000) == pytest.approx(np.mean(squares), rel=0.1)


def test_outliers_of_the_clusters_are_counted_from_the_eigenvalues(results):
    result = results["hessian_clusters"]
    for run in result.tables["runs"].to_dict("records"):
        same = "source == @run['source'] and arm == @run['arm'] and k == @run['k'] and seed == @run['seed']"
        values = result.tables["eigenvalues"].query(same)["value"].to_numpy()
        assert (np.diff(values) <= 0).all()
        c = run["outliers"]
        assert c == 0 or values[c - 1] / max(values[c], FLOOR * values[0]) == pytest.approx(run["drop"])
        assert (run["drop"] >= GAP) == (c > 0)
        shares = result.tables["attribution"].query(same)
        assert len(shares) == (c * run["k"] if run["arm"] == "classes" else 0)
    runs = result.tables["runs"].query("arm == 'classes' and outliers > 0")
    assert len(runs)
    assert (runs["overlap_gradients"] > 5 * runs["overlap_random_high"]).all()


@pytest.mark.slow
def test_a_transformer_that_counts_is_one_of_the_nets():
    result = wb.labs.hessian_clusters(sources=["counting"], seeds=1, classes=[2], steps=20, width=12, rows=32)
    runs = result.tables["runs"]
    assert runs["source"].tolist() == ["counting"] * 2
    assert (runs["residual"] < 1e-4).all()
    assert not len(result.tables["expectations"])  # none is held against ordered classes
    figure(result)


def test_barriers_are_those_of_the_drawn_lines(results):
    result = results["hessian_batch_path"]
    for row in result.tables["barriers"].to_dict("records"):
        same = "source == @row['source'] and path == @row['path'] and seed == @row['seed'] and split == @row['split']"
        line = result.tables["along"].query(same).query("measure == 'loss'").sort_values("alpha")
        loss, alpha = line["value"].to_numpy(), line["alpha"].to_numpy()
        assert row["barrier"] == pytest.approx((loss - (1 - alpha) * loss[0] - alpha * loss[-1]).max())
    ends = result.tables["ends"].set_index(["seed", "solution"])
    first = result.tables["along"].query("path == 'direct' and split == 'train' and measure == 'loss' and seed == 0")
    assert first["value"].iloc[0] == pytest.approx(ends.loc[(0, "small"), "loss_train"])
    assert first["value"].iloc[-1] == pytest.approx(ends.loc[(0, "large"), "loss_train"])
    mean = result.tables["barriers"].query("split == 'train'").groupby("path")["barrier"].mean()
    assert mean["other_start"] > 5 * mean["continued"]


def test_a_small_batch_must_be_small():
    with pytest.raises(wb.UserError, match="a small batch of 40 is no small part of all 60 rows; give at most half of them"):
        wb.labs.hessian_batch_path(rows=60, small=40, sources=["blobs"])


@pytest.mark.parametrize(("widths", "own"), [([8, 4], "[8, 4] for blobs"), ([4, 8], "[4, 4] for counting")])
def test_widths_must_increase_for_every_source(widths, own):
    with pytest.raises(wb.UserError, match=re.escape(f"widths {widths} make nets of widths {own}; give increasing ones")):
        wb.labs.hessian_width(widths=widths)


@pytest.mark.slow
def test_outliers_follow_the_classes_of_blobs_and_digits():
    result = wb.labs.hessian_clusters(sources=["blobs", "digits"])
    assert set(result.tables["expectations"]["held"]) <= {"yes", "open"}
    for source in ("blobs", "digits"):
        assert result.metric(f"follows_{source}").value >= 0.8
        assert result.metric(f"follows_{source}_control").value <= 0.5


@pytest.mark.slow
def test_no_barrier_parts_small_and_large_batches():
    result = wb.labs.hessian_batch_path(sources=["blobs", "digits"])
    assert set(result.tables["expectations"]["held"]) == {"yes"}
    for source in ("blobs", "digits"):
        assert result.metric(f"barrier_other_start_{source}").low > 0.2
