"""From an entry of the catalogue and a study to a result: what it holds, what it rests on, and when it cannot be made."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tests.apps.fake_store import N, correct, write
from tests.paper.fake_grid import SPEC, fake_grid, name, said
from workbench.errors import UserError
from workbench.figures.tables import select
from workbench.measures import proportion_row
from workbench.paper.catalogue import Labels, OfPair, Reproduction, Samples, Table, get
from workbench.paper.redo import redo
from workbench.paper.views import View
from workbench.results import Metric, Result
from workbench.runs import Store
from workbench.studies.handle import Study
from workbench.studies.loading import load_study, parse_study

pytestmark = pytest.mark.slow

COUNTER = "table5_counter_200K"
ACCURACY = Reproduction("acc", "Accuracy", "small_grid", View("accuracy", role="ft", rows=("rate_name", "share")), COUNTER)
PRUNING = Reproduction("pru", "Pruning", "small_grid", View("pruning", columns="c_tr", rows=("prior", "rate_name")))
TABLE = Reproduction("tab", "Table", "small_grid", Table(COUNTER))
SHORTER = Reproduction("tab-short", "Shorter", "small_grid", Table("table6_counter_50K"))
OF_PAIR = Reproduction("one", "One pair", "small_grid", OfPair("pruning", {"prior": [0.5], "share": [1.0]}))
LABELS = Reproduction("labels", "Labels", "small_grid", Labels("count_b", "count_a"))
SAMPLES = Reproduction("samples", "Prompts", "small_grid", Samples("count_a"))


@pytest.fixture(scope="module")
def nothing(tmp_path_factory):
    return fake_grid(tmp_path_factory.mktemp("nothing"), done=lambda pair, analysis: False)


@pytest.mark.parametrize("entry", [ACCURACY, PRUNING, TABLE, OF_PAIR, LABELS, SAMPLES], ids=lambda entry: entry.name)
def test_a_result_says_which_figure_of_which_study_at_which_scale(study, entry):
    result = redo(entry, study)
    assert result.provenance["figure"] == entry.name
    assert (result.provenance["study"], result.provenance["scale"]) == ("small_grid", "cpu")
    assert list(result.provenance["seeds"]) == ([0] if entry in (LABELS, SAMPLES) else [0, 1])
    assert result.settings["title"] == entry.title
    assert len(result.table)


@pytest.mark.parametrize("entry", [ACCURACY, PRUNING, TABLE, SHORTER, OF_PAIR], ids=lambda entry: entry.name)
def test_with_nothing_done_the_command_is_named(nothing, entry):
    with pytest.raises(
        UserError,
        match=rf"the study 'small_grid', .*; run `workbench reproduce {entry.name}` without --no-run",
    ):
        redo(entry, nothing)


@pytest.mark.parametrize("entry", [LABELS, SAMPLES], ids=lambda entry: entry.name)
def test_texts_need_no_models(nothing, entry):
    assert len(redo(entry, nothing).table)


def test_the_headline_of_a_view_is_where_its_lines_end(study):
    result = redo(ACCURACY, study)
    assert len(result.headline) == 2 * 2 * 2 * 2  # priors, rates, kinds of texts, shares
    found = result.metric("large rate, uncorrelated texts; pretraining prior 0.5; 100 % of texts correlated")
    assert found.value == pytest.approx(0.5 * (0.7 + 0.72))
    assert found.low < found.value < found.high
    assert (found.n, found.seeds, found.unit) == (N, 2, "accuracy")
    assert any("right end" in limit for limit in result.limits)
    assert any("2 blocks of width 16, not the paper's 6 of 192" in limit for limit in result.limits)


def test_the_seeds_of_a_view_are_those_that_are_done(without):
    grid = without(lambda pair, analysis: pair.seed == 1)
    result = redo(ACCURACY, grid.study)
    assert result.provenance["seeds"] == [0]
    assert {m.seeds for m in result.headline} == {1}
    assert {m.n for m in result.headline} == {N}


def test_printed_values_stand_where_prior_rate_and_share_are_the_papers(study):
    marks = redo(ACCURACY, study).tables["paper"]
    # .99 stands for the low prior .999, .5 for itself; both rates and both shares were printed; two kinds of texts.
    assert len(marks) == 2 * 2 * 2 * 2
    place = {"column": "pretraining prior 0.99", "row": "medium rate, uncorrelated texts", "line": "0 % of texts correlated"}
    (mark,) = select(marks, **place).to_dict("records")
    assert mark["value"] == pytest.approx(0.998)  # Tab 5: 1e-5, .999, C = 0, O_FT at C_Te = 0 after 10K
    assert mark["look"] == "rank 0 of 2"  # that of its line
    place = {"column": "pretraining prior 0.5", "row": "large rate, correlated texts", "line": "100 % of texts correlated"}
    assert list(select(marks, **place)["value"]) == [1.0]


def test_there_are_no_marks_for_what_was_not_printed(tmp_path):
    core = SPEC["finetune"]["core"]
    pretrain = {**SPEC["pretrain"], "p5": {"operand_prior": {"a": 0.7, "b": 0.3}, "steps": 100, "lr": 3e-3}}
    grid = {"from": ["p99", "p5"], "lr": [1e-3], "correlation.share": [0.25, 1.0]}
    body = {**SPEC, "seeds": [0], "pretrain": pretrain, "finetune": {"core": {**core, "grid": grid}}}
    result = redo(ACCURACY, fake_grid(tmp_path, parse_study(body), done=lambda pair, analysis: analysis == "behaviour"))
    assert len(result.tables["paper"]) == 0  # its one rate is no rank of the paper's
    assert not any("The paper's values" in limit for limit in result.limits)
    grid = {**grid, "lr": [1e-3, 1e-4]}
    body = {**body, "finetune": {"core": {**core, "grid": grid}}}
    result = redo(ACCURACY, fake_grid(tmp_path, parse_study(body), done=lambda pair, analysis: analysis == "behaviour"))
    marks = result.tables["paper"]
    assert set(marks["column"]) == {"pretraining prior 0.99"}  # .7 was not printed
    assert set(marks["line"]) == {"100 % of texts correlated"}  # nor C = .25
    assert any("The paper's values are those of its own model" in limit for limit in result.limits)


def test_only_accuracies_have_marks(study):
    assert redo(replace(PRUNING, published=COUNTER), study).tables["paper"].empty
    assert redo(replace(ACCURACY, published=None), study).tables["paper"].empty


def test_shorter_pretraining_is_no_mark_of_the_longest(study):
    shows = View("accuracy", {"prior": 0.99, "rate": 1e-3}, "ft", rows=("pretrain_steps", "share"))
    long = redo(replace(ACCURACY, shows=shows), study).tables["paper"]
    assert not long["row"].str.contains("50 pretraining steps").any()
    short = redo(replace(ACCURACY, shows=shows, published="table6_counter_50K"), study).tables["paper"]
    assert set(short["row"]) == {"50 pretraining steps, uncorrelated texts", "50 pretraining steps, correlated texts"}


def test_a_table_has_a_line_per_cell_and_four_measures_with_the_printed_value(study):
    result = redo(TABLE, study)
    assert result.name == "paper_table"
    assert len(result.table) == 8 * 4
    assert not result.table.duplicated(["cell", "measure"]).any()
    (row,) = select(
        result.table,
        cell="medium rate, prior 0.99, C = 1",
        measure="counting b (fine-tuned ability), correlated texts",
    ).to_dict("records")
    assert row["value"] == pytest.approx(0.95)
    assert row["paper"] == pytest.approx(1.0)  # Tab 5: 1e-5, .999, C = 1
    assert (row["n"], row["seeds"], row["role"]) == (2 * N, 2, "ft")
    assert list(result.table["cell"].unique()[:2]) == ["large rate, prior 0.99, C = 0", "large rate, prior 0.99, C = 1"]


def test_the_headline_of_a_table_is_its_distance_to_the_paper(study):
    result = redo(TABLE, study)
    gaps = np.abs(result.table["value"] - result.table["paper"])
    metric = result.headline[0]
    assert metric.value == pytest.approx(gaps.mean())
    assert (metric.low, metric.high) == pytest.approx((gaps.min(), gaps.max()))
    assert metric.n == len(gaps) == 32
    assert any("ranges over cells" in limit for limit in result.limits)
    assert result.metric("median absolute difference to the paper").value == pytest.approx(gaps.median())
    held = result.metric("printed value within the interval here")
    assert held.value == pytest.approx(result.table["paper"].between(result.table["low"], result.table["high"]).mean())
    for measure, part in gaps.groupby(result.table["measure"]):
        found = result.metric(f"mean absolute difference, {measure}")
        assert (found.value, found.n) == (pytest.approx(part.mean()), len(part))


def test_a_table_of_shorter_pretraining_holds_the_shorter_pairs_alone(study):
    table = redo(SHORTER, study).table
    assert set(table["cell"]) == {"large rate, prior 0.99, C = 1"}
    (row,) = select(table, role="pt", measure="counting a (pretraining ability), uncorrelated texts").to_dict("records")
    assert row["value"] == pytest.approx(np.mean([said(0.99, 1e-3, 1.0, True, seed)["tuned_pt"] for seed in (0, 1)]))
    assert row["paper"] == pytest.approx(0.159)  # Tab 6: 1e-4, .999, C = 1, O_PT at C_Te = 0 after 10K


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        # The line `1e-1,1` of Table 3: eta = .1, C = 1, and there the columns count_... and max_..., in per cent.
        ("tab3-counter", {("pt", 0.0): 35.8, ("pt", 1.0): 0.0, ("ft", 0.0): 0.7, ("ft", 1.0): 100.0}),
        ("tab3-largest", {("pt", 0.0): 16.8, ("pt", 1.0): 0.3, ("ft", 0.0): 37.8, ("ft", 1.0): 99.6}),
    ],
)
def test_compiled_programs_stand_beside_their_own_columns_of_table_3(tmp_path, name, printed):
    entry = get(name)
    spec = load_study(entry.study, seeds=[0])
    spec = spec.model_copy(update={"revive": None, "analyses": {"behaviour": {}}})
    study = Study(spec, Store(tmp_path))
    study.save()
    for planned in study.plan.pairs:
        write(study, planned.analyses["behaviour"], ends_of(planned))
    table = select(redo(entry, study).table, cell="large rate, C = 1")
    assert {(row["role"], "uncorrelated" not in row["measure"]): row["paper"] for row in table.to_dict("records")} == {
        (role, share == 1.0): pytest.approx(value / 100) for (role, share), value in printed.items()
    }


def ends_of(planned):
    """Invented accuracies of a compiled pair, .5 throughout: what is asked is what they stand beside."""
    cells = [
        (name, role, share) for name, role in ((planned.capability, "pt"), (planned.tuned_on, "ft")) for share in (0.0, 1.0)
    ]
    rows = [
        {"model": "tuned", "capability": c, "role": role, "share": share, **proportion_row(correct(0.5))}
        for c, role, share in cells
    ]
    provenance = {"pair": planned.name, "seed": planned.seed, "capability": planned.capability, "tuned_on": planned.tuned_on}
    names = ("base_pt", "tuned_pt", "change_pt", "chance_pt", "start_ft", "tuned_ft", "tuned_ft_correlated", "chance_ft")
    headline = tuple(Metric(name, 0.5, 0.4, 0.6, N) for name in names)
    return Result("behaviour", {"endpoints": pd.DataFrame(rows)}, headline, provenance=provenance)


def test_at_the_papers_scale_only_its_own_priors_and_lengths_compare(tmp_path):
    """Nothing stands for something else there."""
    spec = load_study("grid_counting_paper", seeds=[0])
    starts = ("p999", "p99", "p7", "p5", "p999_short,steps=50000", "p5_short,steps=10000")
    shown = {
        n: t
        for n, t in spec.finetune.items()
        if t.correlation.share == 1.0 and t.start in starts and (t.lr == 1e-5 or n.startswith("core,from=p5,"))
    }
    spec = spec.model_copy(update={"finetune": shown, "revive": None, "analyses": {"behaviour": {}}})
    study = fake_grid(tmp_path, spec)
    table = redo(replace(TABLE, name="tab5"), study, "paper").table
    high = {f"{rate} rate, prior 0.5, C = 1" for rate in ("large", "medium", "small")}
    assert set(table["cell"]) == high | {f"medium rate, prior {prior}, C = 1" for prior in (0.999, 0.99, 0.7)}
    assert set(table[table["paper"].notna()]["cell"]) == high | {"medium rate, prior 0.999, C = 1"}
    shorter = redo(replace(SHORTER, name="tab6"), study, "paper").table
    assert set(shorter["cell"]) == {"medium rate, prior 0.999, C = 1"}  # of 50,000 steps, not the one of 10,000
    marks = redo(ACCURACY, study, "paper")
    assert set(marks.tables["paper"]["column"]) == {"pretraining prior 0.999", "pretraining prior 0.5"}
    assert not any("trends compare" in limit for limit in marks.limits)


def test_a_figure_of_a_pair_is_that_of_the_first_that_is_done(study, without):
    result = redo(OF_PAIR, study)
    assert (result.name, result.provenance["pair"]) == ("pruning", name("p5", 1e-3, 1.0))
    first = name("p5", 1e-3, 1.0)
    later = redo(OF_PAIR, without(lambda pair, analysis: pair.name == first).study)
    assert later.provenance["pair"] == name("p5", 1e-4, 1.0)
    assert later.metric("pruned_pt").value == pytest.approx(0.6)


def test_labels_are_shares_of_texts_with_and_without_the_correlation(study):
    result = redo(LABELS, study)
    for (share, capability), rows in result.table.groupby(["share", "capability"]):
        assert rows["value"].sum() == pytest.approx(1.0), (share, capability)
        assert (rows["low"] <= rows["value"]).all()
        assert set(rows["n"]) == {4000}
    correlated = select(result.table, share=1.0)
    a, b = (
        dict(zip(r["label"], r["value"], strict=True))
        for r in (select(correlated, capability=c) for c in ("count_a", "count_b"))
    )
    assert b == {label + 1: value for label, value in a.items()}  # b = a + 1 in every text
    apart = select(result.table, share=0.0)
    a, b = (
        dict(zip(r["label"], r["value"], strict=True)) for r in (select(apart, capability=c) for c in ("count_a", "count_b"))
    )
    assert b != {label + 1: value for label, value in a.items()}
    assert all(m.unit == "share of texts" for m in result.headline)
    assert {m.metric for m in result.headline} >= {"most frequent label of count_a, correlated texts"}


def test_prompts_are_text_with_their_answers(study):
    result = redo(SAMPLES, study)
    assert list(result.table.columns) == ["prompt", "answer"]
    for row in result.table.to_dict("records"):
        text = row["prompt"].split("SOT ")[1].split(" ")[0]
        assert int(row["answer"]) == text[-6:].count("a")


def test_entries_of_the_catalogue_are_redone(study):
    """What the catalogue holds works on any grid, here on the small one."""
    for entry in (get("fig6"), get("fig9"), get("fig26"), get("tab5"), get("tab6"), get("fig16-counting"), get("fig15")):
        assert len(redo(entry, study).table)
