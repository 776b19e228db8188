"""Figures of attention and activation maps, drawn from results of small models."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from analyses.compiled_pair import compiled_pair

from workbench.analyses import activation_maps, attention_maps
from workbench.figures import alt, figure, has_builder
from workbench.figures.maps import CHANGE, ceiling, color_axes, name_axis
from workbench.figures.theme import STYLES
from workbench.replicates import combine_results


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    short = compiled_pair(tmp_path_factory.mktemp("short"))
    long = compiled_pair(tmp_path_factory.mktemp("long"), length=24, letters=4)
    return {
        (name, size): analysis(pair, n=40)
        for name, analysis in (("attention_maps", attention_maps), ("activation_maps", activation_maps))
        for size, pair in (("short", short), ("long", long))
    }


BOTH = pytest.mark.parametrize("name", ["attention_maps", "activation_maps"])
SIZES = pytest.mark.parametrize("size", ["short", "long"])


def heats(fig):
    return [trace for trace in fig.data if trace.type == "heatmap"]


@BOTH
@SIZES
def test_a_figure_has_locked_scales_axes_in_words_and_leaves_its_tables(results, name, size):
    given = results[name, size]
    before = {key: table.copy() for key, table in given.tables.items()}
    fig = figure(given)
    for key, table in given.tables.items():
        pd.testing.assert_frame_equal(table, before[key])
    assert {trace.coloraxis for trace in heats(fig)} == {"coloraxis", "coloraxis2"}
    low, high = fig.layout.coloraxis2.cmin, fig.layout.coloraxis2.cmax
    assert low == -high
    assert fig.layout.coloraxis2.colorscale[1][1].endswith(",0)")  # no difference is the page itself
    assert fig.layout.coloraxis.cmin == 0
    shown = [t.name for t in fig.data if t.name and t.showlegend is not False]
    assert len(shown) == len(set(shown)) >= 2
    assert not any("_" in entry for entry in shown)
    titles = [axis.title.text for axis in (*fig.select_xaxes(), *fig.select_yaxes()) if axis.title.text]
    assert any("attention mass" in title or "activation" in title for title in titles)
    assert "seed 0" in fig.layout.title.subtitle.text
    assert has_builder(name)


def test_attention_maps_draw_base_tuned_and_their_difference(results):
    given = results["attention_maps", "short"]
    fig = figure(given)
    found = heats(fig)
    assert len(found) == 9  # three blocks
    maps = given.tables["maps"]
    for row in range(3):
        base, tuned, change = (np.asarray(trace.z) for trace in found[3 * row : 3 * row + 3])
        rows = maps[(maps["model"] == "tuned") & (maps["block"] == row) & (maps["text"] == 0)]
        assert np.allclose(tuned[rows["query"], rows["key"]], rows["attention"])
        assert np.allclose(change, tuned - base)
        assert found[3 * row + 2].coloraxis == "coloraxis2"


def test_what_an_ability_is_about_is_marked_and_short_texts_are_named(results):
    for size, named in (("short", 9), ("long", 0)):
        given = results["attention_maps", size]
        fig = figure(given)
        texts = given.tables["texts"]
        about = texts[(texts["text"] == 0) & (texts["about"] == "pt")]["position"].tolist()
        marks = [t for t in fig.data if t.name == "operand of counting a"]
        assert len(marks) == 9
        assert list(marks[0].x) == about
        assert marks[0].marker.color == STYLES["pt"].color
        assert len(fig.layout.xaxis.tickvals) == named


def test_uniform_attention_is_the_grey_control_and_lies_behind(results):
    given = results["attention_maps", "short"]
    fig = figure(given)
    names = [t.name for t in fig.data]
    uniform = fig.data[names.index("if all positions were attended alike")]
    assert names.index("if all positions were attended alike") < names.index("base model")
    classes = given.tables["classes"].set_index(["kind", "class"])["value"]
    assert uniform.y[0] == pytest.approx(classes["role", "operand"] / 9)
    tuned = fig.data[names.index("fine-tuned model")]
    rows = given.table.query("model == 'tuned' and block == 1 and kind == 'role' and `class` == 'operand'")
    assert tuned.y[0] == rows["value"].iloc[0]


def test_activation_maps_name_channels_and_leave_empty_ones_out(results):
    fig = figure(results["activation_maps", "short"])
    base, tuned, change = (np.asarray(trace.z) for trace in heats(fig))
    assert base.shape == (9, 3)  # one neuron per letter
    assert np.allclose(change, tuned - base)
    assert "tokens:a → is_a:1" in fig.layout.xaxis3.ticktext
    assert "3 of 17 channels" in fig.layout.annotations[0].text
    points = [t for t in fig.data if t.type == "scatter"]
    assert [t.name for t in points] == ["base model", "fine-tuned model"]
    assert any("block 2: width ≥" in label for label in points[0].y)


@BOTH
def test_alt_says_numbers(results, name):
    said = alt(results[name, "short"])
    assert said.endswith(".")
    assert "counting a" in said
    assert "_a " not in said.replace("is_a", "")
    assert sum(c.isdigit() for c in said) >= 4


@BOTH
def test_pooled_results_show_one_text_and_all_seeds(results, name):
    first = results[name, "short"]
    second = results[name, "short"]
    provenance = {**first.provenance, "seed": 1}
    pooled = combine_results([first, type(first)(**{**second.__dict__, "provenance": provenance})])
    pooled = type(first)(**{**pooled.__dict__, "provenance": {**pooled.provenance, "seeds": [0, 1]}})
    fig = figure(pooled)
    assert np.allclose(np.asarray(heats(fig)[0].z), np.asarray(heats(figure(first))[0].z))
    assert "seeds 0 and 1" in fig.layout.title.subtitle.text


@pytest.mark.parametrize(("largest", "top"), [(0.0, 1.0), (0.04, 0.05), (1.0, 1.0), (1.1, 2.0), (73.0, 100.0), (-0.3, 0.5)])
def test_scales_end_at_round_numbers(largest, top):
    assert ceiling(np.array([0.0, largest])) == pytest.approx(top)


def test_the_difference_is_symmetric_about_a_neutral_zero():
    axes = color_axes(1.0, 0.2, "attention", 800)
    assert (axes["coloraxis2"]["cmin"], axes["coloraxis2"]["cmax"]) == (-0.2, 0.2)
    assert CHANGE[1][0] == 0.5


def test_too_many_names_leave_ticks_out():
    assert name_axis(["a"] * 30)["ticktext"] == []
    assert name_axis(["a", "b"], [1])["ticktext"] == ["b"]


def test_attention_maps_draw_the_revived_model_and_the_head_that_was_named(results):
    given = results["attention_maps", "short"]
    maps, table = given.tables["maps"], given.table
    copied = {
        "maps": pd.concat([maps, maps[maps["model"] == "base"].assign(model="revived")]),
        "table": pd.concat([table, table[table["model"] == "base"].assign(model="revived")]),
    }
    revived = type(given)(**{**given.__dict__, "tables": {**given.tables, **copied}, "settings": {"head": 0, "block": 2}})
    fig = figure(revived)
    assert len(heats(fig)) == 3 * 4
    assert [t.coloraxis for t in heats(fig)[:4]] == ["coloraxis"] * 3 + ["coloraxis2"]
    assert "from the read position, block 3, head 1" in [a.text for a in fig.layout.annotations]
    assert "revived model" in [t.name for t in fig.data]
    assert "block 3, head 1" in alt(revived)
