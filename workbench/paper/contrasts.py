"""Numbers that the paper's claims are about: means, differences and ratios over the cells of a grid study [Jain+23 §5]."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from workbench.errors import UserError
from workbench.figures.tables import select, values
from workbench.paper.grid import Contrasted, Grid, named
from workbench.results import Metric, Result
from workbench.statistics import Pool
from workbench.verdict import ROOM

LOW, MEDIUM, HIGH = ["low"], ["medium"], ["high"]
EVERY_RATE = ("large", "medium", "small")
Measure = Callable[[Grid], Contrasted]
Cells = tuple[Sequence[str], Sequence[str], Sequence[float]]
"""Priors, rates and shares of correlated texts whose every combination is meant."""
CORE: Cells = ([*LOW, *MEDIUM, *HIGH], EVERY_RATE, (0.0, 0.5, 0.8, 1.0))


@dataclass(frozen=True)
class Contrast:
    """One number that a claim predicts the side of."""

    says: str
    """What is measured, in words."""
    side: Literal["above", "below"]
    threshold: float
    of: Measure
    """The number with its interval, examples and seeds."""


def _pairs(grid: Grid, prior: Sequence[str], rates: Sequence[str], shares: Sequence[float]) -> list[str]:
    """Pairs of the core: standard pretraining, these priors, rates and shares."""
    return grid.where(prior=list(prior), rate_name=list(rates), share=list(shares), length="standard")


def _revived(grid: Grid, *cells: Any) -> list[str]:
    """The same without what the study does not mean to revive: nothing tuned at the rate of the revival or below it."""
    return [name for name in _pairs(grid, *cells) if name in grid.study.spec.revived]


def mean_of(
    metric: str,
    prior: Sequence[str],
    rates: Sequence[str],
    shares: Sequence[float],
    less: Cells | None = None,
    analysis: str = "behaviour",
    pool: Pool = "mean",
) -> Measure:
    """Mean of a headline number over cells, less (or over, geometrically) that of other cells."""

    def of(grid: Grid) -> Contrasted:
        cells = _revived if analysis == "revival" else _pairs
        minus = cells(grid, *less) if less else None
        return grid.contrast(analysis, named(metric), cells(grid, prior, rates, shares), minus, pool)

    return of


def steps_ratio(plus: Cells, minus: Cells) -> Measure:
    """Ratio of the steps that revival takes; a model that is there within the first point of the grid counts as that point."""

    def read(result: Result) -> Metric | None:
        found = named("steps_revived")(result)
        if found is None:
            return None
        steps = values(select(result.tables["table"], arm="revived"), "step")
        floor = float(steps[steps > 0].min(initial=math.inf))
        return replace(found, value=max(found.value, floor), draws=tuple(max(draw, floor) for draw in found.draws))

    return lambda grid: grid.contrast("revival", read, _revived(grid, *plus), _revived(grid, *minus), "geometric")


def difference(analysis: str, metric: str, other: str, *cells: Any) -> Measure:
    """Mean over cells of a headline number less another one of the same result."""

    def read(result: Result) -> Metric | None:
        one, two = named(metric)(result), named(other)(result)
        if one is None or two is None:
            return None
        draws = tuple(a - b for a, b in zip(one.draws, two.draws, strict=True))
        return Metric("difference", one.value - two.value, 0.0, 0.0, one.n, draws=draws)

    return lambda grid: grid.contrast(analysis, read, _pairs(grid, *cells))


def over_best_guess(*cells: Any) -> Measure:
    """O_FT where the shortcut fails, as a share of the way from the best guess (0) to all right (1)."""

    def read(result: Result) -> Metric | None:
        found, guess = named("tuned_ft")(result), named("chance_ft")(result)
        if found is None or guess is None:
            return None
        draws = tuple((draw - guess.value) / (1 - guess.value) for draw in found.draws)
        return Metric("way", (found.value - guess.value) / (1 - guess.value), 0.0, 0.0, found.n, draws=draws)

    return lambda grid: grid.contrast("behaviour", read, _pairs(grid, *cells))


def along_training(role: str, plus: Cells, minus: Cells) -> Measure:
    """Difference of the mean accuracy at C_Te = 0 over the points of the fine-tuning's evaluation grid: sooner or longer."""

    def read(result: Result) -> Metric | None:
        rows = select(result.tables["table"], role=role, share=0.0)
        if rows.empty:
            return None
        # No draws: the points of one training are not independent, so the interval is the one over seeds.
        return Metric("area", float(values(rows, "value").mean()), 0.0, 0.0, int(values(rows, "n").min()))

    return lambda grid: grid.contrast("behaviour", read, _pairs(grid, *plus), _pairs(grid, *minus))


def kept_readable(grid: Grid) -> Contrasted:
    """Share of the cells whose tuned model is probed for O_PT within `ROOM` of its base, where a probe can tell anything."""
    room = grid.contrast("probing", named("room_never"), _pairs(grid, *CORE))
    if room.interval.value < ROOM:
        raise UserError(
            "a probe reads the answer as well from a model that never had the ability (base less that model "
            f"{room.interval.value:.2f}, it would need {ROOM:.2f}), so that its being readable shows nothing."
        )

    def read(result: Result) -> Metric | None:
        tuned, base = named("tuned_probe")(result), named("base_probe")(result)
        if tuned is None or base is None:
            return None
        return Metric("near", float(tuned.value >= base.value - ROOM), 0.0, 1.0, base.n)

    return grid.contrast("probing", read, _pairs(grid, *CORE))
