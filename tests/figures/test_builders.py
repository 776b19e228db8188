from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from workbench.figures import alt, figure, has_builder, words
from workbench.figures.marks import place, step_axis
from workbench.figures.theme import GREY, STYLES
from workbench.registry import analyses
from workbench.results import Metric, Result

NAMES = ("behaviour", "pruning", "probing", "revival")


def lines(fig, name):
    return [t for t in fig.data if t.name and t.name.startswith(name)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [None, 0])
def test_every_figure_has_axes_with_units_a_legend_in_words_and_a_clear_background(result, name, seed):
    fig = figure(result(name, seed=seed))
    body = fig.to_plotly_json()["layout"]
    titles = [
        v["title"]["text"] for k, v in body.items() if k.startswith(("xaxis", "yaxis")) and v.get("title", {}).get("text")
    ]
    assert len(titles) >= 2
    assert any("share of" in title for title in titles)
    shown = [t.name for t in fig.data if t.showlegend is not False]
    assert len(shown) == len(set(shown)) >= 3
    assert not any("_" in entry or "O_" in entry for entry in shown)
    assert fig.layout.paper_bgcolor == fig.layout.plot_bgcolor == "rgba(0,0,0,0)"
    assert fig.layout.uirevision == "workbench"
    assert fig.layout.font.color is None  # text takes the colour of the page's template
    assert "seed" in fig.layout.title.subtitle.text


@pytest.mark.parametrize("name", NAMES)
def test_figures_do_not_change_the_tables(result, name):
    given = result(name)
    before = {key: table.copy() for key, table in given.tables.items()}
    figure(given)
    for key, table in given.tables.items():
        pd.testing.assert_frame_equal(table, before[key])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pair", ["wrapped", "learned"])
def test_alt_is_one_sentence_with_numbers(result, name, pair):
    said = alt(result(name, pair))
    assert said.endswith(".")
    assert "\n" not in said
    assert "counting a" in said
    assert sum(c.isdigit() for c in said) >= 4


def test_every_registered_analysis_has_a_figure():
    assert [name for name in NAMES if not has_builder(name)] == []
    assert set(NAMES) <= set(analyses.names())


def test_behaviour_draws_the_table_it_was_given(result):
    given = result("behaviour")
    fig = figure(given)
    first, second = lines(fig, "counting a (pretraining ability)")
    for trace, share in ((first, 0.0), (second, 1.0)):
        rows = given.table[(given.table["role"] == "pt") & (given.table["share"] == share)].sort_values("step")
        np.testing.assert_allclose(trace.y, rows["value"])
        np.testing.assert_allclose(trace.x, np.log10(1 + rows["step"]))
    assert first.line.color == STYLES["pt"].color
    assert any(annotation.text == "best guess: 0.32" for annotation in fig.layout.annotations)
    levels = [shape for shape in fig.layout.shapes if shape.y0 == pytest.approx(0.32)]
    assert levels
    assert all(shape.layer == "below" for shape in levels)


def test_behaviour_without_a_trajectory_shows_before_and_after(result):
    given = result("behaviour")
    fig = figure(replace(given, tables={**given.tables, "table": given.table.iloc[:0]}))
    trace = lines(fig, "counting a (pretraining ability)")[0]
    assert list(trace.y) == pytest.approx([0.99, 0.11], abs=0.011)
    assert list(fig.layout.xaxis.ticktext) == ["before", "after"]


def test_behaviour_on_plain_texts_has_one_panel(result):
    given = result("behaviour")
    tables = {k: t.assign(share=math.nan) if "share" in t else t for k, t in given.tables.items()}
    tables["table"] = given.table[given.table["share"] == 0.0].assign(share=math.nan)
    fig = figure(replace(given, tables=tables))
    assert fig.layout.annotations[0].text == "plain texts"
    assert "xaxis2" not in fig.to_plotly_json()["layout"]


def test_controls_are_grey_and_drawn_first(result):
    fig = figure(result("revival"))
    colors = [trace.line.color for trace in fig.data if trace.mode == "lines+markers"]
    assert colors == [GREY, GREY, GREY, STYLES["revived"].color]
    looks = [(trace.line.dash, trace.marker.symbol) for trace in fig.data if trace.mode == "lines+markers"]
    assert len(set(looks)) == 4  # dash and marker repeat what colour says


def test_revival_marks_arrivals_and_censored_arms(result):
    fig = figure(result("revival", seed=0))
    assert [t.name for t in lines(fig, "irrelevant data: ")] == ["irrelevant data: more than 320 steps"]
    markers = {t.name: t for t in fig.data if t.mode == "markers"}
    late, never = markers["irrelevant data"], markers["never had it"]
    assert late.marker.symbol == "arrow-right"
    assert late.y[0] < 0.5
    assert list(late.error_x.array) == [0]
    assert never.x[0] == pytest.approx(math.log10(111))
    assert never.y[0] == 0.95
    assert never.error_x.array[0] > 0
    assert never.error_x.arrayminus[0] > 0


def test_revival_at_another_rate_looks_like_its_arm_with_open_markers(result):
    given = result("revival", seed=0)
    tables = {n: pd.concat([t, t.assign(arm=t["arm"] + "@3e-05")], ignore_index=True) for n, t in given.tables.items()}
    fig = figure(replace(given, tables=tables))
    (main,), (other,) = (lines(fig, f"revived (the fine-tuned model){at}") for at in (":", ", rate 3e-05:"))
    assert (other.line.color, other.line.dash) == (main.line.color, main.line.dash)
    assert other.marker.symbol == f"{main.marker.symbol}-open"
    assert fig.data[-1].name.startswith("revived")
    assert "revived (the fine-tuned model), rate 3e-05" in alt(replace(given, tables=tables))


def test_pruning_shows_random_orders_behind_and_all_answers(result):
    given = result("pruning", seed=0)
    fig = figure(given)
    (random,) = lines(fig, "as many random neurons")
    assert "10 orders" in random.name
    assert random.x[0] == 0  # removing none is the same in any order
    assert random.y[0] == pytest.approx(given.metric("unpruned_pt").value)
    names = [t.name for t in fig.data]
    assert names.index(random.name) < names.index(lines(fig, "counting a")[0].name)
    bars = {t.name: t for t in fig.data if t.type == "bar"}
    assert len(bars) == 3
    assert list(bars["right answers"].x) == ["EOT", "2", "3", "4", "5"]
    assert list(bars["answers of the fine-tuned model"].y) == pytest.approx([0, 0.05, 0.3, 0.35, 0.3])


def test_rare_answers_are_added_up(result):
    given = result("pruning", seed=0)
    rows = [
        {"when": w, "answer": f"word{i}", "token": 100 + i, "value": 0.006, "low": 0.0, "high": 0.1, "n": 200, "unit": "share"}
        for w in ("before", "after", "truth")
        for i in range(30)
    ]
    classes = pd.concat([given.tables["classes"], pd.DataFrame(rows)], ignore_index=True)
    fig = figure(replace(given, tables={**given.tables, "classes": classes}))
    bar = next(t for t in fig.data if t.type == "bar" and t.name == "right answers")
    assert len(bar.x) == 15
    assert bar.x[-1] == "rest"
    assert sum(bar.y) == pytest.approx(1 + 30 * 0.006)


def test_probing_has_a_panel_per_target_and_question(result):
    given = result("probing")
    fig = figure(given)
    titles = [a.text for a in fig.layout.annotations if "asked" in (a.text or "")]
    assert titles == ["counting a,<br>asked for it", "counting b,<br>asked for it", "counting a,<br>asked for counting b"]
    assert len(lines(fig, "fine-tuned model")) == 3
    assert lines(fig, "base model")[0].y[-1] == pytest.approx(0.97)
    assert list(fig.layout.xaxis.ticktext) == ["embed", "1", "2"]


def test_a_result_without_a_builder_shows_its_headline():
    given = Result("of_the_future", {"table": pd.DataFrame()}, (Metric("gap_pt", 0.5, 0.4, 0.6, 10, "accuracy"),))
    fig = figure(given)
    assert fig.data[0].type == "table"
    assert fig.data[0].cells["values"][1] == ["0.50 [0.40, 0.60]"]
    assert alt(given) == "Headline numbers of of the future: gap, pretraining ability 0.50 [0.40, 0.60] accuracy."


def test_names_of_helpers_are_no_builders():
    assert not any(has_builder(name) for name in ("theme", "words", "__init__", "../pruning", "headline", "nothing"))


@pytest.mark.parametrize("largest", [1, 5, 13, 150, 320, 1200, 100_000])
def test_step_axis_shows_zero_and_the_last_step_without_crowding(largest):
    axis = step_axis(largest, "step")
    assert axis["ticktext"][0] == "0"
    assert axis["ticktext"][-1] == f"{largest:,}"
    assert len(axis["ticktext"]) <= 10
    gaps = np.diff(axis["tickvals"])
    assert (gaps > 0).all()
    assert min(gaps) >= 0.07 * axis["tickvals"][-1]
    np.testing.assert_allclose(axis["tickvals"], place([int(t.replace(",", "")) for t in axis["ticktext"]]))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.954, "0.95"),
        (22.4, "22"),
        (1400.0, "1,400"),
        (3.1e-5, "3.1e-05"),
        (0.0, "0.00"),
        (math.nan, "not defined"),
        (3.0, "3"),
    ],
)
def test_numbers_as_people_say_them(value, said):
    assert words.number(value) == said


def test_bounds_are_said():
    assert words.interval(Metric("r", 0.3, 0.2, 0.4, 9, bound="upper")) == "at most 0.30 [0.20, 0.40]"
    assert words.interval(Metric("r", 0.3, 0.2, 0.4, 9, bound="lower"), "steps") == "at least 0.30 [0.20, 0.40] steps"
    assert words.interval(Metric("r", math.nan, math.nan, math.nan, 9, bound="undefined")) == "not defined"


def test_series_in_words():
    assert words.ability("count_a", "pt", 0.0) == "counting a (pretraining ability), uncorrelated texts"
    assert words.ability("token", "other", math.nan) == "token (other ability), plain texts"
