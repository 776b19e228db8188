from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from workbench.replicates import combine_bounds, combine_results, combine_table
from workbench.results import Evidence, Metric, Result
from workbench.statistics import (
    Crossing,
    bootstrap_crossings,
    bootstrap_mean,
    hierarchical,
    paired_difference,
    pooled,
    ratio,
    ratio_draws,
    steps_to,
    wilson,
)

RNG = np.random.default_rng


# --- Wilson


@given(n=st.integers(1, 500), data=st.data(), confidence=st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_is_scipys(n, data, confidence):
    k = data.draw(st.integers(0, n))
    low, high = wilson(k, n, confidence)
    expected = stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
    np.testing.assert_allclose([low, high], [expected.low, expected.high], atol=1e-12)
    assert low <= k / n <= high


def test_wilson_is_vectorised_and_knows_nothing_without_examples():
    low, high = wilson([[0, 5], [10, 0]], [10, 0])
    assert low.shape == high.shape == (2, 2)
    assert (low[1, 1], high[1, 1]) == (0, 1)
    assert low[0, 0] == 0
    assert high[1, 0] == 1


# --- bootstrap


def test_bootstrap_mean_has_the_closed_form_moments():
    values = RNG(0).exponential(size=400)
    draws = bootstrap_mean(values, draws=20_000, seed=1)
    sd = values.std() / np.sqrt(len(values))
    assert draws.mean() == pytest.approx(values.mean(), abs=5 * sd / np.sqrt(20_000))
    assert draws.std() == pytest.approx(sd, rel=0.03)
    np.testing.assert_array_equal(draws, bootstrap_mean(values, draws=20_000, seed=1))
    assert not np.array_equal(draws, bootstrap_mean(values, draws=20_000, seed=2))
    np.testing.assert_allclose(bootstrap_mean(values + 1, 20, 3) - bootstrap_mean(values, 20, 3), 1)


def test_one_seed_gives_its_own_percentile_interval():
    draws = RNG(0).normal(size=777)
    interval = hierarchical([draws], values=[0.5])
    np.testing.assert_allclose([interval.low, interval.high], np.quantile(draws, [0.025, 0.975]), rtol=1e-12)
    assert interval.value == 0.5
    assert hierarchical([draws]).value == pytest.approx(draws.mean())


def test_many_seeds_agree_with_normal_theory():
    rng = RNG(3)
    k, within = 60, 0.3
    means = rng.normal(2.0, 0.5, size=k)
    draws = [rng.normal(m, within, size=500) for m in means]
    interval = hierarchical(draws, n_draws=40_000, seed=1)
    centre = np.mean([d.mean() for d in draws])
    sd = np.sqrt((np.var([d.mean() for d in draws]) + np.mean([d.var() for d in draws])) / k)
    assert interval.value == pytest.approx(centre)
    assert interval.low == pytest.approx(centre - 1.96 * sd, abs=0.04 * sd)
    assert interval.high == pytest.approx(centre + 1.96 * sd, abs=0.04 * sd)
    narrow = hierarchical(draws, n_draws=40_000, seed=1, confidence=0.5)
    assert narrow.high - narrow.low == pytest.approx(2 * 0.6745 * sd, rel=0.04)


def test_geometric_pooling_is_arithmetic_on_the_log_scale():
    rng = RNG(1)
    logs = [rng.normal(m, 0.2, size=300) for m in (0.0, 0.7, 1.5)]
    a, b = hierarchical(logs, seed=5), hierarchical([np.exp(x) for x in logs], "geometric", seed=5)
    np.testing.assert_allclose(np.log([b.value, b.low, b.high]), [a.value, a.low, a.high], atol=1e-5)  # quantiles interpolate
    assert pooled([0.5, 2.0], "geometric") == pytest.approx(1)
    assert pooled([0.0, 2.0], "geometric") == 0
    with pytest.raises(ValueError, match="at least 0"):
        pooled([-1.0], "geometric")


def test_draws_of_unequal_number_weigh_seeds_equally():
    interval = hierarchical([np.zeros(10), np.ones(1000)], n_draws=4001, seed=0)
    assert interval.value == 0.5
    assert (interval.low, interval.high) == (0, 1)  # both ends have probability 1/4
    assert hierarchical([np.full(9, 2.0), np.full(5, 2.0)]).high == 2


def test_undefined_draws():
    assert np.isnan(hierarchical([np.array([np.nan, np.nan]), np.ones(3)]).value)
    assert hierarchical([np.array([np.nan, 4.0])]).value == 4
    with pytest.raises(ValueError, match="no seeds"):
        hierarchical([])


@pytest.mark.parametrize(
    ("k", "between", "low", "high"), [(2, 0.2, 0.44, 0.62), (3, 0.2, 0.69, 0.83), (8, 0.2, 0.87, 0.96), (8, 0.03, 0.90, 0.98)]
)
def test_coverage_is_what_the_docstring_says(k, between, low, high):
    rng = RNG(k)
    covered = 0
    for number in range(400):
        means = 1 + between * rng.standard_normal(k) + 0.03 * rng.standard_normal(k)
        interval = hierarchical([rng.normal(m, 0.03, size=200) for m in means], n_draws=500, seed=number)
        covered += interval.low <= 1 <= interval.high
    assert low <= covered / 400 <= high


def test_a_paired_difference_has_the_width_of_its_discordant_pairs():
    rng = RNG(3)
    covered = 0
    for _ in range(500):
        before = rng.random(60) < 0.8
        after = np.where(rng.random(60) < 0.15, rng.random(60) < 0.5, before)  # mostly the same answers
        found = paired_difference(after, before)
        covered += found.low <= -0.3 * 0.15 <= found.high
        back = paired_difference(before, after)
        assert (back.value, back.low, back.high) == pytest.approx((-found.value, -found.high, -found.low))
        assert found.low <= found.value <= found.high
    assert covered / 500 >= 0.93
    same = paired_difference(np.ones(16), np.ones(16))  # no disagreement seen: Wilson's ends remain
    assert (same.value, same.low, same.high) == pytest.approx((0, -0.1936, 0.1936), abs=1e-3)
    unpaired = paired_difference([1, 0] * 30, [1] * 30 + [0] * 30)
    assert paired_difference([1, 0] * 30, [1, 0] * 30).high < unpaired.high


# --- crossings

GRID = [0, 5, 7, 10, 14, 20]


def test_crossing_is_straight_in_log_steps():
    crossing = steps_to(GRID, [0, 0.2, 0.4, 0.8, 0.9, 1.0], 0.6)
    assert crossing.bound == "exact"
    assert crossing.value == pytest.approx(np.sqrt(8 * 11) - 1)  # half way between log 8 and log 11
    assert steps_to(GRID, np.log1p(GRID), np.log1p(12.3)).value == pytest.approx(12.3)


def test_crossing_rules():
    assert steps_to(GRID, [0.9] * 6, 0.5) == Crossing(0, "exact")
    assert steps_to(GRID, [0.1] * 6, 0.5) == Crossing(20, "lower")
    assert steps_to(GRID, [0, 0, 0.9, 0, 0, 0], 0.5) == Crossing(20, "lower")  # one lucky evaluation
    assert steps_to(GRID, [0, 0, 1, 0, 0, 0], 0.5, hold=0).value == pytest.approx(np.sqrt(6 * 8) - 1)
    assert steps_to(GRID, [0.9, 0, 0, 0, 1, 1], 0.5).value == pytest.approx(np.sqrt(11 * 15) - 1)
    assert steps_to(GRID, [0, 0, 0, 0, 0, 0.5], 0.5) == Crossing(14, "lower")  # nothing confirms the last
    assert steps_to(GRID, [0, 0, 0, 0, 0, 0.5], 0.5, hold=0) == Crossing(20, "exact")
    assert steps_to(GRID, [0, 0, 0, 0, 1, 1], 0.5, hold=2) == Crossing(10, "lower")
    assert steps_to(GRID, [0, 1, 1, 0, 0, 0], 0.5, hold=2).bound == "lower"
    assert steps_to(GRID, [0, 1, 1, 1, 0, 0], 0.5, hold=2).value == pytest.approx(np.sqrt(6) - 1)
    assert steps_to(GRID, [0, 0, np.nan, 1, 1, 1], 0.5).value == pytest.approx(10)
    assert steps_to([7], [1.0], 0.5) == Crossing(7, "exact")
    for steps in ([0, 5, 5, 10, 14, 20], [0, 5], [], [-1, 5, 7, 10, 14, 20]):
        with pytest.raises(ValueError, match="steps must increase"):
            steps_to(steps, [0.0] * 6, 0.5)


@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=8), threshold=st.floats(0.01, 1), hold=st.integers(0, 3))
def test_crossing_against_a_naive_twin(values, threshold, hold):
    steps = [0, 5, 7, 10, 14, 20, 28, 40][: len(values)]
    expected = None
    for i in range(len(values)):
        confirmed = i + hold < len(values) and all(v >= threshold for v in values[i : i + hold + 1])
        if confirmed or (i == 0 and min(values) >= threshold):
            share = 1.0 if i == 0 else (threshold - values[i - 1]) / (values[i] - values[i - 1])
            before, at = np.log1p(steps[max(i - 1, 0)]), np.log1p(steps[i])
            expected = np.expm1(before + share * (at - before))
            break
    found = steps_to(steps, values, threshold, hold)
    assert found.bound == ("lower" if expected is None else "exact")
    below = [step for step, value in zip(steps, values, strict=True) if value < threshold]
    assert found.value == pytest.approx(below[-1] if expected is None else expected)


def test_ratio_and_its_bounds():
    exact, never, zero = Crossing(20, "exact"), Crossing(320, "lower"), Crossing(0, "exact")
    assert ratio(exact, Crossing(80, "exact")) == (0.25, "exact")
    assert ratio(exact, never) == (20 / 320, "upper")
    assert ratio(never, exact) == (16, "lower")
    value, bound = ratio(never, never)
    assert np.isnan(value)
    assert bound == "undefined"
    assert ratio(zero, exact, floor=5) == (0.25, "exact")
    assert ratio(zero, zero) == (1, "exact")
    a = (np.array([20.0, 20, 320, 320, 0]), np.array([False, False, True, True, False]))
    b = (np.array([80.0, 320, 20, 320, 80]), np.array([False, True, False, True, False]))
    values, bounds = ratio_draws(a, b)
    np.testing.assert_allclose(values, [0.25, 0.0625, 16, np.nan, 1 / 80])
    assert bounds.tolist() == ["exact", "upper", "lower", "undefined", "exact"]


def test_bootstrap_crossings_is_steps_to_on_resampled_examples():
    rng = RNG(0)
    correct = (rng.random((6, 50)) < np.array([0.1, 0.3, 0.5, 0.7, 0.9, 0.95])[:, None]).astype(float)
    values, censored = bootstrap_crossings(GRID, correct, 0.6, draws=200, seed=4)
    assert values.shape == censored.shape == (200,)
    means = np.stack([bootstrap_mean(row, 200, 4) for row in correct], 1)  # the same resampling at every step
    twin = [steps_to(GRID, row, 0.6) for row in means]
    np.testing.assert_allclose(values, [c.value for c in twin], rtol=1e-6)
    assert censored.tolist() == [c.bound == "lower" for c in twin]
    assert len(np.unique(values)) > 20
    values, censored = bootstrap_crossings(GRID, correct, 0.86, draws=200, seed=4)
    assert 0.1 < censored.mean() < 0.9
    assert set(values[censored]) <= {14.0, 20.0}  # 14 where the last point alone was above


def test_a_threshold_met_exactly_is_met_in_every_draw():
    values, censored = bootstrap_crossings([0, 5], np.full((2, 37), 0.95), 0.95, draws=50)
    assert not censored.any()
    assert (values == 0).all()


# --- replicates


def result(seed: int, table: pd.DataFrame, metric: Metric | None = None, **provenance) -> Result:
    evidence = (Evidence("behaviour", "accuracy", 0, 0, 1, 1, "neutral", "x"),)
    headline = (metric,) if metric else ()
    return Result("behaviour", {"table": table}, headline, evidence, ("one task",), {"a": 1}, {"seed": seed, **provenance})


def test_rows_are_grouped_by_all_coordinates():
    def table(shift: float, order: list[int]) -> pd.DataFrame:
        frame = pd.DataFrame(
            {
                "split": ["plain", "plain", "held_out", "plain"],
                "share": [0.5, np.nan, np.nan, 1.0],
                "unit": ["nats", "accuracy", "accuracy", "nats"],
                "value": [2.0 + shift, 0.5, 0.75, 7.0],
                "low": [np.nan, 0.4, 0.6, 6.0],
                "high": [np.nan, 0.6, 0.9, 8.0],
                "n": [8, 8, 8, 8],
            }
        )
        return frame.iloc[order]

    combined = combine_results([result(4, table(0, [0, 1, 2, 3])), result(9, table(1, [3, 1, 0]))])
    out = combined.table
    assert list(out.columns) == ["split", "share", "unit", "value", "low", "high", "n", "seeds"]
    assert out["value"].tolist() == [2.5, 0.5, 0.75, 7.0]
    assert out["n"].tolist() == [16, 16, 8, 16]
    assert out["seeds"].tolist() == [2, 2, 1, 2]
    assert out.loc[0, ["low", "high"]].tolist() == [2, 3]  # two seeds without noise: the ends
    assert out.loc[2, ["low", "high"]].tolist() == [0.6, 0.9]  # one seed keeps its own
    assert 6 < out["low"][3] < 7 < out["high"][3] < 8
    by_seed = combined.tables["table_by_seed"]
    assert len(by_seed) == 7
    assert by_seed["seed"].tolist() == [4] * 4 + [9] * 3
    assert combined.evidence == ()
    assert combined.provenance["seeds"] == [4, 9]
    assert combined.limits[0] == "one task"
    assert "2 seeds" in combined.limits[1]


def test_equal_coordinates_are_paired_in_order_and_lists_are_carried():
    frames = [pd.DataFrame({"site": ["a", "a"], "value": [s, 10.0 + s], "curve": [[1], [2]]}) for s in (0.0, 2.0)]
    out = combine_results([result(s, f) for s, f in enumerate(frames)]).table
    assert out["value"].tolist() == [1, 11]
    assert out["curve"].tolist() == [[1], [2]]


def test_a_series_that_ended_early_goes_on_with_its_last_value():
    rows = [(0, "x", 0, 0.2), (0, "x", 5, 0.9), (1, "x", 0, 0.4), (1, "x", 5, 0.6), (1, "x", 10, 0.7), (0, "y", 0, 0.1)]
    stacked = pd.DataFrame(rows, columns=["seed", "arm", "step", "value"]).assign(n=10)
    out = combine_table(stacked).set_index(["arm", "step"])
    assert out["value"].to_dict() == pytest.approx({("x", 0): 0.3, ("x", 5): 0.75, ("x", 10): 0.8, ("y", 0): 0.1})
    assert out["seeds"].to_dict() == {("x", 0): 2, ("x", 5): 2, ("x", 10): 2, ("y", 0): 1}  # seed 1 has no y to go on with


def test_tables_without_a_value_are_stacked():
    frames = [pd.DataFrame({"text": ["a", "b"]}), pd.DataFrame({"text": ["c"]})]
    combined = combine_results([result(s, f) for s, f in enumerate(frames)])
    assert combined.table.to_dict("list") == {"text": ["a", "b", "c"], "seed": [0, 0, 1]}
    assert list(combined.tables) == ["table"]


def test_missing_values_leave_the_seed_out():
    frames = [pd.DataFrame({"x": [1, 2], "value": v, "n": 10}) for v in ([0.2, np.nan], [0.4, np.nan], [np.nan, np.nan])]
    out = combine_results([result(s, f) for s, f in enumerate(frames)]).table
    assert out["value"][0] == pytest.approx(0.3)
    assert (out["seeds"][0], out["n"][0], out["seeds"][1]) == (2, 20, 0)
    assert out.loc[1, ["value", "low", "high"]].isna().all()


@pytest.mark.parametrize(("share", "n"), [(0.5, 400), (0.02, 100)])
def test_proportions_have_the_closed_form_width(share, n):
    """Seeds that do not differ: what is left is binomial noise, Var = p (1 - p) / n / k."""
    k = 5
    stacked = pd.DataFrame({"seed": range(k), "value": share, "n": n})
    low, high = combine_table(stacked)[["low", "high"]].to_numpy()[0]
    exact = stats.binom(n * k, share).ppf([0.025, 0.975]) / (n * k)
    wide = wilson(share * n * k, n * k)
    np.testing.assert_allclose([low, high], [min(exact[0], wide[0]), max(exact[1], wide[1])], atol=0.003)
    assert low < share < high
    plain = combine_table(stacked.assign(unit="nats"))
    assert (plain["low"][0], plain["high"][0]) == (pytest.approx(share), pytest.approx(share))  # no noise is known


@pytest.mark.parametrize("n", [200, 20_000])
def test_table_intervals_are_the_hierarchical_bootstrap(n):
    """Two seeds that differ, by exact binomial noise (n = 200) and by its normal form, against the plain procedure."""
    shares = [0.02, 0.06]
    twin = hierarchical([RNG(s).binomial(n, p, size=20_000) / n for s, p in enumerate(shares)], n_draws=40_000)
    out = combine_table(pd.DataFrame({"seed": [0, 1], "value": shares, "n": n}))
    sd = np.sqrt(0.02 * 0.98 / n / 2)
    assert twin.low < 0.02 - 0.9 * sd
    np.testing.assert_allclose([out["low"][0], out["high"][0]], [twin.low, twin.high], atol=0.5 * sd)


def test_all_right_answers_still_have_an_interval():
    out = combine_table(pd.DataFrame({"seed": [0, 1, 2], "value": 1.0, "n": 50}))
    assert out["low"][0] == pytest.approx(stats.binomtest(150, 150).proportion_ci(method="wilson").low)
    assert out["high"][0] == 1


def test_other_rows_take_noise_from_their_own_interval():
    k, sd = 4, 0.5
    stacked = pd.DataFrame({"seed": range(k), "value": 3.0, "low": 3 - 1.96 * sd, "high": 3 + 1.96 * sd, "n": 10})
    out = combine_table(stacked)
    half = 1.96 * sd / np.sqrt(k)
    np.testing.assert_allclose([out["low"][0], out["high"][0]], [3 - half, 3 + half], atol=0.05)


@pytest.mark.parametrize(
    ("k", "between", "n", "low", "high"),
    [(8, 0.05, 200, 0.90, 0.98), (8, 0.0, 200, 0.93, 1.0), (2, 0.1, 20_000, 0.42, 0.60)],
)
def test_coverage_of_table_intervals(k, between, n, low, high):
    rng = RNG(11)
    p = np.clip(0.6 + between * rng.standard_normal((400, k)), 0, 1)
    value = rng.binomial(n, p) / n
    stacked = pd.DataFrame(
        {"data": np.repeat(np.arange(400), k), "seed": np.tile(range(k), 400), "value": value.ravel(), "n": n}
    )
    out = combine_table(stacked)
    covered = ((out["low"] <= 0.6) & (out["high"] >= 0.6)).mean()
    assert low <= covered <= high


def test_two_thousand_rows_of_three_seeds_are_not_pooled_row_by_row():
    # 30 ms on an idle core without the run-time type checker; a loop over rows takes seconds.
    rng = RNG(0)

    def table() -> pd.DataFrame:
        names = [f"head {i}" for i in range(40)]
        frame = pd.DataFrame({"site": np.tile(names, 50), "step": np.repeat(range(50), 40), "n": 500})
        return frame.assign(value=rng.binomial(500, rng.choice([0.001, 0.02, 0.5, 0.97], size=2000)) / 500)

    results = [result(seed, table()) for seed in range(3)]
    combine_results(results)  # imports
    seconds = []
    for _ in range(5):
        started = time.process_time()
        combine_results(results)
        seconds.append(time.process_time() - started)
    assert min(seconds) < 0.2, seconds


def metric(value: float, bound="exact", draws=(), **more) -> Metric:
    return Metric("ratio", value, value / 2, value * 2, 50, "x", bound, draws=tuple(draws), **more)


def test_headline_is_pooled_from_draws():
    empty = pd.DataFrame({"value": [0.5]})
    draws = [np.exp(RNG(s).normal(size=300)) for s in range(3)]
    metrics = [metric(v, draws=d, pool="geometric") for v, d in zip((0.5, 1.0, 2.0), draws, strict=True)]
    combined = combine_results([result(s, empty, m) for s, m in enumerate(metrics)], seed=7).metric("ratio")
    expected = hierarchical(draws, "geometric", seed=7)
    assert combined.value == pytest.approx(1.0)
    assert (combined.low, combined.high) == (expected.low, expected.high)
    assert (combined.seeds, combined.n, combined.unit, combined.pool, combined.draws) == (3, 50, "x", "geometric", ())
    plain = combine_results([result(s, empty, metric(v)) for s, v in enumerate((1.0, 3.0))]).metric("ratio")
    # Two values without draws resample to 1 and 3; the seeds' own intervals, taken as independent, reach farther up.
    assert (plain.value, plain.low, plain.high) == pytest.approx((2, 1, 2 + np.hypot(2 - 1, 6 - 3) / 2))
    alone = combine_results([result(0, empty, metric(1.0))]).metric("ratio")
    assert (alone.low, alone.high, alone.seeds) == (0.5, 2.0, 1)


def test_answers_that_are_all_right_still_have_an_interval():
    empty = pd.DataFrame({"value": [0.5]})
    low = float(wilson(16, 16)[0])
    sure = Metric("accuracy", 1.0, low, 1.0, 16, draws=(1.0,) * 50)
    pooled_ = combine_results([result(s, empty, sure) for s in range(2)]).metric("accuracy")
    assert (pooled_.value, pooled_.high) == (1.0, 1.0)
    assert pooled_.low == pytest.approx(1 - (1 - low) / np.sqrt(2))


def test_bounds_combine():
    assert combine_bounds(["exact", "exact"]) == "exact"
    assert combine_bounds(["exact", "upper", "upper"]) == "upper"
    assert combine_bounds(["lower", "exact"]) == "lower"
    assert combine_bounds(["lower", "upper", "exact"]) == "undefined"
    assert combine_bounds(["exact", "undefined"]) == "undefined"
    empty = pd.DataFrame({"value": [0.5]})
    mixed = combine_results([result(s, empty, metric(1.0, b)) for s, b in enumerate(("upper", "exact"))])
    assert mixed.metric("ratio").bound == "upper"


def test_provenance_lists_all_and_seeds_fall_back_to_places():
    frame = pd.DataFrame({"value": [0.5]})
    combined = combine_results([result(3, frame, paper="x", hash=1), result(3, frame, paper="x", hash=2)])
    assert combined.provenance["seeds"] == [0, 1]
    assert combined.provenance["paper"] == "x"
    assert "hash" not in combined.provenance
    assert [r["hash"] for r in combined.provenance["replicates"]] == [1, 2]
    assert combined.table["seeds"].tolist() == [2]
    with pytest.raises(ValueError, match="one analysis"):
        combine_results([])


def test_intervals_of_an_index_stay_where_it_can_be():
    rows = {"value": [0.95, 0.99], "low": [0.8, 0.9], "high": [1.0, 1.0], "n": 100, "seed": [0, 1]}
    wide = {unit: combine_table(pd.DataFrame(rows).assign(unit=unit)).iloc[0] for unit in ("Jaccard index", "nats")}
    assert wide["nats"]["high"] > 1
    assert wide["Jaccard index"]["high"] == 1
    assert wide["Jaccard index"]["low"] == wide["nats"]["low"]
