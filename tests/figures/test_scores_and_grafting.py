"""Figures of rankings and of grafting, from invented tables."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from workbench.figures import alt, figure, has_builder
from workbench.figures.grafting import place
from workbench.figures.pruning import removed
from workbench.figures.theme import GREY, STYLES
from workbench.results import Metric, Result

N = 200
PROVENANCE = {"capability": "count_a", "tuned_on": "count_b", "seed": 0}


def row(value: float, **at):
    return {**at, "value": value, "low": max(0, value - 0.05), "high": min(1, value + 0.05), "n": N, "unit": "accuracy"}


def metrics(**values: float) -> tuple[Metric, ...]:
    units = {"units": "heads"}
    return tuple(Metric(k, v, v - 0.01, v + 0.01, N, units.get(k, "accuracy")) for k, v in values.items())


@pytest.fixture(scope="module")
def scores() -> Result:
    rows, names = [], ("signed_taylor", "snip", "obd", "wanda")
    for name in names:
        for k in (0, 1, 2, 5):
            rows.append(row(0.2 + 0.1 * k, ranking=name, draw=0, capability="count_a", role="pt", share=0.0, k=k))
            rows.append(row(1 - 0.1 * k, ranking=name, draw=0, capability="count_b", role="ft", share=1.0, k=k))
    for draw in range(1, 11):
        for k in (0, 1, 2, 5):
            rows.append(
                row(0.2 + 0.001 * draw * k, ranking="random", draw=draw, capability="count_a", role="pt", share=0.0, k=k)
            )
    pairs = [
        {"score": a, "other": b, "value": 1.0 if a == b else -0.04, "low": 0.0, "high": 1.0, "n": 8, "unit": "rank correlation"}
        for a in names
        for b in names
    ]
    pairs[1]["value"] = math.nan
    found = metrics(base_pt=1.0, unpruned_pt=0.2, pruned_pt=0.7, random_pt=0.25, units=5.0, recovered_snip=0.5)
    return Result(
        "pruning_scores", {"table": pd.DataFrame(rows), "correlations": pd.DataFrame(pairs)}, found, provenance=PROVENANCE
    )


@pytest.fixture(scope="module")
def grafts() -> Result:
    rows = []
    for direction in ("revert", "graft"):
        for capability, role, share in (("count_a", "pt", 0.0), ("count_b", "ft", 1.0)):
            at = {"direction": direction, "capability": capability, "role": role, "share": share}
            for s in (0.0, 0.01, 1.0):
                for ranking in ("first_order", "magnitude"):
                    rows.append(row(0.2 + 0.7 * s, ranking=ranking, draw=0, share_of_weights=s, **at))
            for draw in range(1, 11):
                for s in (1e-3, 0.01, 0.1):
                    rows.append(row(0.2 + 0.01 * draw, ranking="random", draw=draw, share_of_weights=s, **at))
    found = metrics(
        start_pt=1.0,
        tuned_pt=0.2,
        reverted_pt=0.6,
        random_reverted_pt=0.21,
        start_ft_correlated=0.3,
        tuned_ft_correlated=1.0,
        grafted_ft_correlated=0.9,
        random_grafted_ft=0.31,
    )
    return Result("grafting", {"table": pd.DataFrame(rows)}, found, provenance=PROVENANCE)


@pytest.mark.parametrize("name", ["scores", "grafts"])
def test_axes_legend_background_and_words(name, request):
    given = request.getfixturevalue(name)
    assert has_builder(given.name)
    before = {key: table.copy() for key, table in given.tables.items()}
    fig = figure(given)
    for key, table in given.tables.items():
        pd.testing.assert_frame_equal(table, before[key])
    body = fig.to_plotly_json()["layout"]
    titles = [
        v["title"]["text"] for k, v in body.items() if k.startswith(("xaxis", "yaxis")) and v.get("title", {}).get("text")
    ]
    assert any("share" in title for title in titles)
    shown = [t.name for t in fig.data if t.type == "scatter" and t.showlegend is not False]
    assert len(shown) == len(set(shown)) == 3
    assert not any("_" in entry for entry in shown)
    assert fig.layout.paper_bgcolor == fig.layout.plot_bgcolor == "rgba(0,0,0,0)"
    assert "seed 0" in fig.layout.title.subtitle.text
    said = alt(given)
    assert said.endswith(".")
    assert "counting a" in said
    assert sum(c.isdigit() for c in said) >= 4


def test_a_panel_per_score_with_the_control_behind(scores):
    fig = figure(scores)
    lines = [t for t in fig.data if (t.type == "scatter" and t.mode != "lines") or (t.name and "random" in t.name)]
    assert [t.line.color for t in lines] == [GREY, STYLES["ft"].color, STYLES["pt"].color] * 4
    panels = [t.xaxis for t in lines if t.line.color == STYLES["pt"].color]
    assert len(set(panels)) == 4
    assert "10 orders" in lines[0].name
    assert "random heads" in lines[0].name
    titles = [a.text for a in fig.layout.annotations]
    assert "SNIP<br>back: 0.50 [0.49, 0.51]" in titles
    assert "signed gradient" in titles
    (matrix,) = [t for t in fig.data if t.type == "heatmap"]
    assert matrix.zmin == -matrix.zmax == -1
    assert tuple(matrix.text[0]) == ("1.0", "", "0.0", "0.0")
    assert list(matrix.x) == list(matrix.y)
    assert not fig.layout.xaxis.title.text  # the axis is named under the last panel of each column alone
    assert "attention heads removed" in fig.layout.xaxis4.title.text


def test_grafting_draws_each_ranking_and_direction(grafts):
    fig = figure(grafts)
    drawn = [t for t in fig.data if t.mode == "lines+markers"]
    assert len(drawn) == 4 * 3
    curves = [t for t in drawn if t.line.color == STYLES["pt"].color]
    for trace in curves:
        np.testing.assert_allclose(trace.x, [-5, -2, 0])
        np.testing.assert_allclose(trace.y, [0.2, 0.207, 0.9])
    assert [t.line.color for t in drawn[:3]] == [GREY, STYLES["ft"].color, STYLES["pt"].color]
    assert list(fig.layout.xaxis.ticktext) == ["0", ".01 %", ".1 %", "1 %", "10 %", "all"]
    dotted = {shape.x0 for shape in fig.layout.shapes}
    assert dotted == {-2.0}


def test_no_share_has_a_place_of_its_own():
    np.testing.assert_allclose(place([0, 1e-4, 1]), [-5, -4, 0])


def test_the_figure_of_pruning_names_what_was_removed():
    at = {"capability": "count_a", "role": "pt", "share": 0.0}
    rows = [row(0.2 + 0.1 * k, ranking="snip", draw=0, k=k, **at) for k in (0, 1, 2)]
    rows += [row(0.2, ranking="random", draw=draw, k=2, **at) for draw in (1, 2)]
    answers = [{"when": w, "answer": "3", "token": 3, **row(1.0)} for w in ("truth", "before", "after")]
    found = metrics(base_pt=1.0, unpruned_pt=0.2, pruned_pt=0.4, random_pt=0.2, units=2.0)
    tables = {"table": rows, "classes": answers, "chosen": [row(0.4, k=2, capability="count_a")]}
    given = Result("pruning", {name: pd.DataFrame(of) for name, of in tables.items()}, found, provenance=PROVENANCE)
    fig = figure(given)
    (chosen,) = (t for t in fig.data if t.name == "chosen on other texts")
    assert (chosen.x[0], chosen.y[0]) == (pytest.approx(np.log10(3)), 0.4)
    assert "attention heads removed" in fig.layout.xaxis.title.text
    assert "removing heads" in fig.layout.title.text
    assert any(t.name == "as many random heads (2 orders, range)" for t in fig.data)
    assert "Removing 2 heads takes counting a" in alt(given)


@pytest.mark.parametrize(
    ("numbers", "said"), [((5, 5), "5 heads"), ((0, 5), "0 or 5 heads, by seed"), ((7, 2, 0, 3), "0 to 7 heads, by seed")]
)
def test_every_seed_removes_its_own_number(numbers, said):
    mean = float(np.mean(numbers))
    units = Metric("units", mean, min(numbers), max(numbers), 100, "heads", seeds=len(numbers))
    given = Result("pruning", {"chosen": pd.DataFrame([row(0.4, k=k) for k in dict.fromkeys(numbers)])}, (units,))
    assert removed(given) == said
    assert removed(replace(given, tables={})) == f"{mean:g} heads on average"
