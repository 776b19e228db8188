"""A study of many pairs as tables and contrasts, on numbers that are known functions of the axes."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.apps.fake_store import N
from tests.paper.fake_grid import SPEC, fake_grid, name, said
from workbench.errors import UserError
from workbench.paper.grid import AXES, Grid, named
from workbench.results import Metric, Result
from workbench.runs import Store
from workbench.studies.handle import Study
from workbench.studies.loading import load_study, parse_study

CORE = [(start, rate, share) for start in ("p99", "p5") for rate in (1e-3, 1e-4) for share in (0.0, 1.0)]


def test_every_pair_has_its_place_on_the_axes(grid):
    assert list(grid.axes.columns) == list(AXES)
    rows = {row["pair"]: row for row in grid.axes.to_dict("records")}
    assert set(rows) == {*(name(*cell) for cell in CORE), "short"}
    for start, rate, share in CORE:
        row = rows[name(start, rate, share)]
        assert row["prior"] == {"p99": 0.99, "p5": 0.5}[start]
        assert (row["rate"], row["rate_name"]) == (rate, {1e-3: "large", 1e-4: "medium"}[rate])
        assert (row["share"], row["pretrain_steps"], row["pretraining_share"]) == (share, 100, 0.0)
        assert row["protocol"] == "single_operand"
        assert row["length"] == "standard"
    assert (rows["short"]["pretrain_steps"], rows["short"]["length"], rows["short"]["share"]) == (50, "shorter", 1.0)


def test_an_axis_that_does_not_apply_is_nan(tmp_path):
    finetune = {"plain": {"from": "p99", "capability": "count_b", "steps": 5, "lr": 1e-3}}
    pretrain = {**SPEC["pretrain"], "p99": {"steps": 100, "lr": 3e-3}}  # the task's own prior, whatever it is
    body = {**SPEC, "pretrain": pretrain, "finetune": finetune, "revive": None, "analyses": []}
    (row,) = Grid(Study(parse_study(body), Store(tmp_path))).axes.to_dict("records")
    assert math.isnan(row["share"])
    assert math.isnan(row["prior"])
    assert row["rate_name"] == "the only"


def test_share_of_pretraining_data_is_an_axis(tmp_path):
    axes = Grid(Study(load_study("mixing"), Store(tmp_path))).axes
    assert sorted(set(axes["pretraining_share"])) == [0.0, 0.001, 0.1, 0.5]
    assert set(axes["protocol"]) == {"mixed"}


def test_rates_beyond_the_named_ones_are_called_by_their_value(tmp_path):
    rates = [1e-2, 1e-3, 1e-4, 1e-5, 1e-6]
    tuned = {"grid": {"lr": rates}, "from": "p99", "capability": "count_b", "steps": 5}
    body = {**SPEC, "finetune": {"tuned": tuned}, "revive": None, "analyses": []}
    axes = Grid(Study(parse_study(body), Store(tmp_path))).axes
    assert list(axes["rate_name"]) == ["large", "medium", "small", "very small", "1e-06"]


@pytest.mark.slow
def test_the_standard_length_of_pretraining_is_that_of_most_pairs_of_a_prior(tmp_path):
    """An operand that is seen half as often takes twice the steps to be learned."""
    axes = Grid(Study(load_study("grid_counting", seeds=[0]), Store(tmp_path))).axes.set_index("pair")
    assert set(axes[axes["prior"] == 0.5]["length"]) == {"standard"}
    assert axes["pretrain_steps"]["core,from=p5,lr=0.001,share=0.0"] > axes["pretrain_steps"]["core,from=p9,lr=0.001,share=0.0"]
    assert (axes["length"]["around,from=p99_short"], axes["length"]["around,from=p99_long"]) == ("shorter", "longer")
    paper = Grid(Study(load_study("grid_counting_paper", seeds=[0]), Store(tmp_path)), "paper").axes
    assert set(paper[paper["length"] == "standard"]["pretrain_steps"]) == {200_000}  # as many pairs have each length


def test_rates_in_words_say_what_a_name_means(grid):
    assert grid.rates(grid.where()) == "fine-tuning rates large 0.001, medium 0.0001"
    assert grid.rates(["short"]) == "fine-tuning rate large 0.001"


def test_where_finds_pairs_by_value_or_by_any_of_several(grid):
    assert grid.where(prior=0.5, share=1.0, rate=1e-4) == [name("p5", 1e-4, 1.0)]
    assert grid.where(prior=[0.5], share=1.0) == [name("p5", rate, 1.0) for rate in (1e-3, 1e-4)]
    assert grid.where(pretrain_steps=50) == ["short"]
    assert len(grid.where(prior=[0.5, 0.99])) == 9
    assert len(grid.where()) == 9
    assert grid.where(prior=0.7) == []
    assert grid.where(prior=["low", 0.5]) == grid.where(prior=[0.99, 0.5])
    assert Grid(grid.study, "paper").where(prior="low") == []  # .999 there
    assert len(Grid(grid.study, "paper").where(prior="high")) == 4


def test_stacked_tables_carry_the_axes_and_keep_the_share_of_the_test_texts(grid):
    rows = grid.stacked("behaviour", "endpoints")
    assert set(rows["pair"]) == set(grid.axes["pair"])
    tuned = rows[(rows["model"] == "tuned") & (rows["role"] == "ft") & (rows["share"] == 0.0)]
    assert len(tuned) == 9
    for row in tuned.to_dict("records"):
        axes = grid.axes[grid.axes["pair"] == row["pair"]].iloc[0]
        assert (row["c_tr"], row["prior"], row["rate"]) == (axes["share"], axes["prior"], axes["rate"])
        expected = np.mean([said(row["prior"], row["rate"], row["c_tr"], seed=seed)["tuned_ft"] for seed in (0, 1)])
        assert row["value"] == pytest.approx(expected, abs=0.5 / N)
        assert (row["n"], row["seeds"]) == (2 * N, 2)
    assert set(grid.stacked("behaviour", pairs=["short"])["pair"]) == {"short"}


@pytest.mark.slow
def test_stacked_leaves_out_pairs_that_are_not_done(without):
    gone = name("p99", 1e-3, 0.0)
    grid = without(lambda pair, analysis: pair.name == gone and analysis == "pruning")
    assert set(grid.stacked("pruning")["pair"]) == set(grid.axes["pair"]) - {gone}
    assert gone in set(grid.stacked("behaviour")["pair"])
    assert grid.stacked("pruning", pairs=[gone]).empty
    assert grid.stacked("pruning", "no such table").empty


def test_seeds_are_those_that_are_done(without, grid):
    assert grid.seeds("behaviour") == [0, 1]
    half = without(lambda pair, analysis: analysis == "behaviour" and pair.seed == 1)
    assert half.seeds("behaviour") == [0]
    assert half.seeds("pruning") == [0, 1]
    assert half.seeds("behaviour", []) == []


def test_the_mean_of_a_number_over_pairs(grid):
    plus = [name("p5", rate, 0.0) for rate in (1e-3, 1e-4)]
    found = grid.contrast("behaviour", named("tuned_ft"), plus)
    assert found.interval.value == pytest.approx(np.mean([0.9, 0.8, 0.92, 0.82]))  # two rates, two seeds
    assert found.interval.low < found.interval.value < found.interval.high
    assert (found.n, len(found.by_seed)) == (N, 2)


def test_a_difference_of_means(grid):
    found = grid.contrast(
        "behaviour", named("tuned_ft"), [name("p99", 1e-3, 0.0)], [name("p99", 1e-3, 1.0), name("p5", 1e-3, 1.0)]
    )
    assert found.interval.value == pytest.approx(0.85 - np.mean([0.05, 0.7]))


def test_a_ratio_of_geometric_means(grid):
    high, low = ([name(start, rate, 1.0) for rate in (1e-3, 1e-4)] for start in ("p5", "p99"))
    found = grid.contrast("revival", named("steps_revived"), high, low, "geometric")
    assert found.interval.value == pytest.approx(10 / 40)
    alone = grid.contrast("revival", named("steps_revived"), low, pool="geometric")
    assert alone.interval.value == pytest.approx(math.sqrt(40 * 80))


def test_paired_draws_make_a_difference_narrower_than_independent_ones(study):
    grid = Grid(study)
    plus, minus = name("p5", 1e-3, 0.0), name("p5", 1e-3, 1.0)

    def shuffled(result):
        metric = named("tuned_ft")(result)
        if result.provenance["pair"] == plus:
            return metric
        draws = np.random.default_rng(3).permutation(metric.draws)
        return Metric(metric.metric, metric.value, metric.low, metric.high, metric.n, draws=tuple(draws))

    paired = grid.contrast("behaviour", named("tuned_ft"), [plus], [minus])
    apart = grid.contrast("behaviour", shuffled, [plus], [minus])
    assert paired.interval.value == pytest.approx(apart.interval.value) == pytest.approx(0.2)
    assert paired.interval.high - paired.interval.low < 0.8 * (apart.interval.high - apart.interval.low)


@pytest.fixture(scope="module")
def pretended(tmp_path_factory):
    """A grid of one seed whose pairs' results are single numbers."""
    one = Study(parse_study({**SPEC, "seeds": [0]}), Store(tmp_path_factory.mktemp("pretended")))

    def make(**metrics):
        return Grid(
            one,
            read_results={(n, "any", 0): Result("any", {}, (metric,)) for n, metric in metrics.items()}
            | {(n, "behaviour", 0): None for n in metrics},
        )

    return make


@settings(max_examples=25, deadline=None)
@given(values=st.lists(st.floats(0.1, 5), min_size=4, max_size=4), seed=st.integers(0, 99))
def test_a_contrast_is_its_naive_twin(pretended, values, seed):
    draws = np.abs(np.array(values)[:, None] + 0.1 * np.random.default_rng(seed).standard_normal((4, 101))) + 0.01
    metrics = (Metric("m", v, v, v, 50, draws=tuple(d)) for v, d in zip(values, draws.tolist(), strict=True))
    grid = pretended(**dict(zip("abcd", metrics, strict=True)))
    found = grid.contrast("any", named("m"), ["a", "b"], ["c", "d"])
    naive = [(a + b) / 2 - (c + d) / 2 for a, b, c, d in draws.T]
    assert found.interval.value == pytest.approx((values[0] + values[1]) / 2 - (values[2] + values[3]) / 2)
    assert (found.interval.low, found.interval.high) == pytest.approx(tuple(np.percentile(naive, [2.5, 97.5])))
    found = grid.contrast("any", named("m"), ["a", "b"], ["c", "d"], "geometric")
    naive = [math.sqrt(a * b) / math.sqrt(c * d) for a, b, c, d in draws.T]
    assert found.interval.value == pytest.approx(math.sqrt(values[0] * values[1]) / math.sqrt(values[2] * values[3]))
    assert (found.interval.low, found.interval.high) == pytest.approx(tuple(np.percentile(naive, [2.5, 97.5])))


def test_a_number_without_draws_is_a_constant(pretended):
    grid = pretended(a=Metric("m", 3.0, 3.0, 3.0, 9), b=Metric("m", 1.0, 0.0, 2.0, 7, draws=(0.5, 1.5)))
    found = grid.contrast("any", named("m"), ["a"], ["b"])
    assert (found.interval.value, found.n, found.by_seed) == (2.0, 7, (2.0,))
    assert 1.5 <= found.interval.low < found.interval.high <= 2.5


def test_only_seeds_count_in_which_all_pairs_are_measured(without):
    gone = name("p5", 1e-3, 0.0)
    grid = without(lambda pair, analysis: pair.name == gone and pair.seed == 0)
    found = grid.contrast("behaviour", named("tuned_ft"), [gone, name("p5", 1e-4, 0.0)])
    assert len(found.by_seed) == 1
    assert found.interval.value == pytest.approx((0.92 + 0.82) / 2)


def test_an_undone_pair_is_the_users_to_mend(without):
    gone = name("p5", 1e-3, 0.0)
    grid = without(lambda pair, analysis: pair.name == gone)
    with pytest.raises(UserError, match=r"behaviour of core,from=p5,lr=0.001,share=0.0; short is not done for any seed; run"):
        grid.contrast("behaviour", named("tuned_ft"), [gone], ["short"])
    with pytest.raises(UserError, match="is not done for any seed"):
        grid.contrast("behaviour", named("no_such_number"), ["short"])


@pytest.mark.parametrize(("plus", "minus"), [([], None), (["short"], []), ([], ["short"])])
def test_a_side_without_pairs_is_no_mean_of_the_other(grid, plus, minus):
    """A study that lacks the cells to compare with must not pass off one side as the difference."""
    with pytest.raises(UserError, match="'small_grid' has no pairs of the kind that is compared"):
        grid.contrast("behaviour", named("tuned_ft"), plus, minus)


def test_a_result_is_read_once(study, monkeypatch):
    asked: list[object] = []
    honest = Study.result

    def counted(self, *words):
        asked.append(words)
        return honest(self, *words)

    monkeypatch.setattr(Study, "result", counted)
    grid = Grid(study)
    first = grid.stacked("behaviour", pairs=["short"])
    pd.testing.assert_frame_equal(grid.stacked("behaviour", pairs=["short"]), first)
    assert len(asked) == 1


def test_the_fake_writes_only_what_it_is_told(tmp_path):
    study = fake_grid(tmp_path, done=lambda pair, analysis: pair.name == "short" and analysis == "probing")
    assert Grid(study).stacked("behaviour").empty
    assert set(Grid(study).stacked("probing")["pair"]) == {"short"}
