"""Learning rates and evaluation grids in closed form."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from workbench.training.schedule import Schedule, evaluation_grid


def test_the_warm_up_is_linear_and_its_last_step_is_the_peak():
    factors = [Schedule(warmup=0.1).factor(step, 100) for step in range(10)]
    assert factors == pytest.approx([k / 10 for k in range(1, 11)])


def test_after_the_warm_up_comes_half_a_cosine_down_to_the_floor():
    schedule = Schedule(warmup=0.1, floor=0.02)
    assert schedule.factor(10, 111) == 1.0  # round(11.1) warm-up steps end at step 10
    assert schedule.factor(110, 111) == pytest.approx(0.02)
    for step in range(11, 111):
        expected = 0.02 + 0.98 * math.cos(math.pi / 2 * (step - 11) / 99) ** 2  # (1 + cos 2x) / 2 = cos^2 x
        assert schedule.factor(step, 111) == pytest.approx(expected)


def test_halfway_down_is_the_middle_of_peak_and_floor():
    assert Schedule(warmup=0, floor=0.2).factor(50, 101) == pytest.approx(0.6)


def test_a_constant_rate_knows_no_budget():
    assert {Schedule(kind="constant").factor(step, steps) for step in range(5) for steps in (5, 50)} == {1.0}


@given(steps=st.integers(1, 400), warmup=st.floats(0, 1), floor=st.floats(0, 1))
def test_rates_rise_then_fall_and_stay_positive_up_to_the_peak(steps, warmup, floor):
    factors = [Schedule(warmup=warmup, floor=floor).factor(step, steps) for step in range(steps)]
    warm = round(warmup * steps)
    assert all(a < b for a, b in pairwise(factors[:warm]))
    assert all(a >= b for a, b in pairwise(factors[warm:]))
    assert all(0 <= f <= 1 for f in factors)
    assert max(factors) == pytest.approx(1)
    assert steps - warm < 2 or factors[-1] == pytest.approx(floor)


@pytest.mark.parametrize("bad", [{"warmup": 1.5}, {"floor": -0.1}, {"kind": "linear"}, {"warm_up": 0.1}])
def test_schedules_that_make_no_sense_are_refused(bad):
    with pytest.raises(ValidationError):
        Schedule(**bad)


@pytest.mark.parametrize(
    ("steps", "grid"),
    [
        (0, (0,)),
        (1, (0, 1)),
        (5, (0, 5)),
        (6, (0, 5, 6)),
        (20, (0, 5, 7, 10, 14, 20)),
        (100, (0, 5, 7, 10, 14, 20, 28, 40, 57, 80, 100)),
    ],
)
def test_the_grid_is_zero_five_and_on_by_the_square_root_of_two(steps, grid):
    assert evaluation_grid(steps) == grid


@given(steps=st.integers(0, 10**6))
def test_a_grid_ends_at_the_last_step_and_grows_logarithmically(steps):
    grid = evaluation_grid(steps)
    assert grid[0] == 0
    assert grid[-1] == steps
    assert all(a < b for a, b in pairwise(grid))
    assert all(b / a < 1.5 for a, b in pairwise(grid[1:]))
    assert len(grid) <= 3 + 2 * math.log2(max(steps, 5) / 5) + 1


@given(steps=st.integers(6, 10**4), more=st.integers(1, 10**4))
def test_a_longer_run_has_the_same_grid_to_begin_with(steps, more):
    """So that trajectories of unequal length can be held against each other."""
    assert set(evaluation_grid(steps)[:-1]) <= set(evaluation_grid(steps + more))
