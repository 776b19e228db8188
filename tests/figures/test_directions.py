"""Figures of directions and offsets, drawn from results of small models, with and without the optional ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from analyses.compiled_pair import compiled_pair
from figures.checks import check_figure

from workbench.analyses import direction, offset
from workbench.figures import alt, figure, words
from workbench.figures.theme import BLUE, GREY, STYLES, VERMILLION
from workbench.replicates import combine_results

SETTINGS = {"direction": {"n": 16, "score_examples": 32, "control_examples": 16}, "offset": {"n": 40, "gradient_examples": 16}}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    pair = compiled_pair(tmp_path_factory.mktemp("pair"))
    elsewhere = compiled_pair(tmp_path_factory.mktemp("elsewhere"))
    paths = elsewhere.base_path, elsewhere.tuned_path
    full = replace(
        pair,
        never_path=elsewhere.tuned_path,
        siblings={"learned": (pair.base_path, pair.base_path), "compiled, seed 1": paths, "compiled, seed 2": paths},
    )
    vars(full)["revived"] = full.base
    found = {}
    for name, analysis in (("direction", direction), ("offset", offset)):
        found[name, "bare"] = analysis(pair, **SETTINGS[name])
        found[name, "full"] = one = analysis(full, **SETTINGS[name])
        found[name, "pooled"] = combine_results([one, replace(one, provenance={**one.provenance, "seed": 1})])
    return found


BOTH = pytest.mark.parametrize("name", ["direction", "offset"])
KINDS = pytest.mark.parametrize("kind", ["bare", "full", "pooled"])


@BOTH
@KINDS
def test_axes_legend_background_and_words(results, name, kind):
    given = results[name, kind]
    check_figure(name, given, entries=2, titles=3, pooled=kind == "pooled")
    said = alt(given)
    assert sum(c.isdigit() for c in said) >= 6


def curves(fig, axis):
    return {t.name: t for t in fig.data if t.type == "scatter" and t.mode == "lines+markers" and t.xaxis == axis}


def test_curves_are_the_rows_of_our_own_direction_before_grey_random_ones(results):
    given = results["direction", "full"]
    fig, table = figure(given), given.table
    for axis, kinds in (("x", ["subtract", "recentre", "ablate"]), ("x2", ["add"])):
        random, *own = curves(fig, axis).values()
        assert random.line.color == GREY
        assert "10 draws" in random.name
        drawn = table[(table["source"] == "random") & (table["intervention"] == kinds[0])].groupby("point")["value"].mean()
        np.testing.assert_allclose(random.y, drawn)
        assert [t.line.color for t in own] == [STYLES["pt"].color] * len(kinds)
        assert len({(t.line.dash, t.marker.symbol) for t in own}) == len(kinds)
        for trace, kind in zip(own, kinds, strict=True):
            at = (
                (table["source"] == "own")
                & (table["intervention"] == kind)
                & (table["scale"] == 1.0)
                & (table["model"] != "never_had_it")
            )
            np.testing.assert_allclose(trace.y, table[at].sort_values("point")["value"])
    assert list(fig.layout.xaxis.ticktext) == ["embedding", "block 1", "block 2", "block 3"]


def test_bars_name_whose_vector_was_taken_out(results):
    given = results["direction", "full"]
    (bars,) = [t for t in figure(given).data if t.type == "bar"]
    value = dict(zip(bars.y, bars.x, strict=True))
    names = ["random ones (range)", "of another seed, mapped", "of fine-tune learned, same base", "the vector itself, 2 times"]
    assert list(value) == [*names, "the vector itself", "the vector itself, 0.5 times"]
    transfer = given.tables["transfer"]
    assert value["the vector itself"] == transfer[(transfer["source"] == "own") & (transfer["scale"] == 1.0)]["value"].iloc[0]
    assert value["random ones (range)"] == pytest.approx(transfer[transfer["source"] == "random"]["value"].mean())
    bare = next(t for t in figure(results["direction", "bare"]).data if t.type == "bar")
    assert set(names[1:3]).isdisjoint(bare.y)
    levels = {(shape.x0, shape.line.color) for shape in figure(given).layout.shapes if shape.x0 == shape.x1}
    assert levels >= {(given.metric("base_pt").value, BLUE), (given.metric("tuned_pt").value, VERMILLION)}


def test_cosines_by_partner_over_a_band_of_random_ones(results):
    given = results["direction", "full"]
    fig, table = figure(given), given.tables["directions"]
    found = curves(fig, "x4")
    assert set(found) == {
        "of the revival",
        "of fine-tune learned, same base",
        "of another seed, mapped",
        "of another seed, not mapped",
        *(
            f"{model}, in place of {what}"
            for model in ("never had it", "untrained")
            for what in ("the revived", "that fine-tune")
        ),
    }
    floors = [trace for name, trace in found.items() if "in place of" in name]
    assert {trace.line.color for trace in floors} == {GREY}
    mine = table[(table["measure"] == "cosine") & (table["with"] == "for the revived: untrained")]
    np.testing.assert_allclose(found["untrained, in place of the revived"].y, mine["value"])
    said = alt(given)
    assert "With a model that never had it in place of the revived one it is" in said
    assert f"in its place {words.interval(given.metric('undone_by_never'))}" in said
    mine = table[(table["measure"] == "cosine") & (table["with"] == "another seed")]
    np.testing.assert_allclose(found["of another seed, mapped"].y, mine.groupby("point")["value"].mean())
    expected = table[table["with"] == "random, 95 %"]["value"].iloc[0]
    assert any((s.y0, s.y1) == (-expected, expected) for s in fig.layout.shapes)


def test_maps_hold_the_table_and_separations_share_their_scale(results):
    given = results["offset", "full"]
    fig, table = figure(given), given.table
    heats = [t for t in fig.data if t.type == "heatmap"]
    wanted = [("tuned", "relative norm"), ("tuned", "constant share"), ("base", "separation"), ("tuned", "separation")]
    for trace, (model, measure) in zip(heats, wanted, strict=True):
        mine = table[(table["model"] == model) & (table["measure"] == measure)]
        np.testing.assert_allclose(trace.z, mine.pivot_table(index="point", columns="order", values="value", dropna=False))
    assert [t.coloraxis for t in heats] == ["coloraxis", "coloraxis2", "coloraxis3", "coloraxis3"]
    assert (fig.layout.coloraxis2.cmin, fig.layout.coloraxis2.cmax) == (0, 1)
    assert "answer" in fig.layout.xaxis.ticktext


def test_lines_of_cosines_and_points_of_sensitivity(results):
    given = results["offset", "full"]
    fig, mlp = figure(given), given.tables["mlp"]
    lines = curves(fig, "x5")
    mine = mlp[(mlp["model"] == "tuned") & (mlp["vector"] == "value") & (mlp["measure"] == "mean")]
    np.testing.assert_allclose(lines["fine-tuned: value vectors"].y, mine["value"])
    assert {t.line.color for t in lines.values()} == {STYLES[m].color for m in ("tuned", "revived", "never_had_it")}
    points = {t.name: t for t in fig.data if t.type == "scatter" and t.xaxis == "x6"}
    assert list(points) == ["base model", "fine-tuned model", "revived", "never had it"]
    lipschitz = given.tables["lipschitz"]
    np.testing.assert_allclose(points["base model"].y, lipschitz[lipschitz["model"] == "base"]["value"])
