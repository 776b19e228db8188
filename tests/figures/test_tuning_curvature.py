"""The figure of curvature and fine-tuning, drawn from results with and without what is optional."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from analyses.compiled_pair import compiled_pair
from analyses.finished_arm import finished_arm
from figures.checks import check_figure

from workbench.curvature.tuning_curvature import tuning_curvature
from workbench.figures import alt, figure
from workbench.figures.theme import GREY, STYLES
from workbench.replicates import combine_results

FEW = {"n": 16, "resamples": 2, "k": 2, "probes": 1, "random_draws": 1, "block_steps": 4}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    pair = compiled_pair(tmp_path_factory.mktemp("pair"))
    bare = tuning_curvature(pair, **FEW, block_probes=0)
    whole = tuning_curvature(replace(pair, never_path=pair.tuned_path, arms={"revived": finished_arm(pair.base_path)}), **FEW)
    same = {"batch": 8, "sets": 1, "n": 8, "draw": 0, "capability": "count_a", "unit": "nats per squared weight", "residual": 0}
    path = [
        {"training": training, "step": step, "role": role, "measure": "sharpness", "value": v, "low": v, "high": v, **same}
        for training, steps in (("finetune", (0, 5, 20)), ("revived", (0, 20)), ("never_had_it", (0, 20)), ("random", (20,)))
        for step in steps
        for role in ("pt", "ft")
        for v in (1.5 + step,)
    ]
    whole = replace(whole, tables={**whole.tables, "path": pd.DataFrame(path)})
    pooled = combine_results([whole, replace(whole, provenance={**whole.provenance, "seed": 1})])
    pooled = replace(pooled, provenance={**pooled.provenance, "seeds": [0, 1]})
    return {"bare": bare, "whole": whole, "pooled": pooled}


@pytest.mark.parametrize("kind", ["bare", "whole", "pooled"])
def test_axes_legend_background_and_words(results, kind):
    fig = check_figure("tuning_curvature", results[kind], entries=4, titles=5, pooled=kind == "pooled")
    assert len([t for t in fig.data if t.type == "heatmap"]) == (0 if kind == "bare" else 2)
    assert "mean loss of 8 texts" in fig.layout.title.subtitle.text


def test_the_way_of_sharpness_is_drawn_as_measured_with_controls_grey_and_behind(results):
    fig = figure(results["whole"])
    drawn = [t for t in fig.data if t.xaxis == "x"]
    assert [t.line.color for t in drawn] == [GREY, GREY, STYLES["tuned"].color, STYLES["revived"].color]
    np.testing.assert_allclose(drawn[2].y, [1.5, 6.5, 21.5])
    assert fig.layout.yaxis.type == "log"
    assert any("no checkpoints were kept" in a.text for a in figure(results["bare"]).layout.annotations)


def test_overlaps_and_shares_stand_beside_their_controls_and_chance(results):
    given = results["whole"]
    fig = figure(given)
    overlaps = [t for t in fig.data if t.xaxis == "x3"]
    expected = given.tables["overlaps"].query("a == 'base' and b == 'tuned' and role == 'pt' and measure == 'overlap'")["value"]
    (pt,) = (t for t in overlaps if t.marker.color == STYLES["pt"].color and t.x[0] == -0.12)
    np.testing.assert_allclose(pt.y, expected)
    grey = [i for i, t in enumerate(overlaps) if t.marker.color == GREY]
    assert max(grey) < min(i for i in range(len(overlaps)) if i not in grey)
    shares = [t for t in fig.data if t.xaxis == "x4"]
    assert {t.name for t in shares if t.marker.color == GREY} == {"random steps of equal length"}
    lines = {round(s.y0, 9) for s in fig.layout.shapes}
    chances = [given.tables["overlaps"].query("measure == 'random'"), given.tables["directions"].query("measure == 'chance'")]
    assert lines == {round(float(c["value"].iloc[0]), 9) for c in chances}


def test_maps_are_on_one_scale(results):
    fig = figure(results["whole"])
    base, tuned = (t for t in fig.data if t.type == "heatmap")
    assert base.z.shape == tuned.z.shape
    assert base.coloraxis == tuned.coloraxis == "coloraxis"
    assert np.nanmax([base.z, tuned.z]) <= fig.layout.coloraxis.cmax <= 1
    assert np.nanmax(np.abs(np.diag(base.z))) == 0


def test_alt_says_what_the_numbers_are(results):
    said = alt(results["whole"])
    assert "sharpness" in said
    assert "other examples" in said
    assert "nats apart" in said
    assert "nats apart" not in alt(results["bare"])
    assert "_" not in said
