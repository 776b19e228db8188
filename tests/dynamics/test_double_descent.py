"""Double descent with and without an optimizer that gets there [2312.03951]: filters against actual descent, peaks, and the lab."""

from __future__ import annotations

import math

import numpy as np
import pytest

import workbench as wb
from workbench.dynamics.double_descent import (
    DoubleDescentSettings,
    adam,
    descend,
    draw,
    filtered,
    gd_filter,
    heavy_ball_filter,
    rescaled,
)
from workbench.figures import alt, figure

SETTINGS = DoubleDescentSettings(rows=30, inputs=5, test=20)
SIZES = pytest.mark.parametrize("p", [10, 30, 80])


@SIZES
@pytest.mark.parametrize("share", [1.0, 0.3, 1.7])
@pytest.mark.parametrize("steps", [1, 4, 700])
def test_the_filter_is_gradient_descent(p, share, steps):
    data = draw(p, SETTINGS, 0)
    eta = share / np.linalg.norm(data.features, 2) ** 2
    np.testing.assert_allclose(filtered(data, lambda s: gd_filter(s, eta, steps)), descend(data, eta, steps), atol=1e-10)


@SIZES
def test_heavy_ball_has_a_filter_too(p):
    data = draw(p, SETTINGS, 0)
    eta = 1 / np.linalg.norm(data.features, 2) ** 2
    second, velocity = np.zeros(p), np.zeros(p)
    for _ in range(200):
        velocity = 0.9 * velocity + data.features.T @ (data.features @ second - data.labels)
        second = second - eta * velocity
    np.testing.assert_allclose(filtered(data, lambda s: heavy_ball_filter(s, eta, 200)), second, atol=1e-10)


def test_without_end_descent_is_the_minimum_norm_solution():
    data = draw(80, SETTINGS, 0)
    least = np.linalg.pinv(data.features) @ data.labels
    np.testing.assert_allclose(filtered(data, np.ones_like), least, atol=1e-10)
    eta = 1 / np.linalg.norm(data.features, 2) ** 2
    np.testing.assert_allclose(filtered(data, lambda s: gd_filter(s, eta, 1e9)), least, atol=1e-8)
    assert data.errors(least)[0] < 1e-20


def test_small_filters_keep_their_digits():
    s = np.array([1.0, 1e-9])
    assert gd_filter(s, 1.0, 3.0).tolist() == pytest.approx([1, 3e-18], rel=1e-12, abs=0)


def test_adam_is_torchs():
    import torch

    data = draw(10, SETTINGS, 0)
    second = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([second], lr=1e-2)
    features, labels = torch.from_numpy(data.features), torch.from_numpy(data.labels)
    for _ in range(50):
        optimizer.zero_grad()
        (features @ second - labels).square().mean().backward()
        optimizer.step()
    np.testing.assert_allclose(adam(data, 50), second.detach().numpy(), atol=1e-12)


def test_rescaled_features_have_the_same_functions_and_a_worse_condition():
    data = draw(20, SETTINGS, 0)
    worse = rescaled(data)
    plain, other = (x.features @ filtered(x, np.ones_like) for x in (data, worse))
    np.testing.assert_allclose(plain, other, atol=1e-9)
    assert np.linalg.cond(worse.features) > 5 * np.linalg.cond(data.features)


def test_data_of_a_seed_are_the_same_at_every_width():
    narrow, wide = draw(10, SETTINGS, 4), draw(20, SETTINGS, 4)
    np.testing.assert_array_equal(narrow.labels, wide.labels)
    np.testing.assert_allclose(narrow.features * math.sqrt(10), wide.features[:, :10] * math.sqrt(20))


@pytest.fixture(scope="module")
def result():
    return wb.labs.double_descent(features=[10, 60, 90, 100, 110, 150, 1000], seeds=3, test=200)


def test_the_peak_is_there_for_who_gets_there(result):
    table = result.table.set_index(["arm", "steps", "features"])["value"].sort_index()
    least = table["min_norm", math.inf]
    assert least.idxmax() == 100
    assert least[100] >= 10 * least[1000]
    short = table["gd", 1000]
    assert short.loc[60:150].max() < least[60]
    assert result.tables["conditions"].set_index("features")["kappa"].idxmax() == 100
    assert result.metric("filter_error").value < 1e-8
    assert result.metric("rescaled_1e+06").value < 0.5


def test_the_figure(result):
    assert set(result.tables["expectations"]["held"]) == {"yes"}
    fig = figure(result)
    names = [t.name for t in fig.data if t.name and t.showlegend is not False]
    assert len(names) == len(set(names))
    assert {"κ", "predicting 0", "minimum norm"} <= set(names)
    assert fig.data[0].line.color == "#8C8C8C"  # controls are drawn first
    assert fig.layout.xaxis.type == fig.layout.yaxis.type == "log"
    assert "peaks at p = 1.00 n" in alt(result)


def test_settings_that_do_not_fit():
    with pytest.raises(wb.UserError, match="increasing numbers of features"):
        wb.labs.double_descent(features=[10, 5, 20])
