"""The perceptron limit of logistic regression [2412.08424]: the paper's iterations exactly, its theorems, and the lab around them."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

import workbench as wb
from workbench.dynamics.perceptron import (
    Data,
    batch_perceptron,
    bound,
    distance_to_perceptron,
    lr_gd,
    normalized_batch_perceptron,
    normalized_lr_gd,
    random_separable,
    solve,
    two_points,
    worst_case,
)
from workbench.figures import alt, figure


@pytest.mark.parametrize(
    ("method", "step", "iterations"),
    [
        ("normalized_lr_gd", 100, 2),
        ("normalized_lr_gd", 10, 2),
        ("normalized_lr_gd", 1, 16),
        ("normalized_lr_gd", 0.1, 157),
        ("lr_gd", 100, 308),
        ("lr_gd", 1e4, 301),
        ("lr_gd", 1e8, 301),
        ("batch_perceptron", 1, 301),
    ],
)
def test_worst_case_iterations_are_the_papers(method, step, iterations):
    run = solve(worst_case(1000), method, step)
    assert (run.iterations, run.solved) == (iterations, True)


@pytest.mark.parametrize(
    ("n", "normalized", "plain"), [(10, (2, 2, 7, 60), (37, 4, 4, 4)), (100, (2, 2, 11, 110), (561, 31, 31, 31))]
)
def test_smaller_worst_cases(n, normalized, plain):
    data = worst_case(n)
    assert tuple(solve(data, "normalized_lr_gd", step).iterations for step in (100, 10, 1, 0.1)) == normalized
    assert tuple(solve(data, "lr_gd", step).iterations for step in (1, 100, 1e4, 1e8)) == plain


def test_bounds_of_the_theorems():
    data = worst_case(1000)
    assert (data.radius2, data.margin) == (1.25, 0.5)
    found = [bound(data, "normalized_lr_gd", step) for step in (100, 10, 1, 0.1)]
    assert found == pytest.approx([5.6, 11.1, 65.8, 613], rel=2e-3)
    assert bound(data, "batch_perceptron", 1) == 5000
    assert bound(data, "normalized_batch_perceptron", 1) == 5
    assert bound(data, "lr_gd", 1) == math.inf
    for set_ in (data, two_points(), *(random_separable(60, 5, seed) for seed in range(3))):
        assert (set_.signed @ set_.separator).min() > 0
        for method in ("normalized_lr_gd", "batch_perceptron", "normalized_batch_perceptron"):
            run = solve(set_, method, 10.0)
            assert run.solved
            assert run.iterations <= bound(set_, method, 10.0)


def test_the_rules_on_rows_worked_by_hand():
    signed = np.array([[1.0, 0.0], [0.0, 2.0], [4.0, 4.0]])
    margins = np.array([-1.0, 0.0, 3.0])  # wrong, on the plane, right
    np.testing.assert_allclose(batch_perceptron(signed, margins), [1 / 3, 1 / 3])
    np.testing.assert_allclose(normalized_batch_perceptron(signed, margins), [2 / 3, 2 / 3])
    weights = 1 / (1 + np.exp(margins))
    np.testing.assert_allclose(lr_gd(signed, margins, 6.0), 2 * weights @ signed)
    np.testing.assert_allclose(normalized_lr_gd(signed, margins, 6.0), 6 * weights @ signed / weights.sum())


def test_descent_is_that_of_the_logistic_loss():
    signed, theta, e = random_separable(20, 3, 0).signed, np.array([0.3, -0.2, 0.5]), 1e-6

    def loss(at):
        return np.log1p(np.exp(-signed @ at)).mean()

    slope = [(loss(theta + e * axis) - loss(theta - e * axis)) / (2 * e) for axis in np.eye(3)]
    np.testing.assert_allclose(lr_gd(signed, signed @ theta, 2.0), -2 * np.array(slope), rtol=1e-7)
    hessian = signed.T * (1 / (2 + 2 * np.cosh(signed @ theta))) @ signed / 20
    assert np.linalg.eigvalsh(hessian)[-1] <= Data("", signed, theta).smoothness


def test_huge_steps_are_the_perceptron():
    assert distance_to_perceptron(random_separable(100, 10, 0)) <= 1e-12
    assert distance_to_perceptron(random_separable(100, 10, 0), step=10.0) > 1e-3


def test_one_huge_step_on_two_points():
    data = two_points()
    first = lr_gd(data.signed, np.zeros(2), 1e6)
    np.testing.assert_allclose(first / 1e6, [0.5, 0.75])
    run = solve(data, "lr_gd", 1e6)
    assert run.iterations == 2
    assert run.losses[1] > 1e5  # and grows with the step
    assert solve(data, "lr_gd", 1e7).losses[1] == pytest.approx(10 * run.losses[1], rel=1e-5)


def test_what_does_not_end_is_not_called_solved():
    run = solve(worst_case(1000), "lr_gd", 1, most=50)
    assert (run.iterations, run.solved, len(run.losses)) == (50, False, 51)


def test_the_lab_and_its_figure():
    result = wb.labs.perceptron(rows=[10, 1000], plain_steps=[100, 1e4], seeds=2)
    assert set(result.tables["expectations"]["held"]) == {"yes"}
    assert result.metric("iterations_lr_gd_100").value == 308
    assert {"value", "low", "high", "n", "seeds"} <= set(result.table)
    before = {key: table.copy() for key, table in result.tables.items()}
    fig = figure(result)
    for key, table in result.tables.items():
        pd.testing.assert_frame_equal(table, before[key])
    dashed = [t for t in fig.data if t.line.dash == "dash"]
    assert {t.name for t in dashed} == {"batch perceptron of the kind, accuracy"}
    assert fig.layout.yaxis2.type == "log"
    assert "308 at step 100" in alt(result)
    figure(wb.labs.perceptron(rows=[10], seeds=1))


def test_settings_that_do_not_fit():
    with pytest.raises(wb.UserError, match="at least 2 rows"):
        wb.labs.perceptron(rows=[1])
    with pytest.raises(wb.UserError, match="more than 0"):
        wb.labs.perceptron(steps=[0])
