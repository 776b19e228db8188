"""Figures of activation and path patching, drawn from results of small models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from analyses.compiled_pair import compiled_pair

from workbench.analyses import patching, path_patching
from workbench.figures import alt, figure, has_builder
from workbench.figures.patching import component
from workbench.figures.theme import STYLES
from workbench.replicates import combine_results

BOTH = pytest.mark.parametrize("name", ["patching", "path_patching"])


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of a pair whose tuned model does not tell the prompts apart, and of one that is the base itself."""
    folder = tmp_path_factory.mktemp("compiled")
    apart, same = compiled_pair(folder), compiled_pair(folder, tuned="count_a")
    analyses = {"patching": patching, "path_patching": path_patching}
    found = {
        (name, which): analyses[name](pair, n=30) for name in analyses for which, pair in (("apart", apart), ("same", same))
    }
    for name in analyses:
        first = found[name, "same"]
        second = replace(first, provenance={**first.provenance, "seed": 1})
        found[name, "pooled"] = combine_results([first, second])
        table, changed = first.tables["table"], first.tables["changed"]
        revived = [t[t["model"] == "base"].assign(model="revived") for t in (table, changed)]
        tables = {"table": pd.concat([table, revived[0]]), "changed": pd.concat([changed, revived[1]])}
        found[name, "revived"] = replace(first, tables={**first.tables, **tables})
    return found


def heats(fig):
    return [trace for trace in fig.data if trace.type == "heatmap"]


@BOTH
@pytest.mark.parametrize(("which", "maps"), [("same", 3), ("pooled", 3), ("revived", 4)])
def test_a_map_per_model_on_locked_scales(results, name, which, maps):
    given = results[name, which]
    before = {key: table.copy() for key, table in given.tables.items()}
    fig = figure(given)
    for key, table in given.tables.items():
        pd.testing.assert_frame_equal(table, before[key])
    assert [t.coloraxis for t in heats(fig)] == ["coloraxis", "coloraxis", "coloraxis2", "coloraxis"][:maps]
    for axis in (fig.layout.coloraxis, fig.layout.coloraxis2):
        assert axis.cmin == -axis.cmax
        assert axis.colorscale[1][1].endswith(",0)")  # no effect is the page itself
    assert fig.layout.coloraxis.cmax == 1  # 1.0 and some rounding need no scale to 2
    titles = [a.text for a in fig.layout.annotations]
    assert titles[: 4 if maps == 4 else 3] == ["base", "fine-tuned", "fine-tuned minus base", "revived"][:maps]
    assert "seed" in fig.layout.title.subtitle.text
    assert has_builder(name)


@BOTH
def test_cells_hold_the_table(results, name):
    given = results[name, "same"]
    base = heats(figure(given))[0]
    rows = given.table[given.table["model"] == "base"]
    rows = rows[rows["method"] == "patched"] if "method" in rows else rows
    finite = np.asarray(base.z, dtype=float)
    finite = finite[np.isfinite(finite)]
    assert np.allclose(np.sort(finite), np.sort(rows["value"].dropna()))
    assert "changed in 100% of the prompts" in str(np.asarray(base.text).ravel().tolist())


@BOTH
def test_a_patch_that_changes_nothing_is_crossed(results, name):
    given = results[name, "same"]
    fig = figure(given)
    crosses = next(t for t in fig.data if t.name == "the patch changes nothing")
    z = np.asarray(heats(fig)[0].z, dtype=float)
    assert len(crosses.x) > 0
    assert all(np.isnan(z[y, x]) for x, y in zip(crosses.x, crosses.y, strict=True))


@BOTH
def test_effects_that_are_undefined_say_so(results, name):
    fig = figure(results[name, "apart"])
    assert sum(a.text.startswith("undefined") for a in fig.layout.annotations) == 2
    assert not np.isfinite(np.asarray(heats(fig)[1].z, dtype=float)).any()
    assert "not defined" in alt(results[name, "apart"])


def test_estimates_are_drawn_over_exact_effects(results):
    given = results["patching", "same"]
    fig = figure(given)
    (marks,) = (t for t in fig.data if t.name and t.name.startswith("base model, rank correlation"))
    rows = given.table[given.table["model"] == "base"]
    assert np.allclose(marks.x, rows[rows["method"] == "patched"]["value"], equal_nan=True)
    assert np.allclose(marks.y, rows[rows["method"] == "first_order"]["value"], equal_nan=True)
    assert marks.marker.color == STYLES["base"].color


def test_receivers_stand_in_the_order_of_the_computation(results):
    fig = figure(results["path_patching", "same"])
    assert list(fig.layout.xaxis.ticktext) == [
        "block 1 head 1",
        "block 1 MLP",
        "block 2 head 1",
        "block 2 MLP",
        "block 3 head 1",
        "block 3 MLP",
        "logits",
    ]
    assert fig.layout.yaxis.ticktext[0] == "embedding"


def test_names_count_from_one():
    assert [component(n) for n in ("head 1.3", "mlp 0", "stream 0", "attention 2", "logits")] == [
        "block 2 head 4",
        "block 1 MLP",
        "block 1 stream in",
        "block 3 attention",
        "logits",
    ]


@BOTH
@pytest.mark.parametrize("which", ["same", "pooled", "apart"])
def test_alt_says_numbers(results, name, which):
    said = alt(results[name, which])
    assert said.endswith(".")
    assert "counting a" in said
    assert sum(c.isdigit() for c in said) >= 4
