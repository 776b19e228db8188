"""Figures of the paper redone: small multiples, tables as dots, claims, histograms of labels and prompts."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tests.paper.fake_grid import made_once
from workbench.figures import alt, figure, has_builder
from workbench.figures.theme import GREY, STYLES
from workbench.paper.catalogue import Labels, Reproduction, Samples, Table
from workbench.paper.claims import judge
from workbench.paper.grid import Grid
from workbench.paper.redo import redo
from workbench.paper.views import View

ENTRIES = {
    "accuracy": (View("accuracy", role="ft", rows=("rate_name", "share")), "table5_counter_200K"),
    "pruning": (View("pruning", columns="c_tr", rows=("prior", "rate_name")), None),
    "probing": (View("probing", role="pt", columns="c_tr", rows=("prior", "rate_name")), None),
    "revival": (View("revival", {"rate": 1e-3}, rows="reverse_rate"), None),
    "ends": (View("ends", {"share": 1.0}, columns="prior", rows="rate_name"), None),
    "one panel": (View("probing", {"prior": 0.5, "rate": 1e-3, "share": 1.0}, "pt", columns=(), rows=()), None),
    "table": (Table("table5_counter_200K"), None),
    "labels": (Labels("count_b", "count_a"), None),
    "samples": (Samples("count_a"), None),
}
VIEWS = [name for name, (shows, _) in ENTRIES.items() if isinstance(shows, View)]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    study = made_once(tmp_path_factory)
    made = {
        name: redo(Reproduction(name, f"About {name}", "small_grid", shows, printed), study)
        for name, (shows, printed) in ENTRIES.items()
    }
    return {**made, "claims": judge(Grid(study))}


def lines(fig):
    return [t for t in fig.data if t.mode == "lines+markers"]


def titles(fig):
    layout = fig.to_plotly_json()["layout"]
    found = (v.get("title", {}).get("text") for k, v in layout.items() if k.startswith(("xaxis", "yaxis")))
    return {title for title in found if title}


def names(fig):
    return [t.name for t in fig.data if t.name and t.showlegend is not False]


@pytest.mark.parametrize("name", [*ENTRIES, "claims"])
def test_every_figure_has_a_title_a_clear_background_and_leaves_its_tables(results, name):
    given = results[name]
    before = {key: table.copy() for key, table in given.tables.items()}
    assert has_builder(given.name)
    fig = figure(given)
    assert fig.layout.title.text
    assert "seed" in fig.layout.title.subtitle.text or name == "labels"
    assert fig.layout.paper_bgcolor == fig.layout.plot_bgcolor == "rgba(0,0,0,0)"
    assert fig.layout.font.color is None  # text takes the colour of the page's template
    for key, table in given.tables.items():
        pd.testing.assert_frame_equal(table, before[key])


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("accuracy", {"fine-tuning step", "accuracy (share of answers right)"}),
        ("pruning", {"units removed", "accuracy (share of answers right)"}),
        ("probing", {"residual stream after block (0: embedding)", "accuracy (share of answers right)"}),
        ("revival", {"reverse fine-tuning step", "accuracy (share of answers right)"}),
        ("ends", {"fine-tuning", "accuracy (share of answers right)"}),
        ("table", {"accuracy"}),
        ("labels", {"label", "share of texts"}),
        ("claims", {"accuracy, share, or ratio of steps (see the label)"}),
    ],
)
def test_axes_say_what_they_measure(results, name, axes):
    assert titles(figure(results[name])) == axes


@pytest.mark.parametrize("name", [name for name in (*ENTRIES, "claims") if name != "samples"])
def test_legends_are_in_words_and_name_everything_once(results, name):
    shown = names(figure(results[name]))
    assert len(shown) == len(set(shown)) >= 2
    assert not any("_" in entry or "rank" in entry or "nan" in entry for entry in shown)


@pytest.mark.parametrize("name", VIEWS)
def test_every_line_of_the_table_is_drawn_with_its_numbers(results, name):
    given = results[name]
    drawn = {(t.name, tuple(np.round(t.y, 9))) for t in lines(figure(given))}
    wanted = set()
    for (_, _, line), points in given.table.groupby(["column", "row", "line"]):
        wanted.add((line, tuple(np.round(points.sort_values("x")["value"].to_numpy(), 9))))
    assert drawn == wanted


@pytest.mark.parametrize(("name", "controls"), [("pruning", 1), ("probing", 2), ("revival", 2)])
def test_controls_are_grey_and_drawn_first_in_every_panel(results, name, controls):
    by_panel: dict[object, list[bool]] = {}
    for trace in lines(figure(results[name])):
        by_panel.setdefault((trace.xaxis, trace.yaxis), []).append(trace.line.color == GREY)
    for grey in by_panel.values():
        assert grey == sorted(grey, reverse=True)
        assert sum(grey) == controls
        assert len(grey) > controls


def test_lines_of_an_axis_keep_colour_and_dash_over_panels_and_the_order_of_the_axis_in_the_legend(results):
    fig = figure(results["accuracy"])
    looks = {}
    for trace in lines(fig):
        looks.setdefault(trace.name, set()).add((trace.line.color, trace.line.dash, trace.marker.symbol, trace.legendrank))
    assert all(len(look) == 1 for look in looks.values())
    (none,), (every,) = looks["0 % of texts correlated"], looks["100 % of texts correlated"]
    assert none[0] != every[0]
    assert none[1] != every[1]  # dash and marker repeat what colour says
    assert none[3] < every[3]


def test_abilities_that_were_left_alone_share_a_colour_and_differ_in_their_marker(results):
    given = results["ends"]
    other = given.table[given.table["line"] == "token"]
    more = other.assign(line="index of b", look="other 3")
    table = pd.concat([given.table, more], ignore_index=True)
    fig = figure(replace(given, tables={**given.tables, "table": table}))
    markers = {t.name: (t.line.color, t.marker.symbol) for t in lines(fig) if t.name in ("token", "index of b")}
    assert {color for color, _ in markers.values()} == {STYLES["other"].color}
    assert markers["token"][1] != markers["index of b"][1]


def test_marks_of_the_paper_are_faint_ticks_at_the_right_end(results):
    given = results["accuracy"]
    fig = figure(given)
    marks = [t for t in fig.data if t.mode == "markers" and t.y is not None and t.y[0] is not None]
    assert sorted(t.y[0] for t in marks) == pytest.approx(sorted(given.tables["paper"]["value"]))
    end = math.log10(1 + 20)
    for mark in marks:
        assert mark.x[0] > end
        assert mark.marker.symbol == "line-ew"
        assert mark.marker.line.color.startswith("rgba(")
        assert float(mark.marker.line.color.rstrip(")").split(",")[-1]) < 1
    assert "the paper, after its 10,000 iterations" in names(fig)
    assert not any("the paper" in entry for entry in names(figure(results["probing"])))


def test_reference_levels_are_dotted_behind_and_named_in_the_legend(results):
    for name, level, text in (
        ("accuracy", 0.3, "best guess without the ability"),
        ("revival", 0.95, "95 %: counts as revived"),
    ):
        fig = figure(results[name])
        panels = {(t.xaxis, t.yaxis) for t in lines(fig)}
        assert [shape.y0 for shape in fig.layout.shapes] == pytest.approx([level] * len(panels))
        assert all(shape.layer == "below" and shape.line.dash == "dot" for shape in fig.layout.shapes)
        assert text in names(fig)


def test_step_axes_show_zero_and_the_last_step(results):
    ticks = figure(results["accuracy"]).layout.xaxis.ticktext
    assert (ticks[0], ticks[-1]) == ("0", "20")
    ends = figure(results["ends"]).layout.xaxis
    assert list(ends.ticktext) == ["before", "after"]


def test_row_titles_stand_beside_their_row_in_lines_that_fit(results):
    given = results["accuracy"]
    fig = figure(given)
    rows = list(given.table["row"].unique())
    beside = [a for a in fig.layout.annotations if a.textangle == 90]
    assert [a.text.replace("<br>", " ") for a in beside] == rows
    assert max(len(line) for a in beside for line in a.text.split("<br>")) <= 28
    for i, annotation in enumerate(beside):
        low, high = fig.layout[f"yaxis{2 * i + 1}" if i else "yaxis"].domain
        assert low < annotation.y < high
    assert fig.layout.margin.r >= 20 + 16 * max(a.text.count("<br>") + 1 for a in beside)


def test_a_panel_without_data_still_has_its_axes(results):
    given = results["accuracy"]
    gone = (given.table["column"] == "pretraining prior 0.99") & given.table["row"].str.startswith("medium rate, corr")
    fig = figure(replace(given, tables={**given.tables, "table": given.table[~gone]}))
    used = {t.xaxis for t in fig.data}
    assert len(used) == 2 * 4  # two columns, four rows
    assert len([t for t in lines(fig)]) == len(lines(figure(given))) - 2


def test_one_panel_has_no_titles_of_panels(results):
    fig = figure(results["one panel"])
    assert not [a.text for a in fig.layout.annotations if a.text]
    assert len(lines(fig)) == 4
    assert titles(fig) == {"residual stream after block (0: embedding)", "accuracy (share of answers right)"}


def test_many_panels_grow_downwards(results):
    small, large = figure(results["one panel"]), figure(results["pruning"])
    assert large.layout.height - small.layout.height > 3 * 150
    assert len({(t.xaxis, t.yaxis) for t in lines(large)}) == 8


@pytest.mark.parametrize("name", VIEWS)
def test_unknown_numbers_and_intervals_are_left_out_without_a_complaint(results, name):
    given = results[name]
    table = given.table.copy()
    table.loc[table.index[::2], ["low", "high"]] = math.nan
    table.loc[table.index[1::3], "value"] = math.nan
    tables = {**given.tables, "table": table, "levels": given.tables["levels"].assign(value=math.nan)}
    fig = figure(replace(given, tables=tables))
    assert not fig.layout.shapes
    assert fig.to_json()


def test_a_table_draws_the_printed_value_beside_the_measured_one(results):
    given = results["table"]
    fig = figure(given)
    measures = list(given.table["measure"].unique())
    assert [a.text.replace("<br>", " ") for a in fig.layout.annotations] == measures
    for i, measure in enumerate(measures):
        paper, here = fig.data[2 * i : 2 * i + 2]
        rows = given.table[given.table["measure"] == measure]
        np.testing.assert_allclose(here.x, rows["value"])
        np.testing.assert_allclose(paper.x, rows["paper"])
        np.testing.assert_allclose(here.x + here.error_x.array, rows["high"])
        np.testing.assert_allclose(here.x - here.error_x.arrayminus, rows["low"])
        assert paper.marker.color == GREY
        assert here.marker.color == STYLES[rows["role"].iloc[0]].color
    cells = list(given.table["cell"].unique())
    assert list(fig.layout.yaxis.ticktext) == cells
    assert fig.layout.yaxis.range[0] > fig.layout.yaxis.range[1]  # the first cell on top
    assert fig.layout.margin.l >= 6 * max(map(len, cells))


def test_a_table_without_printed_values_says_so(results):
    given = results["table"]
    bare = replace(given, tables={"table": given.table.assign(paper=math.nan)}, headline=())
    assert "none of them printed in the paper" in alt(bare)
    assert figure(bare).to_json()


def test_claims_are_dots_with_intervals_against_thresholds(results):
    given = results["claims"]
    fig = figure(given)
    rows = given.table.to_dict("records")
    measured = [(i, row) for i, row in enumerate(rows) if math.isfinite(row["value"])]
    dots = {(x, y) for t in fig.data[:-1] for x, y in zip(t.x, t.y, strict=True)}
    assert dots == {(row["value"], i) for i, row in measured}
    said = {"yes": "agrees", "no": "disagrees", "unclear": "unclear"}
    kinds = {said[row["agrees"]] for _, row in measured}
    assert len(kinds) > 1
    assert kinds <= set(names(fig))
    bars = fig.data[-1]
    assert list(bars.x) == [float(row["predicted"].split()[1]) for row in rows]
    right = [symbol == "triangle-right-open" for symbol in bars.marker.symbol]
    assert right == [row["predicted"].startswith("above") for row in rows]
    said = [a.text for a in fig.layout.annotations]
    assert len(said) == len(rows)
    assert [text.endswith(": not measured") for text in said] == [math.isnan(row["value"]) for row in rows]
    assert all(f"<b>{row['claim']}</b>" in text for text, row in zip(said, rows, strict=True))
    assert fig.layout.yaxis.range[0] > fig.layout.yaxis.range[1]


def test_labels_are_bars_of_both_abilities_with_and_without_the_correlation(results):
    given = results["labels"]
    fig = figure(given)
    bars = [t for t in fig.data if t.type == "bar"]
    assert [a.text for a in fig.layout.annotations] == ["uncorrelated texts", "correlated texts"]
    assert [t.name for t in bars] == ["counting a", "counting b"] * 2
    assert [t.marker.color for t in bars] == [STYLES["pt"].color, STYLES["ft"].color] * 2
    assert bars[1].marker.pattern.fillmode == "overlay"  # else the pattern alone would be drawn, and no colour
    assert sum(bars[0].y) == pytest.approx(1.0)


def test_prompts_are_a_table_in_which_nothing_is_markup(results):
    given = results["samples"]
    rows = pd.DataFrame({"prompt": ["<b>x</b> " + "y" * 100], "answer": ["<i>1</i>"]})
    fig = figure(replace(given, tables={"table": rows}))
    prompts, answers = fig.data[0].cells["values"]
    assert "&lt;b&gt;x&lt;/b&gt;" in prompts[0]
    assert prompts[0].count("<br>") == 1
    assert list(answers) == ["&lt;i&gt;1&lt;/i&gt;"]
    six = figure(given)
    # Every row is drawn: a table's rows are 24 pixels of one line, its header 32.
    assert six.layout.height - six.layout.margin.t - six.layout.margin.b >= 32 + 24 * len(given.table)


@pytest.mark.parametrize("name", [*ENTRIES, "claims"])
def test_alt_says_what_is_drawn_with_numbers(results, name):
    said = alt(results[name])
    assert said.endswith(".")
    assert "\n" not in said
    assert "nan" not in said
    if name != "claims":
        assert f"About {name}" in said
        assert sum(c.isdigit() for c in said) >= 2


def test_alt_of_many_lines_stops_after_six(results):
    said = alt(results["pruning"])
    assert "as many random units (range over orders): 0.10" in said
    lines = results["pruning"].table[["column", "row", "line"]].drop_duplicates()
    assert said.endswith(f"; and {len(lines) - 6} more in the table.")
    assert said.count("; ") == 6
