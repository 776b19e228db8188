"""Figures of the lenses, from invented tables."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from workbench.figures import alt, figure, has_builder
from workbench.figures.attribution import part_name
from workbench.figures.places import in_order, place_axis
from workbench.figures.theme import GREY, STYLES
from workbench.replicates import combine_results
from workbench.results import Metric, Result

N = 200
PROVENANCE = {"capability": "count_a", "tuned_on": "count_b", "seed": 0}
PLACES = [("SOS", "prompt"), ("12", "prompt"), ("6", "text"), ("3", "text"), ("0", "window"), ("request", "request")]


def row(value: float, unit: str, **at):
    return {**at, "value": value, "low": value - 0.02, "high": value + 0.02, "n": N, "unit": unit}


def metrics(unit: str, **values: float) -> tuple[Metric, ...]:
    return tuple(Metric(k, v, v - 0.01, v + 0.01, N, unit, draws=(v - 0.01, v, v + 0.01)) for k, v in values.items())


def places(**at):
    return [{**at, "place": name, "order": k, "part": part} for k, (name, part) in enumerate(PLACES)]


def lens(models=("base", "tuned", "untrained", "never_had_it", "revived"), targets=("count_a", "count_b")) -> Result:
    table, change = [], []
    for prompt in ("count_a", "count_b"):
        for target in targets:
            for measure, unit in (("accuracy", "accuracy"), ("log-probability", "nats")):
                for point in range(3):
                    at = {"prompt": prompt, "target": target, "measure": measure, "point": point}
                    for m, model in enumerate(models):
                        for cell in places(model=model, **at):
                            value = 0.1 * point + 0.01 * cell["order"] + 0.1 * m if measure == "accuracy" else -3.0
                            table.append(row(value, unit, **cell))
                    for model in ("tuned", "revived"):
                        if model in models:
                            change += [row(-0.3, "change", **cell) for cell in places(model=model, **at)]
    chance = [{"prompt": "count_a", "target": t, "kind": "majority", "value": 0.25} for t in targets]
    names = {f"{m.replace('never_had_it', 'never')}_{where}": 0.5 for m in models for where in ("inside", "final")}
    tables = {"table": pd.DataFrame(table), "change": pd.DataFrame(change), "chance": pd.DataFrame(chance)}
    return Result("logit_lens", tables, metrics("accuracy", **names), provenance=PROVENANCE)


def attributed(models=("base", "tuned", "revived")) -> Result:
    rows = []
    parts = [("embedding", None, None), ("all", None, None)]
    for b in (0, 1):
        parts += [("head", b, h) for h in (0, 1, 2)] + [("attention bias", b, None), ("mlp", b, None)]
    for m, model in enumerate([*models, "change"]):
        for i, (kind, block, head) in enumerate(parts):
            name = kind + ("" if block is None else f" {block}") + ("" if head is None else f".{head}")
            value = -4.0 if (model, name) == ("change", "mlp 1") else 0.1 * i - m
            rows.append(row(value, "logits", model=model, part=name, kind=kind, block=block, head=head))
    found = metrics("logits", **{f"{m}_difference": 3.0 for m in models}, explained=0.5)
    tables = {"table": pd.DataFrame(rows), "chosen": pd.DataFrame([{"part": "mlp 1"}])}
    return Result("attribution", tables, found, provenance=PROVENANCE)


def diverged(models=("tuned", "revived", "never_had_it"), aliases=(), given=()) -> Result:
    table, sums = [], []
    for capability, role in (("count_a", "pt"), ("count_b", "ft"), ("token", "other")):
        for m, model in enumerate(models):
            at = {"model": model, "capability": capability, "role": role, "share": 0.0}
            table += [row(0.1 * m + (3.0 if cell["place"] == "request" else 0.0), "nats", **cell) for cell in places(**at)]
            sums.append(row(0.5, "share of the divergence", **at))
    asked = [
        row(0.9, "accuracy", model=m, capability=c, role=r)
        for c, r in (("count_a", "pt"), *((alias, "alias") for alias in aliases))
        for m in ("base", *models)
    ]
    prefilled = [row(0.3 + 0.2 * j, "accuracy", model=m, given=j) for j in given for m in ("base", *models)]
    tables = {"table": table, "concentration": sums, "identifiers": asked, **({"prefilled": prefilled} if given else {})}
    short = [m.replace("never_had_it", "never") for m in models]
    found = metrics("nats", **{f"{m}_{what}_pt": 0.5 for m in short for what in ("answer", "concentration")}, even=0.2)
    return Result("divergence", {k: pd.DataFrame(v) for k, v in tables.items()}, found, provenance=PROVENANCE)


ALL = {
    "logit_lens": lens(),
    "logit_lens, bare": lens(("base", "tuned", "untrained"), ("count_a",)),
    "attribution": attributed(),
    "attribution, bare": attributed(("base", "tuned")),
    "divergence": diverged(),
    "divergence, asked otherwise": diverged(aliases=("count_j1_a",), given=(0, 1, 2)),
    "divergence, bare": diverged(("tuned",)),
}


def heats(fig):
    return [trace for trace in fig.data if trace.type == "heatmap"]


@pytest.mark.parametrize("given", ALL.values(), ids=ALL)
def test_axes_legend_background_and_words(given):
    assert has_builder(given.name)
    before = {key: table.copy() for key, table in given.tables.items()}
    fig = figure(given)
    for key, table in given.tables.items():
        pd.testing.assert_frame_equal(table, before[key])
    titles = [axis.title.text for axis in (*fig.select_xaxes(), *fig.select_yaxes()) if axis.title.text]
    assert any(word in title for title in titles for word in ("share of answers right", "logits", "nats"))
    shown = [t.name for t in fig.data if t.name and t.showlegend is not False]
    assert len(shown) == len(set(shown)) >= 2
    assert not any("_" in entry for entry in shown)
    assert fig.layout.paper_bgcolor == fig.layout.plot_bgcolor == "rgba(0,0,0,0)"
    assert "seed 0" in fig.layout.title.subtitle.text
    said = alt(given)
    assert said.endswith(".")
    assert "counting a" in said
    assert "_" not in said
    assert sum(c.isdigit() for c in said) >= 4


@pytest.mark.parametrize("given", [lens(), attributed(), diverged(aliases=("count_j1_a",), given=(0, 1))], ids=lambda r: r.name)
def test_pooled_results_are_drawn(given):
    other = replace(given, provenance={**PROVENANCE, "seed": 1})
    pooled = replace(combine_results([given, other]), provenance={**PROVENANCE, "seeds": [0, 1]})
    fig = figure(pooled)
    assert "seeds 0 and 1" in fig.layout.title.subtitle.text
    assert len(fig.data) == len(figure(given).data)
    assert alt(pooled)


class TestLogitLens:
    def test_a_row_per_answer_a_column_per_model_and_the_difference(self):
        fig = figure(lens())
        found = heats(fig)
        assert [t.coloraxis for t in found] == ["coloraxis"] * 3 + ["coloraxis2"] + ["coloraxis"] * 3 + ["coloraxis2"]
        assert (fig.layout.coloraxis.cmin, fig.layout.coloraxis.cmax) == (0, 1)
        assert fig.layout.coloraxis2.cmin == -fig.layout.coloraxis2.cmax
        expected = [[0.1 * p + 0.01 * k + 0.1 for k in range(6)] for p in range(3)]
        assert np.allclose(np.asarray(found[1].z), expected)  # tuned: points from below, places from the left
        assert np.allclose(np.asarray(found[3].z), -0.3)
        texts = [a.text for a in fig.layout.annotations]
        assert {"base", "fine-tuned", "revived", "fine-tuned minus base"} <= set(texts)
        assert texts.count("right for counting a") == texts.count("right for counting b") == 2

    def test_lines_at_the_answer_with_the_controls_grey_and_behind(self):
        fig = figure(lens())
        lines = [t for t in fig.data if t.type == "scatter" and t.mode == "lines+markers"][:5]
        assert [t.line.color for t in lines] == [GREY, GREY, *(STYLES[m].color for m in ("base", "tuned", "revived"))]
        base = lines[2]
        assert list(base.x) == [0, 1, 2]
        assert np.allclose(base.y, [0.05, 0.15, 0.25])  # at the place of the request alone
        chance = next(t for t in fig.data if t.name == "best guess without the ability")
        assert set(chance.y) == {0.25}

    def test_without_a_revived_model_and_with_one_answer_the_line_has_the_whole_width(self):
        fig = figure(lens(("base", "tuned", "untrained"), ("count_a",)))
        assert len(heats(fig)) == 3
        assert not any(t.name == "revived model" for t in fig.data)
        widths = [axis.domain[1] - axis.domain[0] for axis in fig.select_xaxes()]
        assert max(widths) == pytest.approx(1)


class TestAttribution:
    def test_maps_hold_heads_bias_and_mlp_of_every_block(self):
        given = attributed()
        fig = figure(given)
        found = heats(fig)
        assert [t.coloraxis for t in found] == ["coloraxis"] * 3 + ["coloraxis2"]
        assert fig.layout.coloraxis.cmin == -fig.layout.coloraxis.cmax  # contributions have signs
        assert list(fig.layout.xaxis.ticktext) == ["1", "2", "3", "bias", "MLP"]
        change = np.asarray(found[3].z)
        assert change[1, 4] == -4.0
        base = given.table.query("model == 'base'").set_index("part")["value"]
        assert np.allclose(np.asarray(found[0].z)[0], base[["head 0.0", "head 0.1", "head 0.2", "attention bias 0", "mlp 0"]])

    def test_the_sum_and_then_the_largest_changes_are_listed(self):
        fig = figure(attributed())
        points = [t for t in fig.data if t.type == "scatter"]
        assert [t.marker.color for t in points] == [STYLES[m].color for m in ("base", "tuned", "revived")]
        assert list(points[0].y)[::-1][:2] == ["sum: logit difference", "block 2, MLP"]

    @pytest.mark.parametrize(
        ("part", "name"),
        [
            ("head 1.3", "block 2, head 4"),
            ("mlp 0", "block 1, MLP"),
            ("attention bias 0", "block 1, attention bias"),
            ("final norm bias", "final norm bias"),
            ("embedding", "embedding"),
        ],
    )
    def test_parts_in_words(self, part, name):
        assert part_name(part) == name


class TestDivergence:
    def test_a_panel_per_ability_on_one_scale(self):
        fig = figure(diverged())
        curves = [t for t in fig.data if t.mode == "lines+markers"]
        assert len(curves) == 3 * 3
        assert [t.line.color for t in curves[:3]] == [GREY, STYLES["revived"].color, STYLES["tuned"].color]
        ranges = {tuple(fig.layout[f"yaxis{i}"].range) for i in ("", 2, 3)}
        assert len(ranges) == 1
        assert max(curves[0].y) < ranges.pop()[1]
        assert [a.text for a in fig.layout.annotations][:2] == [
            "counting a (pretraining ability)",
            "counting b (fine-tuned ability)",
        ]

    def test_other_ways_to_ask_stand_beside_the_share_at_the_answer(self):
        fig = figure(diverged(aliases=("count_j1_a",), given=(0, 1, 2)))
        (axis,) = [a for a in fig.select_xaxes() if a.ticktext and "counting a" in a.ticktext and len(a.ticktext) == 4]
        assert list(axis.ticktext) == ["counting a", "counting a<br>under J1", "1 token given", "2 tokens given"]
        base = next(t for t in fig.data if t.name == "base model")
        assert np.allclose(base.y, [0.9, 0.9, 0.5, 0.7])
        assert len([t for t in figure(diverged()).data if t.name == "base model"]) == 0


def test_a_text_has_names_at_its_ends_alone_and_a_number_of_the_prompt_is_no_distance():
    axis = place_axis(in_order(pd.DataFrame(places()[::-1])))
    assert axis["ticktext"] == ["SOS", "12", "text −6", "text end", "read"]
    assert axis["tickvals"] == [0, 1, 2, 4, 5]
