"""Figures of representations, drawn from results of small models, with and without the optional ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from analyses.compiled_pair import compiled_pair
from figures.checks import check_figure

from workbench.analyses import crosscoder, similarity
from workbench.figures import alt, figure, words
from workbench.figures.crosscoder import REACH, SETS, describe
from workbench.figures.similarity import COMPARED
from workbench.figures.theme import GREY, STYLES
from workbench.replicates import combine_results
from workbench.results import Metric

SETTINGS = {
    "similarity": {"n": 40, "text_positions": 2},
    "crosscoder": {
        "steps": 60,
        "batch": 64,
        "held_out": 16,
        "n": 24,
        "control_examples": 16,
        "random_draws": 2,
        "expansion": 1,
    },
}
BOTH = pytest.mark.parametrize("name", list(SETTINGS))
KINDS = pytest.mark.parametrize("kind", ["bare", "full", "pooled"])


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    pair = compiled_pair(tmp_path_factory.mktemp("pair"))
    elsewhere = compiled_pair(tmp_path_factory.mktemp("elsewhere"))
    siblings = {"compiled, seed 1": (elsewhere.base_path, elsewhere.tuned_path)}
    full = replace(pair, never_path=elsewhere.tuned_path, siblings=siblings)
    vars(full)["revived"] = full.base
    found = {}
    for name, analysis in (("similarity", similarity), ("crosscoder", crosscoder)):
        found[name, "bare"] = analysis(pair, **SETTINGS[name])
        found[name, "full"] = one = analysis(full, **SETTINGS[name])
        found[name, "pooled"] = combine_results([one, replace(one, provenance={**one.provenance, "seed": 1})])
    return found


@BOTH
@KINDS
def test_axes_legend_background_and_words(results, name, kind):
    given = results[name, kind]
    fig = check_figure(name, given, entries=3, titles=5, pooled=kind == "pooled")
    assert max(map(len, fig.layout.title.subtitle.text.split("<br>"))) < 100
    said = alt(given)
    assert sum(c.isdigit() for c in said) >= 6
    assert "_" not in words.metric(given.evidence[0].metric if given.evidence else "cka_base_tuned")


# Similarity.


def test_maps_hold_the_table_on_one_scale(results):
    given = results["similarity", "full"]
    fig, table = figure(given), given.table
    heats = [t for t in fig.data if t.type == "heatmap"]
    mapped = [name for name in COMPARED if name.startswith("base-")]
    assert len(heats) == 2 * len(mapped)
    for trace, (role, comparison) in zip(heats, [(r, c) for r in ("pt", "ft") for c in mapped], strict=True):
        mine = table[(table["role"] == role) & (table["comparison"] == comparison) & (table["measure"] == "cka")]
        np.testing.assert_allclose(trace.z, mine.pivot_table(index="point", columns="order", values="value", dropna=False))
    assert {t.coloraxis for t in heats} == {"coloraxis"}
    assert (fig.layout.coloraxis.cmin, fig.layout.coloraxis.cmax) == (0, 1)
    assert "ans" in fig.layout.xaxis.ticktext


def test_lines_at_the_answer_lie_before_their_controls(results):
    given = results["similarity", "full"]
    fig, table = figure(given), given.table
    lines = [t for t in fig.data if t.type == "scatter" and t.mode == "lines+markers"]
    half = len(lines) // 2
    assert len(lines) == 2 * (len(COMPARED) + 1)
    for part, measure in ((lines[:half], "cka"), (lines[half:], "procrustes")):
        assert [t.line.color for t in part[:4]] == [GREY] * 4
        drawn = {t.name: t for t in part}
        for comparison, (name, look) in COMPARED.items():
            at = (table["role"] == "pt") & (table["part"] == "request") & (table["measure"] == measure)
            mine = table[at & (table["comparison"] == comparison)].dropna(subset=["value"])
            np.testing.assert_allclose(drawn[name].y, mine["value"])
            assert drawn[name].line.color == STYLES[look].color
    # Grey lines are told apart by dash and marker.
    greys = [(t.line.dash, t.marker.symbol) for t in lines[:half] if t.line.color == GREY]
    assert len(set(greys)) == len(greys) == 4


def test_models_that_are_missing_have_no_panel(results):
    fig = figure(results["similarity", "bare"])
    assert len([t for t in fig.data if t.type == "heatmap"]) == 2 * 2  # tuned and untrained
    assert not any("revived" in t.name for t in fig.data if t.name)
    said = alt(results["similarity", "bare"])
    assert "revived" not in said
    assert "another seed" not in said


# Crosscoder.


def test_bars_are_the_sets_controls_in_grey(results):
    given = results["crosscoder", "full"]
    fig, table = figure(given), given.table
    for axis, measure in (("y3", "kl"), ("y4", "accuracy")):
        bars = [t for t in fig.data if t.type == "bar" and t.yaxis == axis]
        drawn = {label: value for t in bars for label, value in zip(t.y, t.x, strict=True)}
        assert set(drawn) == set(SETS.values())
        for name in ("base", "most_changed", "stream"):
            mine = table[(table["set"] == name) & (table["measure"] == measure)]
            assert drawn[SETS[name]] == pytest.approx(mine["value"].item())
        mine = table[(table["set"] == "random_direction") & (table["measure"] == measure)]
        assert drawn[SETS["random_direction"]] == pytest.approx(mine["value"].mean())
        controls, own = bars
        assert controls.marker.color == GREY
        assert own.marker.color == STYLES["tuned"].color
        assert set(own.y) == {SETS[name] for name in ("tuned_only", "most_changed", "all", "all_offset")}


def test_histogram_and_ratios_show_every_latent_once_and_flag_those_of_one_model(results):
    given = results["crosscoder", "full"]
    latents = given.tables["latents"].copy()
    latents.loc[latents.index[:3], ["tuned_only", "relative_norm", "nu_error", "nu_reconstruction"]] = [True, 0.97, -9.0, 0.1]
    given = replace(given, tables={**given.tables, "latents": latents})
    fig = figure(given)
    counts = {t.name: sum(t.y) for t in fig.data if t.type == "bar" and t.xaxis == "x"}
    assert counts["features of the tuned model alone (3)"] == 3
    assert sum(counts.values()) == len(latents)
    others, candidates = [t for t in fig.data if t.type == "scatter" and t.xaxis == "x2"]
    assert len(candidates.x) == 3
    assert set(candidates.x) == {REACH[0]}  # what lies beyond is drawn at the edge, with its own number on hover
    assert candidates.customdata[0][2] == -9.0
    known = np.isfinite(latents["nu_error"]) & np.isfinite(latents["nu_reconstruction"])
    assert len(others.x) + len(candidates.x) == known.sum()
    said = alt(replace(given, headline=tuple(_with(m, tuned_only=3, by_relative_norm=5) for m in given.headline)))
    assert "3 are the tuned model's alone (5 by decoder norms)" in said


def _with(metric: Metric, **numbers: float) -> Metric:
    return replace(metric, value=float(numbers.get(metric.metric, metric.value)))


def test_latents_that_changed_most_come_first_with_their_words(results):
    for kind in ("full", "pooled"):
        given = results["crosscoder", kind]
        latents = given.tables["latents"]
        bars = next(t for t in figure(given).data if t.type == "bar" and t.yaxis == "y5")
        mine = latents[latents["seed"] == 0] if kind == "pooled" else latents
        np.testing.assert_allclose(bars.x, np.sort(mine["moved"])[::-1][: len(bars.x)])
        assert len(bars.text) == len(bars.x) == min(12, len(mine))


def test_what_a_latent_is_about_in_words():
    row = {"place": "text", "at_place": 0.71, "label": "token here", "label_value": "b", "told": 0.53}
    assert describe(row) == "text (71%), token b (tells 53%)"
    assert describe({**row, "place": "request", "label": "count_a", "label_value": "3"}) == (
        "answer (71%), counting a = 3 (tells 53%)"
    )
    assert describe({**row, "label": "asked for", "label_value": "count_b"}) == "text (71%), asked for counting b (tells 53%)"
    assert describe({**row, "label": ""}) == "text (71%); no label tells more than chance"
