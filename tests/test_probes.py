"""Probes: the optimum against scikit-learn, balanced accuracy and codelength against naive twins in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from workbench.probes import fit_probes


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_all_at_once_equals_scikit_learn_one_by_one():
    from sklearn.linear_model import LogisticRegression

    n, d, penalty = 400, 6, 0.01
    x = noise(3, n, d)
    x[1] = x[1] @ noise(d, d, seed=1)  # correlated features
    scores = x @ noise(3, d, 4, seed=2) + noise(3, n, 4, seed=3)
    labels = scores.argmax(-1).numpy()
    labels[2] = np.minimum(labels[2], 1) * 5 - 1  # a probe with two classes, -1 and 4
    found = fit_probes(x, labels, penalty, 200, tolerance=1e-8)
    test = noise(3, 200, d, seed=4)
    predicted = found.predict(test)
    for i in range(3):
        twin = LogisticRegression(C=1 / (penalty * n), tol=1e-10, max_iter=5000).fit(x[i].numpy(), labels[i])
        probability = twin.predict_proba(x[i].numpy())
        ours = x[i] @ found.weights[i] + found.bias[i]
        classes = len(np.unique(labels[i]))
        if classes > 2:  # for two classes scikit-learn has one vector, which is another penalty
            assert found.weights[i].T.numpy() == pytest.approx(twin.coef_, abs=2e-4)
            assert torch.softmax(ours, -1).numpy() == pytest.approx(probability, abs=1e-4)
        assert np.mean(predicted[i] == twin.predict(test[i].numpy())) > 0.985
        assert set(predicted[i]) <= set(labels[i])
    assert found.gradient.max() < 1e-4


def test_two_classes_have_the_symmetric_optimum():
    from sklearn.linear_model import LogisticRegression

    x = noise(1, 300, 4)
    labels = (x[..., 0] + noise(1, 300, seed=1) > 0).long().numpy()
    found = fit_probes(x, labels, 0.02, 200, tolerance=1e-8)
    # Weights +w/2 and -w/2 cost |w|^2 / 4 in place of |w|^2 / 2: half the penalty on the one vector.
    twin = LogisticRegression(C=1 / (0.01 * 300), tol=1e-10, max_iter=5000).fit(x[0].numpy(), labels[0])
    assert (found.weights[0, :, 1] - found.weights[0, :, 0]).numpy() == pytest.approx(twin.coef_[0], abs=2e-4)


def test_one_hot_residuals_give_all_and_shuffled_labels_the_majority():
    generator = np.random.default_rng(0)
    label = generator.choice(4, size=3000, p=[0.4, 0.2, 0.2, 0.2])
    x = torch.cat([torch.eye(4)[label], noise(3000, 8).float()], dim=1)
    x = (x - x.mean(0)) / x.std(0)
    train, test = x[None, :2000].expand(2, -1, -1), x[None, 2000:].expand(2, -1, -1)
    labels = np.stack([label[:2000], generator.permutation(label[:2000])])
    right = (fit_probes(train, labels, 1e-3, 100).predict(test) == label[2000:]).mean(1)
    assert right[0] == 1.0
    assert right[1] == pytest.approx((label[2000:] == 0).mean(), abs=0.05)


def test_constant_features_give_the_majority():
    labels = np.array([[3] * 30 + [8] * 20])
    found = fit_probes(torch.zeros(1, 50, 5), labels, 1e-3, 50)
    assert (found.predict(torch.zeros(1, 7, 5)) == 3).all()
    assert np.isfinite(found.loss).all()
    assert torch.softmax(found.bias[0], 0).tolist() == pytest.approx([0.6, 0.4], abs=1e-3)


def test_loss_and_gradient_are_those_of_the_stated_objective():
    x, labels = noise(1, 100, 3), np.arange(100)[None] % 3
    found = fit_probes(x, labels, 0.1, 3)  # cut short: the gradient is not small
    weights, bias = found.weights[0].clone().requires_grad_(), found.bias[0].clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(x[0] @ weights + bias, torch.from_numpy(labels[0]))
    loss = loss + 0.05 * weights.square().sum()
    loss.backward()
    assert found.loss[0] == pytest.approx(loss.item())
    assert found.gradient[0] == pytest.approx(max(weights.grad.abs().max(), bias.grad.abs().max()).item())
