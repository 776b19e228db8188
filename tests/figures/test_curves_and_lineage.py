from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from workbench.figures import curves, lineage
from workbench.figures.theme import STATES
from workbench.runs import Run


def run(key, *parents, kind="pretrain", state="done", damaged=None, stage="stage", reason=""):
    return Run(
        Path("."), "s", stage, key, kind=kind, status={"state": state, "reason": reason}, parents=parents, damaged=damaged
    )


def nodes(fig):
    return {row[0]: (x, y, t) for t in fig.data[1:] for row, x, y in zip(t.customdata, t.x, t.y, strict=True)}


def test_layers_are_longest_paths():
    places = lineage.layout({"a": (), "b": ("a",), "c": ("a", "b"), "d": ("c", "a"), "e": ("gone",)})
    assert {node: x for node, (x, _) in places.items()} == {"a": 0, "b": 1, "c": 2, "d": 3, "e": 0}
    assert len(set(places.values())) == 5


def test_kinds_share_a_column_and_its_heading():
    kinds = {"a": "pretrain", "t": "finetune", "r": "reverse", "scratch": "reverse", "x": "analyse", "y": "analyse"}
    made_from = {"t": ("a",), "r": ("t",), "x": ("a", "t"), "y": ("r",)}
    fig = lineage.graph([run(key, *made_from.get(key, ()), kind=kind) for key, kind in kinds.items()])
    assert {key: x for key, (x, _, _) in nodes(fig).items()} == {"a": 0, "t": 1, "r": 2, "scratch": 2, "x": 3, "y": 3}
    assert [(a.x, a.text) for a in fig.layout.annotations] == [
        (i, f"<b>{text}</b>") for i, text in enumerate(lineage.KINDS.values())
    ]


def test_a_cycle_is_cut_rather_than_followed():
    places = lineage.layout({"a": ("b",), "b": ("a",), "c": ("c",)})
    assert set(places) == {"a", "b", "c"}
    assert len(set(places.values())) == 3


def test_nodes_tell_kind_state_and_edges_join_parents():
    runs = [run("a"), run("b", "a", kind="finetune", state="failed"), run("c", "a", kind="odd", damaged="spec.yaml is missing")]
    fig = lineage.graph(runs)
    found = nodes(fig)
    assert set(found) == {"a", "b", "c"}
    assert found["b"][2].marker.color == STATES["failed"]
    assert found["b"][2].marker.symbol == "square"
    assert found["c"][2].marker.color == STATES["damaged"]
    edges = fig.data[0]
    assert len(edges.x) == 6
    assert (edges.x[0], edges.y[0]) == found["a"][:2]
    assert lineage.alt(runs) == "Graph of 3 runs, each joined to what it was made from: 1 done, 1 failed, 1 damaged."


def test_names_are_escaped_and_reasons_kept_short():
    fig = lineage.graph([run("a", stage="<b>x", damaged="<i>" + "long " * 100)])
    trace = fig.data[1]
    assert trace.text == ("&lt;b&gt;x",)
    assert "<i>" not in trace.customdata[0][1]
    assert len(trace.customdata[0][1]) < 100


@pytest.mark.parametrize("count", [0, 1, 200])
def test_any_number_of_runs(count):
    runs = [run(f"{i}", *([f"{i // 3}"] if i else [])) for i in range(count)]
    started = time.perf_counter()
    fig = lineage.graph(runs)
    assert time.perf_counter() - started < 5
    found = nodes(fig)
    assert len(found) == count
    assert len({place[:2] for place in found.values()}) == count
    assert all(("text" in t.mode) == (count <= lineage.LABELLED) for t in fig.data[1:])
    assert fig.layout.height <= 1000


def frame(*rows):
    return pd.DataFrame(rows, columns=["step", "split", "name", "value"])


def test_a_panel_per_metric_and_accuracies_together():
    table = frame(
        (5, "train", "loss_nats", 2.0),
        (10, "train", "loss_nats", 1.0),
        (5, "train", "gradient_norm", 0.3),
        (0, "test: count_a", "accuracy at C=0", 0.2),
        (0, "test: count_b", "accuracy at C=1", 0.4),
    )
    fig = curves.metrics(table)
    axes = [fig.layout[name].title.text for name in ("yaxis", "yaxis2", "yaxis3")]
    assert axes == ["loss (nats per token)", "gradient norm (L2)", "accuracy"]
    assert [t.name for t in fig.data if t.showlegend] == [
        "counting a, uncorrelated texts (test)",
        "counting b, correlated texts (test)",
    ]
    np.testing.assert_allclose(fig.data[0].x, np.log10([6, 11]))
    assert curves.alt(table).startswith("Training curves: loss (nats per token) from 2 to 1.00;")


def test_long_series_are_thinned_and_keep_their_extremes():
    value = np.sin(np.arange(50_000) / 700)
    value[31_415] = 9.0
    table = pd.DataFrame({"step": np.arange(50_000), "split": "train", "name": "loss_nats", "value": value})
    fig = curves.metrics(table)
    assert len(fig.data[0].x) <= curves.MOST_POINTS
    assert max(fig.data[0].y) == 9.0
    assert "thinned" in fig.layout.title.subtitle.text


def test_no_metrics_yet():
    fig = curves.metrics(frame())
    assert len(fig.data) == 0
    assert fig.layout.title.subtitle.text == "nothing was recorded yet"
    assert curves.alt(frame()) == "Training curves: nothing recorded yet."
