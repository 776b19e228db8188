"""Numbers behind the claims, where they are not what their name says at first sight; the rest stands in `test_claims`."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tests.paper.fake_grid import changed, name
from workbench.errors import UserError
from workbench.paper.contrasts import HIGH, LOW, difference, kept_readable, mean_of, over_best_guess, steps_ratio
from workbench.paper.grid import Grid

ALL = ("large", "medium", "small")


def test_probes_that_read_any_model_show_nothing(whole):
    assert kept_readable(whole).interval.value == pytest.approx(35 / 36)
    with pytest.raises(UserError, match=r"never had the ability \(base less that model 0\.04, it would need 0\.10\), so that"):
        kept_readable(changed(whole, "probing", "room_never", 0.04))


def test_a_mean_is_that_of_its_cells_and_a_difference_that_of_both_sides(whole):
    assert mean_of("tuned_ft", HIGH, ("large",), (1.0,))(whole).interval.value == pytest.approx(0.71, abs=1e-3)  # .7 and .72
    less = mean_of("tuned_ft", HIGH, ("large",), (1.0,), (LOW, ("large",), (1.0,)))(whole)
    assert less.interval.value == pytest.approx(0.71 - 0.06, abs=1e-3)
    fall = difference("pruning", "unpruned_ft_correlated", "pruned_ft_correlated", LOW, ALL, (1.0,))(whole)
    assert fall.interval.value == pytest.approx(0.25, abs=1e-3)


@pytest.mark.parametrize(("accuracy", "expected"), [(0.3, 0.0), (1.0, 1.0), (0.65, 0.5), (0.0, -3 / 7)])
def test_over_the_best_guess_is_a_share_of_the_way(whole, accuracy, expected):
    grid = changed(whole, "behaviour", "tuned_ft", accuracy)  # the best guess is .3 there
    found = over_best_guess(LOW, ALL, (1.0,))(grid).interval
    assert (found.value, found.low, found.high) == pytest.approx((expected,) * 3)


def test_a_model_that_is_there_from_the_start_counts_with_the_first_step_of_the_grid(study):
    """A ratio with 0 steps would be 0 or infinite; nothing is resolved below the grid's first step, 5 here."""
    instant = name("p5", 1e-3, 1.0)
    grid = Grid(study)
    for seed in (0, 1):
        for pair in grid.axes["pair"]:
            result = study.result(pair, "revival", seed)
            steps = result.metric("steps_revived")
            zero = replace(steps, value=0.0, draws=(0.0,) * len(steps.draws))
            headline = tuple(zero if m is steps and pair == instant else m for m in result.headline)
            grid.read_results[pair, "revival", seed] = replace(result, headline=headline)
    rates = ("large", "medium")
    found = steps_ratio((HIGH, rates, (1.0,)), (LOW, rates, (1.0,)))(grid).interval
    assert found.value == pytest.approx(math.sqrt(math.sqrt(5 * 10) / 40 * math.sqrt(5 * 20) / 80))
