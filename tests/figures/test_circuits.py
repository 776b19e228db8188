"""The figure of circuits, drawn from results of compiled and trained models."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from analyses.compiled_pair import compiled_pair

from workbench.analyses import circuits
from workbench.figures import alt, figure, has_builder
from workbench.figures.circuits import CHANGES, _arc, _places
from workbench.figures.theme import STYLES
from workbench.replicates import combine_results


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of a pair whose tuned model does not tell the prompts apart, of one that is the base itself, pooled, and with a revived model."""
    folder = tmp_path_factory.mktemp("compiled")
    found = {"apart": circuits(compiled_pair(folder), n=20), "same": circuits(compiled_pair(folder, tuned="count_a"), n=20)}
    first = found["same"]
    found["pooled"] = combine_results([first, replace(first, provenance={**first.provenance, "seed": 1})])
    tables = dict(first.tables)
    also = tables["table"].query("one == 'base' and other == 'tuned'").assign(other="revived")
    other = tables["table"].query("one == 'base' and other == 'tuned'").assign(other="other ability", value=0.25)
    tables["table"] = pd.concat([tables["table"], also, other])
    kept = tables["faithfulness"].query("model == 'tuned'").assign(model="revived")
    both = pd.concat([tables["faithfulness"], kept])
    tables["faithfulness"] = both.assign(value=both["value"].where(both["circuit"] != "base", 0.5))
    found["revived"] = replace(first, tables=tables)
    return found


def panel(fig, axis):
    return [t for t in fig.data if t.xaxis == axis and t.name and t.mode == "lines+markers"]


@pytest.mark.parametrize("which", ["same", "pooled", "apart", "revived"])
def test_every_kind_of_result_is_drawn(results, which):
    given = results[which]
    before = {name: table.copy() for name, table in given.tables.items()}
    fig = figure(given)
    for name, table in given.tables.items():
        pd.testing.assert_frame_equal(table, before[name])
    assert has_builder("circuits")
    titles = [a.text for a in fig.layout.annotations]
    assert titles[:2] == ["edges", "nodes (heads and MLPs)"]
    assert ("seed 0" in titles[-1]) == (which == "pooled")
    assert ("none of the fine-tuned model" in titles[-1]) == (which == "apart")
    names = [t.name for t in fig.data if t.showlegend is not False and t.name]
    assert len(names) == len(set(names))


def test_lines_hold_the_tables(results):
    given = results["revived"]
    fig = figure(given)
    shared = {t.name: t for t in panel(fig, "x")}
    rows = given.table.query("kind == 'edges' and one == 'base' and other == 'other ability'")
    assert list(shared["base, other ability"].y) == list(rows["value"])
    assert set(shared) == {"random", "base, other ability", "revived", "fine-tuned", "base"}
    assert shared["base"].line.color == STYLES["base"].color
    kept = {t.name: t for t in panel(fig, "x3")}
    own = given.tables["faithfulness"].query("kind == 'edges' and model == 'base' and circuit == 'own'")
    assert list(kept["base"].y) == list(own["value"])
    assert {"fine-tuned, base's edges", "revived, base's edges"} < set(kept)
    nodes = {t.name: t for t in panel(fig, "x4")}
    own = given.tables["faithfulness"].query("kind == 'nodes' and model == 'tuned' and circuit == 'base'")
    assert list(nodes["fine-tuned, base's edges"].y) == list(own["value"])


def test_a_model_without_a_circuit_has_no_line(results):
    fig = figure(results["apart"])
    assert "fine-tuned" not in {t.name for t in (*panel(fig, "x"), *panel(fig, "x3"))}
    assert "not defined" not in alt(results["apart"])
    assert "Jaccard" not in alt(results["apart"])


@pytest.mark.parametrize(("which", "change"), [("same", "stayed"), ("apart", "went")])
def test_an_arc_for_every_edge_in_the_colour_of_what_became_of_it(results, which, change):
    given = results[which]
    fig = figure(given)
    arcs = {t.legendgroup: t for t in fig.data if t.xaxis == "x5" and t.mode == "lines"}
    for name, (_, color) in CHANGES.items():
        count = np.isnan(np.asarray(arcs[name].x, dtype=float)).sum()
        assert arcs[name].line.color == color
        assert arcs[name].showlegend == (name == change)
        assert count == (len(given.tables["circuit"]) if name == change else 1)
    (marks,) = (t for t in fig.data if t.xaxis == "x5" and t.mode == "markers+text")
    assert list(marks.customdata)[:3] == ["embedding", "block 1 head 1", "block 1 MLP"]


def test_arcs_begin_and_end_at_their_components_and_pass_clear_of_others():
    names = ["embedding", *(f"head 0.{h}" for h in range(4)), "mlp 0", *(f"head 1.{h}" for h in range(4)), "mlp 1", "logits"]
    places = _places(names)
    assert [places[n][0] for n in ("embedding", "head 0.3", "mlp 0", "logits")] == [0, 1, 2, 5]
    nodes = np.array(list(places.values()))
    for sender, receiver in itertools.combinations(names, 2):
        start, end = places[sender], places[receiver]
        if start[0] == end[0]:
            continue
        arc = _arc(start, end, nodes)
        assert np.allclose(arc[[0, -1]], [start, end])
        passed = [n for n in nodes if start[0] < n[0] < end[0]]
        assert all(abs(np.interp(n[0], arc[:, 0], arc[:, 1]) - n[1]) > 0.08 for n in passed), (sender, receiver)
        if not passed:
            assert np.allclose(arc[10], (start + end) / 2)  # straight


@pytest.mark.parametrize("which", ["same", "pooled", "apart"])
def test_alt_says_numbers(results, which):
    said = alt(results[which])
    assert said.endswith(".")
    assert "counting a" in said
    assert sum(c.isdigit() for c in said) >= 4
