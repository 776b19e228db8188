"""Figures of weights and of connectivity, drawn from results of compiled models with and without what is optional."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from analyses.compiled_pair import compiled_pair
from analyses.finished_arm import finished_arm

from workbench.analyses import connectivity, weights
from workbench.figures import alt, figure, has_builder
from workbench.figures.theme import GREY, STYLES
from workbench.replicates import combine_results

NAMES = ("weights", "connectivity")
BOTH = pytest.mark.parametrize("name", NAMES)
ALL = pytest.mark.parametrize("which", ["whole", "bare", "pooled"])


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    bare = compiled_pair(tmp_path_factory.mktemp("models"))
    whole = replace(bare, never_path=bare.tuned_path, arms={"revived": finished_arm(bare.base_path)})
    few = {"n": 32, "control_examples": 16}
    made = {
        ("weights", "whole"): weights(whole, **few),
        ("weights", "bare"): weights(bare, **few),
        ("connectivity", "whole"): connectivity(whole, **few, steps=1, points=5),
        ("connectivity", "bare"): connectivity(bare, **few, points=5),
    }
    for name in NAMES:
        first = made[name, "whole"]
        second = replace(first, provenance={**first.provenance, "seed": 1})
        pooled = combine_results([first, second])
        made[name, "pooled"] = replace(pooled, provenance={**pooled.provenance, "seeds": [0, 1]})
    return made


def named(fig, start):
    return [t for t in fig.data if t.name and t.name.startswith(start)]


@BOTH
@ALL
def test_axes_legend_background_and_words(results, name, which):
    given = results[name, which]
    assert has_builder(name)
    before = {key: table.copy() for key, table in given.tables.items()}
    fig = figure(given)
    for key, table in given.tables.items():
        pd.testing.assert_frame_equal(table, before[key])
    titles = [axis.title.text for axis in (*fig.select_xaxes(), *fig.select_yaxes()) if axis.title.text]
    assert any("accuracy" in title for title in titles)
    assert any("nats" in title or "share of the change's norm" in title for title in titles)
    shown = [t.name for t in fig.data if t.name and t.showlegend is not False]
    assert len(shown) == len(set(shown)) >= 3
    assert not any("_" in entry for entry in shown)
    assert fig.layout.paper_bgcolor == fig.layout.plot_bgcolor == "rgba(0,0,0,0)"
    assert ("seeds 0 and 1" if which == "pooled" else "seed 0") in fig.layout.title.subtitle.text
    said = alt(given)
    assert said.endswith(".")
    assert "_" not in said
    assert "counting a" in said
    assert sum(c.isdigit() for c in said) >= 6


@ALL
def test_spectra_are_means_over_blocks_with_the_random_ones_in_grey_behind(results, which):
    given = results["weights", which]
    fig = figure(given)
    random = named(fig, "random changes of these shapes")
    assert {t.line.color for t in random} == {GREY}
    (line,) = (t for t in named(fig, "queries") if t.type == "scatter")
    assert fig.data.index(random[-1]) < fig.data.index(line)
    rows = given.tables["spectrum"].query("update == 'tuned' and source == 'update' and kind == 'query'")
    np.testing.assert_allclose(line.y, np.maximum(rows.groupby("index")["value"].mean(), 1e-4))


@ALL
def test_bars_of_depth_add_up_to_the_change(results, which):
    fig = figure(results["weights", which])
    bars = [t for t in fig.data if t.type == "bar"]
    assert sum(float(np.sum(t.y)) for t in bars) == pytest.approx(1)
    (expected,) = named(fig, "share of the weights")
    assert float(np.sum(expected.y)) == pytest.approx(1)
    assert expected.x[0] == "embeddings"
    kinds = {t.marker.color for t in bars}
    assert not kinds & {STYLES["pt"].color, STYLES["ft"].color}


def test_ranks_are_drawn_as_measured_and_hovered_as_ranks(results):
    given = results["weights", "whole"]
    fig = figure(given)
    curves = [t for t in named(fig, "counting a") if t.mode == "lines+markers"]
    behaviour = given.tables["behaviour"].query("ranking == 'leading' and role == 'pt'").sort_values("k")
    for trace, direction in zip(curves, ("keep", "remove"), strict=True):
        rows = behaviour[behaviour["direction"] == direction]
        np.testing.assert_allclose(trace.y, rows["value"])
        assert [row[0] for row in trace.customdata] == rows["k"].tolist()
    assert fig.layout.xaxis3.ticktext[-1] == "all"


def test_what_was_undone_is_said_only_where_something_was_revived(results):
    assert "100 % of it taken back" in figure(results["weights", "whole"]).layout.title.subtitle.text
    assert "took a share of 1.00 back" in alt(results["weights", "whole"])
    assert "taken back" not in figure(results["weights", "bare"]).layout.title.subtitle.text
    assert "back" not in alt(results["weights", "bare"])


def test_lines_end_in_the_names_of_models_and_curves_are_dashed(results):
    fig = figure(results["connectivity", "whole"])
    ends = [tuple(axis.ticktext) for axis in fig.select_xaxes(row=1)]
    assert ends == [("base", "fine-<br>tuned"), ("fine-<br>tuned", "revived"), ("base", "revived"), ("base", "never<br>had it")]
    curves = [t for t in fig.data if t.name and t.name.endswith("on a trained curve")]
    assert len(curves) == 4  # two abilities, loss and accuracy
    assert {t.line.dash for t in curves} == {"dash"}
    assert {t.xaxis for t in curves} == {"x3", "x7"}
    straight = [t for t in named(fig, "counting a (") if t.mode == "lines+markers"]
    assert {t.line.dash for t in straight} == {"solid"}
    ranges = {tuple(axis.range) for axis in fig.select_yaxes(row=1)}
    assert len(ranges) == 1  # losses of all lines are compared on one scale
    bare = figure(results["connectivity", "bare"])
    assert not [t for t in bare.data if t.name and "trained curve" in t.name]
    assert len(list(bare.select_xaxes(row=1))) == 1


def test_arithmetic_marks_its_ends_and_draws_what_was_measured(results):
    given = results["connectivity", "whole"]
    fig = figure(given)
    assert {shape.x0 for shape in fig.layout.shapes} == {0.0, 1.0}
    axis = next(fig.select_xaxes(row=3))
    assert {"0: model before", "1: fine-tuned", "-1", "2"} <= set(axis.ticktext)
    last = [t for t in named(fig, "counting a (") if t.mode == "lines+markers"][-1]
    rows = given.table.query(
        "line == 'base to tuned' and path == 'straight' and role == 'pt' and measure == 'accuracy'"
    ).sort_values("alpha")
    np.testing.assert_allclose(last.x, rows["alpha"])
    np.testing.assert_allclose(last.y, rows["value"])
    (random,) = (t for t in named(fig, "random changes of equal length") if t.mode == "lines+markers")
    assert random.line.color == GREY
    assert fig.data.index(random) < fig.data.index(last)


def test_nothing_changed_is_drawn_as_nothing(tmp_path):
    same = weights(compiled_pair(tmp_path, tuned="count_a"), n=16, control_examples=16)
    fig = figure(same)
    assert sum(float(np.nansum(t.y)) for t in fig.data if t.type == "bar") == 0
    assert "0.0" in alt(same)
