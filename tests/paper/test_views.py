"""Small multiples: which panel, line and look every number gets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tests.apps.fake_store import N
from tests.paper.fake_grid import SPEC, fake_grid, said
from workbench.figures.tables import select
from workbench.paper.grid import Grid
from workbench.paper.views import LEVELS, TIDY, View, placed, tidy
from workbench.studies.loading import parse_study

pytestmark = pytest.mark.slow

READS = ("accuracy", "pruning", "probing", "revival", "ends")


def mean_of(key, prior, rate, share, **more):
    """The invented number, over both seeds."""
    return pytest.approx(np.mean([said(prior, rate, share, seed=seed, **more)[key] for seed in (0, 1)]), abs=0.5 / N)


@pytest.mark.parametrize("reads", READS)
def test_every_view_is_tidy_with_one_value_per_point(grid, reads):
    rows = {"pruning": ("rate_name", "c_tr"), "probing": ("rate_name", "c_tr"), "ends": ("rate_name", "c_tr")}
    rows = {"accuracy": ("rate_name", "share"), "revival": ("rate_name", "reverse_rate"), **rows}
    table, levels, _ = tidy(grid, View(reads, role="pt", rows=rows[reads]))
    assert list(table.columns) == list(TIDY)
    assert list(levels.columns) == list(LEVELS)
    assert len(table)
    assert not table.duplicated(["column", "row", "line", "x"]).any()
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()
    assert set(table["seeds"]) == {2}


@pytest.mark.parametrize("reads", READS)
def test_a_view_of_what_is_not_done_is_empty(tmp_path, reads):
    study = fake_grid(tmp_path, done=lambda pair, analysis: False)
    table, levels, _ = tidy(Grid(study), View(reads))
    assert table.empty
    assert levels.empty
    assert list(table.columns) == list(TIDY)


def test_accuracy_has_a_panel_per_prior_and_rate_and_kind_of_texts(grid):
    table, levels, _ = tidy(grid, View("accuracy", {}, "ft", "c_tr", "prior", ("rate_name", "share")))
    assert list(table["column"].unique()) == ["pretraining prior 0.99", "pretraining prior 0.5"]
    rows = [f"{rate} rate, {texts} texts" for rate in ("large", "medium") for texts in ("uncorrelated", "correlated")]
    assert list(table["row"].unique()) == rows
    lines = {"0 % of texts correlated": "rank 0 of 2", "100 % of texts correlated": "rank 1 of 2"}
    assert dict(zip(table["line"], table["look"], strict=True)) == lines
    panel = select(table, column="pretraining prior 0.99", row="medium rate, uncorrelated texts")
    line = select(panel, line="0 % of texts correlated").sort_values("x")
    assert list(line["x"]) == [0, 10, 20]
    assert line["value"].iloc[0] == pytest.approx(0.2)
    assert line["value"].iloc[-1] == mean_of("tuned_ft", 0.99, 1e-4, 0.0)
    assert set(line["n"]) == {2 * N}
    # One level per panel: the best guess.
    assert set(levels["value"]) == {0.3}
    panels = {(c, r) for c in table["column"].unique() for r in rows}
    assert len(levels) == len(panels) == len(set(zip(levels["column"], levels["row"], strict=True)) & panels)


def test_accuracy_shows_the_ability_that_is_asked_for(grid):
    table, *_ = tidy(grid, View("accuracy", {"prior": 0.5, "rate": 1e-3}, "pt", "c_tr", "prior", "share"))
    assert list(table["row"].unique()) == ["uncorrelated texts", "correlated texts"]
    end = select(table, x=20, row="uncorrelated texts", line="100 % of texts correlated")
    assert list(end["value"]) == [mean_of("tuned_pt", 0.5, 1e-3, 1.0)]


def test_pairs_of_another_length_of_pretraining_do_not_share_a_line(grid):
    """`short` has prior, rate and share in common with a pair of the core."""
    view = View("accuracy", {"prior": 0.99, "rate": 1e-3, "share": 1.0}, "pt", rows="share")
    assert "short" not in view.pairs(grid)
    assert tidy(grid, view).table.duplicated(["column", "row", "line", "x"]).sum() == 0
    by_length = View("accuracy", {"prior": 0.99, "rate": 1e-3, "share": 1.0}, "pt", rows=("pretrain_steps", "share"))
    table, *_ = tidy(grid, by_length)
    assert "50 pretraining steps, uncorrelated texts" in set(table["row"])
    end = select(table, x=20, row="50 pretraining steps, uncorrelated texts")
    assert list(end["value"]) == [mean_of("tuned_pt", 0.99, 1e-3, 1.0, short=True)]
    assert View("accuracy", {"pretrain_steps": 50}).pairs(grid) == ["short"]
    assert "short" in View("accuracy", lines="pretrain_steps").pairs(grid)


def test_pruning_shows_both_abilities_over_random_units(grid):
    table, levels, _ = tidy(grid, View("pruning", {"prior": 0.99, "rate": 1e-3}, columns="c_tr", rows="prior"))
    assert levels.empty
    panel = select(table, column="100 % of texts correlated")
    looks = dict(zip(panel["line"], panel["look"], strict=True))
    assert list(looks.items()) == [
        ("as many random units (range over orders)", "random"),  # first, so that it lies behind
        ("counting b (fine-tuned ability), uncorrelated texts", "ft thin"),
        ("counting b (fine-tuned ability), correlated texts", "ft"),
        ("counting a (pretraining ability), uncorrelated texts", "pt"),
    ]
    random = select(panel, look="random", x=10).iloc[0]
    assert (random["value"], random["low"], random["high"]) == pytest.approx((0.1, 0.05, 0.15))  # mean and range of 3 orders
    assert list(select(panel, look="pt", x=10)["value"]) == [mean_of("pruned_pt", 0.99, 1e-3, 1.0)]
    assert list(select(panel, look="pt", x=0)["value"]) == [mean_of("tuned_pt", 0.99, 1e-3, 1.0)]


def test_random_units_are_drawn_where_all_seeds_have_them(study):
    """Each seed has random units at sizes of its own; one seed's point on the line of two would show the seeds."""
    grid = Grid(study)
    for pair in grid.axes["pair"]:
        result = grid._result(pair, "pruning")
        table = result.table
        alone = table[(table["draw"] > 0) & (table["k"] == 10)].assign(k=5, seeds=1, value=0.9)
        grid.read_results[pair, "pruning", None] = replace(result, tables={**result.tables, "table": pd.concat([table, alone])})
    table, *_ = tidy(grid, View("pruning", {"prior": 0.99, "rate": 1e-3}, columns="c_tr", rows="prior"))
    assert set(select(table, look="random")["x"]) == {10}


def test_probing_shows_controls_first_and_true_labels_only(grid):
    table, *_ = tidy(grid, View("probing", {"prior": 0.99, "rate": 1e-3}, "pt", columns="c_tr"))
    panel = select(table, column="0 % of texts correlated", x=1)
    assert list(zip(panel["line"], panel["look"], strict=True)) == [
        ("never had it", "never_had_it"),
        ("untrained (random weights)", "untrained"),
        ("base", "base"),
        ("fine-tuned", "tuned"),
    ]
    assert list(panel["value"]) == pytest.approx([0.6, 0.5, 0.95, 0.55])


def test_revival_has_an_axis_of_reverse_rates_and_its_controls_behind(grid):
    table, levels, _ = tidy(grid, View("revival", {"rate": 1e-3}, columns="prior", rows="reverse_rate"))
    assert list(table["row"].unique()) == ["reverse rate 5e-05", "reverse rate 0.0005"]
    panel = select(table, column="pretraining prior 0.99", row="reverse rate 5e-05")
    assert list(panel["look"].unique()) == ["scratch", "never_had_it", "rank 0 of 2", "rank 1 of 2"]
    assert not panel["line"].str.contains("irrelevant").any()
    tuned = select(panel, line="100 % of texts correlated", x=40)
    assert list(tuned["value"]) == pytest.approx([(1.0 + 0.1) / 2])  # seed 0 arrives at 40 steps, seed 1 at 80
    assert list(select(panel, look="never_had_it", x=160)["value"]) == [1.0]
    faster = select(table, column="pretraining prior 0.99", row="reverse rate 0.0005")
    assert list(select(faster, look="never_had_it", x=40)["value"]) == [1.0]  # a fifth of 160 steps
    assert set(levels["value"]) == {0.95}
    assert set(zip(levels["column"], levels["row"], strict=True)) == set(zip(table["column"], table["row"], strict=True))


def test_panels_come_in_the_order_of_their_axes_whatever_the_first_of_them_lacks(without):
    """Only the smaller rate is there for the first prior: the larger one comes first nevertheless."""
    grid = without(lambda pair, analysis: "from=p99,lr=0.001" in pair.name or pair.name == "short")
    panels = tidy(grid, View("pruning", {"share": 1.0}, columns="prior", rows="rate_name")).panels
    assert panels == {"columns": ["pretraining prior 0.99", "pretraining prior 0.5"], "rows": ["large rate", "medium rate"]}


def test_a_rate_at_which_nothing_was_revived_has_no_panel(grid):
    table, *_ = tidy(grid, View("revival", {"rate": 1e-4}, columns="prior", rows="reverse_rate"))
    assert set(table["row"]) == {"reverse rate 5e-05"}  # 5e-4 is no reverse rate of what was tuned at 1e-4


def test_ends_stand_before_and_after_fine_tuning(grid):
    table, *_ = tidy(grid, View("ends", {"prior": 0.99, "rate": 1e-3, "share": 0.0}, columns="prior", rows="rate_name"))
    assert set(table["x"]) == {0.0, 1.0}
    looks = dict(zip(table["line"], table["look"], strict=True))
    assert looks == {"counting a": "pt", "counting b": "ft", "token": "other 2"}
    assert list(select(table, line="counting a", x=0.0)["value"]) == [1.0]
    assert list(select(table, line="counting b", x=1.0)["value"]) == [mean_of("tuned_ft", 0.99, 1e-3, 0.0)]
    assert list(select(table, line="token", x=1.0)["value"]) == [0.5]


def test_lines_are_coloured_in_the_order_of_their_axis(grid):
    table, *_ = tidy(grid, View("accuracy", {"share": 0.0}, "ft", "rate_name", "prior", "share"))
    looks = dict(zip(table["line"], table["look"], strict=True))
    assert looks == {"large rate": "rank 0 of 2", "medium rate": "rank 1 of 2"}
    table, *_ = tidy(grid, View("accuracy", {"share": 0.0}, "ft", "prior", "rate_name", "share"))
    assert dict(zip(table["line"], table["look"], strict=True)) == {
        "pretraining prior 0.99": "rank 0 of 2",
        "pretraining prior 0.5": "rank 1 of 2",
    }


@pytest.fixture(scope="module")
def partly_plain(tmp_path_factory):
    """Two pairs without a correlation beside one with: an axis that is NaN for some."""
    plain = {"grid": {"from": ["p99", "p5"]}, "capability": "count_b", "steps": 20, "lr": 1e-3}
    related = {**plain, "correlation": {"with": "count_a", "offset": 1, "share": 1.0}}
    body = {**SPEC, "seeds": [0], "finetune": {"plain": plain, "related": related}}
    return Grid(fake_grid(tmp_path_factory.mktemp("plain"), parse_study(body)))


def test_an_axis_that_does_not_apply_is_a_line_and_a_panel_of_its_own(partly_plain):
    table, *_ = tidy(partly_plain, View("revival", columns="prior", rows="reverse_rate"))
    looks = {line: look for line, look in zip(table["line"], table["look"], strict=True) if look.startswith("rank")}
    assert looks == {"100 % of texts correlated": "rank 0 of 2", "no correlation in training": "rank 1 of 2"}
    table, *_ = tidy(partly_plain, View("probing", role="pt", columns="c_tr", rows="prior"))
    assert list(table["column"].unique()) == ["100 % of texts correlated", "no correlation in training"]


def test_without_axes_there_is_one_panel(partly_plain):
    table, *_ = tidy(partly_plain, View("probing", {"share": 1.0, "prior": 0.5}, "pt", columns=(), rows=()))
    assert set(table["column"]) == set(table["row"]) == {""}


def test_rows_of_axes_are_placed_as_their_panels_are():
    rows = pd.DataFrame({"prior": [0.99], "rate_name": ["medium"], "share": [1.0], "c_tr": [0.5], "value": [0.7]})
    placed_at = placed(rows, View("accuracy", rows=("rate_name", "share"))).iloc[0]
    assert placed_at["column"] == "pretraining prior 0.99"
    assert placed_at["row"] == "medium rate, correlated texts"
    assert placed_at["line"] == "50 % of texts correlated"
