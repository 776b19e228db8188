"""Probes of many labels against scikit-learn, one label at a time."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.areas import area_value
from workbench.label_probes import fit_labels


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(300, 6)) @ generator.normal(size=(6, 6))  # correlated features
    noise = generator.normal(size=(300, 3))
    return x, x @ generator.normal(size=(6, 3)) + 2 * noise > [0, 2, 4]


@pytest.mark.parametrize("part", [False, True])
def test_all_at_once_equals_scikit_learn_one_by_one(data, part):
    from sklearn.linear_model import LogisticRegression

    x, labels = data
    used = np.random.default_rng(1).random(labels.shape) < 0.7 if part else np.ones(labels.shape, dtype=bool)
    found = fit_labels(x, labels, 0.01, 500, used if part else None, tolerance=1e-8)
    assert found.gradient.max() < 1e-5
    for i in range(3):
        rows = used[:, i]
        twin = LogisticRegression(C=1 / (0.01 * rows.sum()), tol=1e-10, max_iter=5000).fit(x[rows], labels[rows, i])
        assert found.weights[:, i] == pytest.approx(twin.coef_[0], abs=1e-4)
        assert found.scores(x)[:, i] == pytest.approx(twin.decision_function(x), abs=1e-3)
        z = twin.decision_function(x[rows])
        nats = np.logaddexp(0, z) - labels[rows, i] * z
        assert found.loss[i] == pytest.approx(nats.mean() + 0.005 * np.square(twin.coef_).sum(), abs=1e-6)


def test_a_search_that_was_cut_short_says_so(data):
    assert fit_labels(*data, 0.01, 1).gradient.max() > 1e-2


def test_labels_that_can_be_separated_have_an_optimum_all_the_same():
    x = np.random.default_rng(0).normal(size=(100, 3))
    found = fit_labels(x, x[:, :1] > 0, 1e-4, 500)
    assert found.gradient.max() < 1e-3
    assert np.abs(found.weights).max() < 100
    assert area_value(found.scores(x)[:, 0], x[:, 0] > 0) > 0.999


def test_one_label_alone_is_no_problem_to_fit(data):
    x, labels = data
    with pytest.raises(ValueError, match="probe 1 sees one label alone"):
        fit_labels(x, labels & [True, False, True], 0.01, 10)
