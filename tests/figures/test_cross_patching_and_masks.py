"""Figures of swaps between models and of learned masks, from invented tables."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from workbench.figures import alt, figure, has_builder
from workbench.figures.component_mask import place
from workbench.figures.cross_patching import MOST, label
from workbench.figures.theme import STYLES
from workbench.replicates import combine_results
from workbench.results import Metric, Result

N = 200
PROVENANCE = {"capability": "count_a", "tuned_on": "count_b", "seed": 0}
COMPONENTS = ("embedding", "head 0.0", "head 0.1", "attention 0", "mlp 0", "stream 1")
DONORS = {"restores": "base", "breaks": "tuned", "installs": "tuned", "revives": "revived"}
PLACES = ("operand", "text 0", "request")


def metric(name: str, value: float) -> Metric:
    return Metric(name, value, value - 0.01, value + 0.01, N, draws=(value,) * 10)


def cross(effects=("restores", "breaks", "installs"), control="never_had_it", places=PLACES, components=COMPONENTS) -> Result:
    rows = []
    for effect in effects:
        about = ("count_b", "ft", 1.0) if effect == "installs" else ("count_a", "pt", 0.0)
        swaps = [(DONORS[effect], p) for p in ("all", "answer", *places)] + [(control, "all"), ("random", "all")]
        for i, (donor, positions) in enumerate(swaps):
            for j, component in enumerate(components):
                silent = component == "embedding" or (component == "head 0.0" and positions == "operand")
                at = {"effect": effect, "donor": donor, "positions": positions, "component": component}
                at |= dict(zip(("capability", "role", "share"), about, strict=True))
                at |= {"kind": component.split()[0], "block": 0, "head": -1}
                value = 0.1 + 0.02 * i + 0.1 * min(j, 5)
                for measure in ("accuracy", "agreement", "change", "changed", "explained", "explained_loss"):
                    found = float(not silent) if measure == "changed" else value
                    unit = "accuracy" if measure in ("accuracy", "agreement") else "x"
                    rows.append({**at, "measure": measure, "value": found, "low": found, "high": found, "n": N, "unit": unit})
    names = [f"{e}{s}" for e in effects for s in ("", "_answer", "_control", "_agreement", "_agreement_control")]
    ends = {"base_pt": 1.0, "tuned_pt": 0.2, "base_ft_correlated": 0.3, "tuned_ft_correlated": 1.0, "revived_pt": 0.95}
    numbers = ends | {name: 0.5 for name in names} | {f"{e}_agreement_before": 0.2 for e in effects}
    headline = tuple(metric(name, value) for name, value in numbers.items())
    return Result("cross_patching", {"table": pd.DataFrame(rows)}, headline, provenance=PROVENANCE)


def pooled(result: Result) -> Result:
    return combine_results([result, replace(result, provenance={**PROVENANCE, "seed": 1})])


def untouched(result: Result):
    before = {key: table.copy() for key, table in result.tables.items()}
    fig = figure(result)
    for key, table in result.tables.items():
        pd.testing.assert_frame_equal(table, before[key])
    return fig


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("effects", [tuple(DONORS)[:3], tuple(DONORS)])
def test_a_panel_for_each_effect_and_a_map_below(many, effects):
    fig = untouched(pooled(cross(effects)) if many else cross(effects))
    maps = [t for t in fig.data if t.type == "heatmap"]
    assert len(maps) == len(effects) + 1  # what breaks is drawn as accuracy and as agreement
    assert {t.coloraxis for t in maps} == {"coloraxis2"}
    assert fig.layout.coloraxis2.cmin == -fig.layout.coloraxis2.cmax
    assert [a.text.split("</b>")[0] for a in fig.layout.annotations if a.text.startswith("<b>")] == [
        f"<b>{e}" for e in ("restores", "breaks", "takes over", *effects[2:])
    ]
    assert (STYLES["revived"].color in {t.marker.color for t in fig.data if t.type == "scatter"}) == ("revives" in effects)
    assert has_builder("cross_patching")


def test_marks_hold_the_table_and_controls_are_grey_and_behind():
    result = cross()
    fig = figure(result)
    restores = [t for t in fig.data if t.type == "scatter" and t.xaxis == "x"]
    names = [t.name for t in restores]
    assert names[:2] == ["control: random change as large", "control: never had it"]
    assert {t.marker.color for t in restores[:2]} == {STYLES["random"].color}
    rows = result.table.query("effect == 'restores' and measure == 'accuracy' and donor == 'base'")
    for positions, trace in (("all", restores[2]), ("answer", restores[3])):
        assert list(trace.x) == rows[rows["positions"] == positions]["value"].tolist()
        assert trace.marker.color == STYLES["base"].color
    assert list(fig.layout.yaxis.ticktext) == [label(c) for c in COMPONENTS]


def test_maps_hold_changes_and_agreement_is_held_against_before():
    result = cross()
    maps = [t for t in figure(result).data if t.type == "heatmap"]
    at = result.table.query("positions in @PLACES and donor == 'tuned' and effect == 'breaks'")
    for trace, measure, before in ((maps[1], "change", 0.0), (maps[2], "agreement", 0.2)):
        rows = at[at["measure"] == measure].pivot_table(index="component", columns="positions", values="value")
        assert np.allclose(np.asarray(trace.z, float), rows.loc[list(COMPONENTS), list(PLACES)].to_numpy() - before)


def test_a_swap_that_changes_nothing_is_crossed_and_named():
    fig = figure(cross())
    crosses = [t for t in fig.data if str(t.name).startswith("no effect")]
    assert sum(bool(t.showlegend) for t in crosses) == 1
    first = [t for t in crosses if t.yaxis == "y"]
    assert [list(t.y) for t in first] == [[0]]  # the embedding
    below = next(t for t in crosses if t.yaxis not in {"y", "y2", "y3", "y4"})
    assert set(zip(below.x, below.y, strict=True)) == {(0, 0), (1, 0), (2, 0), (0, 1)}
    changed = cross()
    table = changed.table.assign(value=changed.table["value"].where(changed.table["measure"] != "changed", 1.0))
    none = figure(replace(changed, tables={"table": table}))
    assert not any(t.showlegend for t in none.data if str(t.name).startswith("no effect"))


def test_without_places_there_is_no_map_and_without_the_control_random_weights():
    fig = figure(cross(places=(), control="untrained"))
    assert not [t for t in fig.data if t.type == "heatmap"]
    assert any("untrained" in str(t.name) for t in fig.data)


def test_of_many_heads_those_that_change_most_are_shown():
    heads = tuple(f"head {b}.{h}" for b in range(10) for h in range(8))
    fig = figure(cross(places=(), components=("embedding", *heads, "stream 1")))
    shown = list(fig.layout.yaxis.ticktext)
    assert len(shown) == MOST
    assert {shown[0], shown[-1]} == {"embedding", "all up to block 1"}


def test_names_count_from_one():
    assert [label(c) for c in COMPONENTS] == [
        "embedding",
        "block 1 head 1",
        "block 1 head 2",
        "block 1 attention",
        "block 1 MLP",
        "all up to block 1",
    ]


@pytest.mark.parametrize("effects", [tuple(DONORS)[:3], tuple(DONORS)])
def test_cross_patching_in_words(effects):
    said = alt(cross(effects))
    assert "counting a" in said
    assert "counting b" in said
    assert ("revived" in said) == ("revives" in effects)


GOALS = ("restores", "breaks", "installs")
PENALTIES, COUNTS = (0.01, 0.1), (20, 3)


def masks(goals=GOALS, kind="neuron") -> Result:
    rows, parts, numbers = [], [], {}
    for goal in goals:
        at = {"goal": goal, "capability": "count_a", "role": "pt", "share": 0.0}

        def row(mask, penalty, draw, measure, value, unit="accuracy", at=at):
            numbers = {"value": value, "low": value, "high": value, "n": N, "unit": unit}
            return {**at, "mask": mask, "penalty": penalty, "draw": draw, "measure": measure, **numbers}

        for mask, value in (("none", 0.2), ("all", 1.0)):
            rows.append(row(mask, math.nan, 0, "wanted answers", value))
        for penalty, count in zip(PENALTIES, COUNTS, strict=True):
            rows.append(row("learned", penalty, 0, "wanted answers", 0.7 + 0.01 * count))
            rows += [row("random", penalty, i + 1, "wanted answers", 0.2 + 0.01 * i) for i in range(10)]
            rows += [row("learned", penalty, 0, m, float(count), "components") for m in ("components", "heads")]
            rows.append(row("control", penalty, 0, "wanted answers", 0.4 + 0.01 * count))
            rows += [row("control", penalty, 0, m, float(2 * count), "components") for m in ("components", "heads")]
            at_mask = {"goal": goal, "penalty": penalty, "headline": penalty == 0.1}
            for block in range(2):
                parts += [
                    {**at_mask, "kind": "head", "block": block, "index": h, "of": 4, "taken": h == block} for h in range(4)
                ]
            if kind == "mlp":
                parts += [{**at_mask, "kind": "mlp", "block": b, "index": 0, "of": 1, "taken": b == 1} for b in range(2)]
            elif goal != "installs":
                parts.append({**at_mask, "kind": "neuron", "block": 1, "index": 17, "of": 64, "taken": True})
        numbers |= {f"{goal}_{k}": v for k, v in (("learned", 0.73), ("random", 0.2), ("all", 1.0), ("none", 0.2))}
        numbers |= {f"{goal}_control": 0.4, f"{goal}_components": 3.0, f"{goal}_control_components": 6.0, goal: 0.9}
    headline = tuple(
        replace(metric(name, value), unit="of 136 components" if name.endswith("components") else "accuracy")
        for name, value in numbers.items()
    )
    tables = {"table": pd.DataFrame(rows), "components": pd.DataFrame(parts)}
    return Result("component_mask", tables, headline, provenance=PROVENANCE)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("kind", ["neuron", "mlp"])
@pytest.mark.parametrize("goals", [GOALS, ("breaks",)])
def test_learned_masks_over_their_size(many, kind, goals):
    result = masks(goals, kind)
    fig = untouched(pooled(result) if many else result)
    learned = [t for t in fig.data if str(t.name).startswith("learned mask")]
    assert len(learned) == len(goals)
    for trace in learned:
        assert np.allclose(trace.x, place(sorted(COUNTS)))
        assert np.allclose(trace.y, [0.73, 0.9])
    random = [t for t in fig.data if str(t.name).startswith("as many random") and t.mode == "lines+markers"]
    assert np.allclose(random[0].y, 0.245)
    control = [t for t in fig.data if str(t.name).startswith("control")]
    assert len(control) == len(goals)
    for trace in control:
        assert trace.line.color == STYLES["never_had_it"].color
        assert np.allclose(trace.x, place([6, 40]))
        assert np.allclose(trace.y, [0.43, 0.6])
    assert has_builder("component_mask")


def test_the_mask_of_the_headline_is_drawn_component_by_component():
    fig = figure(masks())
    below = [t for t in fig.data if t.yaxis == "y4" and len(t.x)]
    filled = next(t for t in below if t.marker.symbol == "square")
    assert list(zip(filled.x, filled.y, strict=True)) == [(0, 0), (1, 1)]
    assert filled.marker.color == STYLES["base"].color
    (neuron,) = (t for t in below if t.marker.symbol == "line-ns")
    assert list(neuron.y) == [1]
    assert neuron.customdata.tolist() == [[2, 18]]


def test_levels_of_none_and_all_are_named():
    texts = [a.text for a in figure(masks()).layout.annotations]
    assert texts.count("all") == texts.count("none") == 3


def test_no_component_has_a_place():
    assert place([0, 9, 99]).tolist() == [0, 1, 2]


@pytest.mark.parametrize("goals", [GOALS, ("installs",)])
def test_masks_in_words(goals):
    said = alt(masks(goals))
    assert said.count("3 of 136 components give 0.73") == said.count("6 of the control's 0.40") == len(goals)
    assert said.endswith(".")
