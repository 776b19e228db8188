"""One result of its replicates over seeds, for every analysis alike."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from workbench.results import LazyTables, Metric, Result
from workbench.seeds import numpy_generator
from workbench.statistics import Bound, Floats, Pool, hierarchical, normal_quantile, pooled, wilson

MEASURED = ("value", "low", "high", "n", "seed")
"""Columns that are no coordinates of a row."""
FEW_SEEDS = 5
COVERAGE = {2: 50, 3: 75, 4: 80}
"""True coverage, in per cent, of a nominal 95 % interval by number of seeds where the spread between seeds dominates."""
RANGES = {
    "Jaccard index": (0.0, 1.0),
    "similarity": (-1.0, 1.0),
    "AUROC": (0.0, 1.0),
    "balanced accuracy": (0.0, 1.0),
}
"""Values that a row of a unit can take; the normal noise of an interval knows no bounds."""
PROPORTIONS = ("accuracy", "share of texts")
"""Units of what is counted: so many of n."""
_EXACT_BELOW = 25.0  # n p (1 - p) from which a binomial is normal for the purpose of an interval


def combine_results(results: Sequence[Result], seed: int = 0) -> Result:
    """Pool the results of one analysis over seeds.

    Rows of a table belong together when all their coordinates agree (in their order where several do); `value` becomes
    the mean over seeds, `low` and `high` a hierarchical bootstrap, `n` the sum, `seeds` the number of seeds;
    `<table>_by_seed` keeps the single rows. Tables without `value` are stacked with a `seed` column. Headline numbers are
    pooled from their draws. Evidence is left empty: the verdict draws it anew from the headline. See
    `statistics.hierarchical` for how far to trust intervals over few seeds.

    Args:
        results: one per seed; their `provenance["seed"]` names it, else their place in the sequence.
        seed: of the resampling.

    Raises:
        ValueError: no results, or of different analyses.
    """
    if len({result.name for result in results}) != 1:
        raise ValueError(f"only results of one analysis can be combined, got {[result.name for result in results]}")
    names = [result.provenance.get("seed") for result in results]
    seeds = names if None not in names and len(set(names)) == len(names) else list(range(len(results)))
    makers: dict[str, Callable[[], pd.DataFrame]] = {}
    for name in dict.fromkeys(name for result in results for name in result.tables):
        here = [(label, result.tables[name]) for label, result in zip(seeds, results, strict=True) if name in result.tables]
        if any("value" in table for _, table in here):
            makers[name] = partial(_combined, here, seed)
            makers[f"{name}_by_seed"] = partial(_stacked, here)
        else:
            makers[name] = partial(_stacked, here)
    limits = list(dict.fromkeys(limit for result in results for limit in result.limits))
    limits += few_seeds(len(results))
    first = results[0]
    common = {k: v for k, v in first.provenance.items() if all(r.provenance.get(k) == v for r in results)}
    return Result(
        name=first.name,
        tables=LazyTables(makers),
        headline=tuple(_combine_metrics(group, seed) for group in _by_name(results).values()),
        limits=tuple(limits),
        settings=first.settings,
        provenance={**common, "seeds": list(seeds), "replicates": [dict(result.provenance) for result in results]},
    )


def _stacked(tables: Sequence[tuple[Any, pd.DataFrame]]) -> pd.DataFrame:
    """Tables of all seeds in one, with a column that says whose each row is."""
    return pd.concat([t if "seed" in t else t.assign(seed=label) for label, t in tables], ignore_index=True)


def _combined(tables: Sequence[tuple[Any, pd.DataFrame]], seed: int) -> pd.DataFrame:
    return combine_table(_stacked(tables), seed)


def few_seeds(seeds: int) -> list[str]:
    """What to say of an interval over so few seeds; nothing of one, which says nothing of them, and of many."""
    if not 1 < seeds < FEW_SEEDS:
        return []
    return [
        f"{seeds} seeds: where seeds differ by more than their test sets' noise, a 95 % interval over so few covers about "
        f"{COVERAGE[seeds]} %"
    ]


def _by_name(results: Sequence[Result]) -> Mapping[str, list[Metric]]:
    groups: dict[str, list[Metric]] = {}
    for result in results:
        for metric in result.headline:
            groups.setdefault(metric.metric, []).append(metric)
    return groups


def combine_bounds(bounds: Sequence[Bound]) -> Bound:
    """The bound of an average: exact numbers change none, bounds of both directions leave nothing said."""
    kinds: set[Bound] = set(bounds) - {"exact"}
    if not kinds:
        return "exact"
    return kinds.pop() if len(kinds) == 1 else "undefined"


def _combine_metrics(metrics: Sequence[Metric], seed: int) -> Metric:
    first = metrics[0]
    values = [metric.value for metric in metrics]
    interval = hierarchical([metric.draws or (metric.value,) for metric in metrics], first.pool, seed=seed, values=values)
    if len(metrics) == 1 and not first.draws:
        low, high = first.low, first.high
    else:
        low, high = interval.low, interval.high
    # Resampled right answers alone have no spread: the pooled interval is never narrower than those of the seeds together.
    floor, ceiling = _independent(metrics, first.pool)
    low, high = float(np.fmin(low, floor)), float(np.fmax(high, ceiling))
    bound = combine_bounds([metric.bound for metric in metrics])
    n = min(metric.n for metric in metrics)
    value = float(pooled(values, first.pool))
    return Metric(first.metric, value, low, high, n, first.unit, bound, first.pool, seeds=len(metrics))


def _independent(metrics: Sequence[Metric], pool: Pool) -> tuple[float, float]:
    """Interval of a mean of independent numbers from their own intervals; on the log scale where that is pooled."""
    rows = np.array([(m.low, m.value, m.high) for m in metrics], dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        low, value, high = (np.log(rows) if pool == "geometric" else rows).T
        mean = value.mean()
        ends = mean - np.sqrt(np.sum((value - low) ** 2)) / len(rows), mean + np.sqrt(np.sum((high - value) ** 2)) / len(rows)
        return tuple(float(np.exp(end)) if pool == "geometric" else float(end) for end in ends)  # pyright: ignore[reportReturnType]


def _carried(stacked: pd.DataFrame, coordinates: Sequence[str]) -> pd.DataFrame:
    """Every seed's series over `step` as long as the longest of its kind."""
    series = [c for c in coordinates if c != "step"]
    parts = [stacked]
    for _, kind in stacked.groupby(series, sort=False, dropna=False) if series else [((), stacked)]:
        for _, mine in kind.groupby("seed", sort=False):
            last = mine.loc[mine["step"] == mine["step"].max()]
            later = sorted(set(kind.loc[kind["step"] > mine["step"].max(), "step"]))
            parts += [last.assign(step=step) for step in later]
    return pd.concat(parts, ignore_index=True)


def combine_table(stacked: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Pool the rows of a long table over its `seed` column; see `combine_results`.

    Proportions (a unit of `PROPORTIONS`; in a table without units, values in [0, 1] that are whole counts out of `n`) are
    resampled within a seed as Binomial(n, value) / n, and their interval holds at least Wilson's of the pooled counts: a
    bootstrap of all right answers has no width. Other rows get normal noise of the width of their own interval, or none.

    A series over `step` that ended before that of another seed goes on with its last value: training stops early at its
    ceiling, and without it the mean of those that still train would be one of the slow seeds.
    """
    coordinates = [c for c in stacked.columns if c not in MEASURED and _hashable(cast(pd.Series, stacked[c]))]
    frame = _carried(stacked, coordinates) if "step" in coordinates else stacked.reset_index(drop=True)
    again = frame.groupby([*coordinates, "seed"], sort=False, dropna=False).cumcount().to_numpy()
    keys = frame[coordinates].assign(_again=again)
    row = keys.groupby([*coordinates, "_again"], sort=False, dropna=False).ngroup().to_numpy()
    labels, _ = pd.factorize(frame["seed"])
    groups, seeds = int(row.max(initial=-1)) + 1, int(labels.max(initial=-1)) + 1

    def cells(column: str) -> Floats:
        grid = np.full((groups, seeds), np.nan)
        if column in frame:
            grid[row, labels] = np.asarray(frame[column].astype("float64"))
        return grid

    value, n, low, high = (cells(column) for column in ("value", "n", "low", "high"))
    firsts = np.unique(row, return_index=True)[1]
    out = frame.iloc[firsts].drop(columns=["seed"]).reset_index(drop=True)
    proportion = _proportions(out, value, n)
    there = ~np.isnan(value)
    ends = np.full((groups, 2), np.nan)
    mean = np.full(groups, np.nan)
    patterns, pattern = np.unique(there, axis=0, return_inverse=True)
    for i, mask in enumerate(patterns):  # rows that the same seeds have; nearly always one pattern
        rows = np.flatnonzero(pattern.ravel() == i)
        if len(rows) == 0 or not mask.any():
            continue
        grid = np.ix_(rows, np.flatnonzero(mask))
        mean[rows] = value[grid].mean(1)
        if mask.sum() == 1:
            ends[rows] = np.column_stack([low[grid], high[grid]])
            bare = rows[np.isnan(ends[rows]).any(1) & proportion[rows]]
            ends[bare] = np.column_stack(wilson((value[bare] * n[bare])[:, mask].sum(1), n[bare][:, mask].sum(1)))
        else:
            width = (high[grid] - low[grid]) / (2 * normal_quantile(0.95))
            ends[rows] = _intervals(value[grid], n[grid], width, proportion[rows], seed)
    for unit, bounds in RANGES.items():
        held = (out["unit"] == unit).to_numpy(dtype=bool) if "unit" in out else np.zeros(groups, dtype=bool)
        ends[held] = np.clip(ends[held], *bounds)
    out["value"] = mean
    out["low"], out["high"] = ends.T
    if "n" in out:
        out["n"] = np.nansum(np.where(there, n, np.nan), axis=1).astype(np.int64)
    out["seeds"] = there.sum(1)
    return out


def _hashable(column: pd.Series) -> bool:
    return len(column) == 0 or isinstance(column.iloc[0], Hashable)


def _proportions(out: pd.DataFrame, value: Floats, n: Floats) -> NDArray[np.bool_]:
    """Which rows `[g]` are shares of their n examples."""
    counted = np.isfinite(n) & (n > 0) & (value >= 0) & (value <= 1)
    missing = np.isnan(value)
    if "unit" in out:
        return cast(Any, out["unit"].isin(PROPORTIONS).to_numpy(dtype=bool)) & (counted | missing).all(1)
    whole = counted & (np.abs(value * n - np.round(value * n)) < 1e-3)
    return np.full(len(out), bool((whole | missing).all()))


def _intervals(value: Floats, n: Floats, width: Floats, proportion: NDArray[np.bool_], seed: int) -> Floats:
    """95 % percentile intervals of a hierarchical bootstrap for many rows at once.

    All rows see the same resampled seeds and the same noise: each row's interval is as good as with its own, and
    the work becomes two matrix products.

    Args:
        value: one number per row and seed `[g, k]`.
        n: examples behind it `[g, k]`.
        width: standard deviation within a seed `[g, k]`, NaN where unknown.
        proportion: which rows are binomial `[g]`.
        seed: of the resampling.

    Returns:
        Lower and upper ends `[g, 2]`.
    """
    groups, k = value.shape
    draws = int(np.clip(700_000 // groups, 200, 2000))
    rng = numpy_generator(seed, "table", k)
    chosen = rng.integers(k, size=(draws, k))
    picks = [chosen == s for s in range(k)]
    times = np.stack([pick.sum(1) for pick in picks])  # [k, draws]
    share = np.where(proportion[:, None], value, 0.0)
    trials = np.where(proportion[:, None], n, 1.0)
    spread = np.where(proportion[:, None], np.sqrt(share * (1 - share) / trials), np.nan_to_num(width))
    exact = proportion[:, None] & (trials * share * (1 - share) < _EXACT_BELOW) & (spread > 0)
    normal = rng.standard_normal((draws, k))
    noise = np.stack([(normal * pick).sum(1) for pick in picks])
    sample = value @ times + np.where(exact, 0.0, spread) @ noise
    if exact.any():
        # Few distinct (n, p) are that close to 0 or 1, so each is drawn once, and every seed takes its draws in another order.
        pairs, which = np.unique(np.stack([trials[exact], share[exact]], 1), axis=0, return_inverse=True)
        drawn = (
            rng.binomial(pairs[:, :1].astype(np.int64), pairs[:, 1:], size=(len(pairs), draws)) / pairs[:, :1] - pairs[:, 1:]
        )
        index = np.full(exact.shape, len(pairs))
        index[exact] = which.ravel()
        drawn = np.vstack([drawn, np.zeros(draws)])  # the last one: not exact, nothing to add
        order = np.stack([rng.permutation(draws) for _ in range(k)], 1)
        for s, pick in enumerate(picks):
            added = np.stack([drawn[:, order[:, j]] * pick[:, j] for j in range(k)]).sum(0)
            sample += added[index[:, s]]
    ends = np.quantile(sample / k, [0.025, 0.975], axis=1).T
    successes, total = (share * trials).sum(1), trials.sum(1)
    floor, ceiling = wilson(successes, total)
    widened = np.column_stack([np.minimum(ends[:, 0], floor), np.maximum(ends[:, 1], ceiling)])
    return np.where(proportion[:, None], np.clip(widened, 0, 1), ends)
