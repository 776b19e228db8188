"""Probes: the optimum against scikit-learn, balanced accuracy and codelength against naive twins in float64."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from workbench.probes import changed, fit_probes, is_uneven, online_code, scored, standardised
from workbench.statistics import wilson


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


def test_standardised_by_the_training_examples_alone():
    train, test = noise(2, 50, 3) * 4 + 1, noise(2, 20, 3, seed=1)
    train[:, :, 2] = 7.0  # a feature that never changes
    x, y = standardised(train, test)
    for i in range(2):
        mean, deviation = train[i].numpy().mean(0), train[i].numpy().std(0)
        deviation[2] = 1
        assert x[i].numpy() == pytest.approx((train[i].numpy() - mean) / deviation)
        assert y[i].numpy() == pytest.approx((test[i].numpy() - mean) / deviation)


class TestScores:
    def guesses(self, p=4, n=300, classes=(0.7, 0.2, 0.1)):
        generator = np.random.default_rng(0)
        truth = generator.choice(len(classes), n, p=classes)
        guess = np.where(generator.random((p, n)) < 0.6, truth, generator.integers(len(classes), size=(p, n)))
        return truth, guess

    def test_values_are_those_of_scikit_learn(self):
        from sklearn.metrics import accuracy_score, balanced_accuracy_score

        truth, guess = self.guesses()
        plain, balanced = (scored(guess == truth, truth, b)[0] for b in (False, True))
        assert plain == pytest.approx([accuracy_score(truth, row) for row in guess])
        assert balanced == pytest.approx([balanced_accuracy_score(truth, row) for row in guess])
        assert (np.abs(plain - balanced) > 0.005).any()

    def test_the_majority_guess_is_worth_one_class(self):
        truth = np.array([5] * 90 + [1] * 10)
        assert scored(truth == 5, truth, balanced=True)[0] == 0.5
        assert scored(truth == 5, truth)[0] == 0.9

    def test_one_class_has_wilsons_interval(self):
        right = np.arange(40) < 30
        value, low, high = scored(right, np.zeros(40, dtype=np.int64), balanced=True)
        assert (value, low, high) == pytest.approx((0.75, *map(float, wilson(30, 40))))

    @pytest.mark.parametrize("balanced", [False, True])
    def test_intervals_cover(self, balanced):
        generator = np.random.default_rng(1)
        truth = np.repeat([0, 1, 2], [240, 40, 20])
        rates = np.array([0.9, 0.6, 0.3]) if balanced else np.array([0.8, 0.8, 0.8])
        right = generator.random((2000, 300)) < rates[truth]
        _, low, high = scored(right, truth, balanced)
        assert ((low <= rates.mean()) & (rates.mean() <= high)).mean() == pytest.approx(0.95, abs=0.025)

    @pytest.mark.parametrize("balanced", [False, True])
    def test_changes_are_paired_and_cover(self, balanced):
        generator = np.random.default_rng(2)
        truth = np.repeat([0, 1, 2], [240, 60, 50])
        before = generator.random((2000, 350)) < 0.6
        fixed, broken = generator.random((2, 2000, 350)) < np.array([0.2, 0.05])[:, None, None]
        after = np.where(before, ~broken, fixed)
        value, low, high = changed(before, after, truth, balanced)
        expected = scored(after, truth, balanced)[0] - scored(before, truth, balanced)[0]
        assert value == pytest.approx(expected)
        true = 0.4 * 0.2 - 0.6 * 0.05
        assert ((low <= true) & (true <= high)).mean() == pytest.approx(0.955, abs=0.025)
        unpaired = scored(before, truth, balanced)
        assert (high - low).mean() < 1.3 * (unpaired[2] - unpaired[1]).mean()

    def test_agreement_on_all_examples_is_not_certainty(self):
        right = np.ones(100, dtype=bool)
        value, low, high = changed(right, right, np.zeros(100, dtype=np.int64))
        assert value == 0
        assert low == -high < -0.01

    @pytest.mark.parametrize(
        ("counts", "uneven"), [((50, 50), False), ((99, 1), False), ((67, 20, 13), True), ((66, 20, 14), False)]
    )
    def test_the_rule_for_uneven_classes(self, counts, uneven):
        # More than twice 1 / classes: two classes never are, three are from two thirds on.
        assert is_uneven(np.repeat(np.arange(len(counts)), counts)) is uneven


class TestOnlineCode:
    SIZES = (20, 45, 100)

    def material(self, n=150, d=3, p=2):
        x = noise(p, n, d)
        labels = (x @ noise(p, d, 4, seed=1) + 0.5 * noise(p, n, 4, seed=2)).argmax(-1).numpy()
        return x, labels, [np.arange(4)] * p

    def test_naive_twin(self):
        """One block, one label at a time: what a probe of all blocks before says of it."""
        from scipy.optimize import minimize
        from scipy.special import logsumexp

        x, labels, classes = self.material()
        found = online_code(x, labels, classes, self.SIZES, precision=1.5, iterations=400)
        assert found.bits.shape == (2, 150)
        assert (found.bits[:, :20] == 2.0).all()  # log2 of four classes
        for probe in range(2):
            features, target = x[probe].numpy(), labels[probe]
            for size, end in ((20, 45), (45, 100), (100, 150)):

                def loss(flat, size=size, features=features, target=target):
                    weights, bias = flat[:12].reshape(3, 4), flat[12:]
                    scores = features[:size] @ weights + bias
                    likelihood = (scores[np.arange(size), target[:size]] - logsumexp(scores, axis=1)).sum()
                    return -likelihood + 1.5 / 2 * (flat**2).sum()

                best = minimize(loss, np.zeros(16), method="BFGS", options={"gtol": 1e-7}).x
                scores = features[size:end] @ best[:12].reshape(3, 4) + best[12:]
                naive = (logsumexp(scores, axis=1) - scores[np.arange(end - size), target[size:end]]) / np.log(2)
                assert found.bits[probe, size:end] == pytest.approx(naive, abs=0.02)

    def test_what_comes_later_changes_nothing_before(self):
        x, labels, classes = self.material()
        whole = online_code(x, labels, classes, self.SIZES, 1.0, 100)
        other = labels.copy()
        other[:, 100:] = (other[:, 100:] + 1) % 4
        changed_bits = online_code(x, other, classes, self.SIZES, 1.0, 100).bits
        assert changed_bits[:, :100] == pytest.approx(whole.bits[:, :100])
        assert changed_bits[:, 100:].mean() > whole.bits[:, 100:].mean() + 1

    def test_labels_that_say_nothing_cost_the_uniform_code_at_least(self):
        generator = np.random.default_rng(0)
        x, classes = noise(1, 2000, 5), [np.arange(4)]
        bits = online_code(x, generator.integers(4, size=(1, 2000)), classes, (50, 200, 800), 2.0, 100).bits
        assert 2.0 <= bits.mean() < 2.1

    def test_a_one_hot_label_costs_little_and_less_the_longer_it_goes_on(self):
        label = np.random.default_rng(0).integers(4, size=(1, 1000))
        x, _ = standardised(torch.eye(4)[torch.from_numpy(label)], torch.eye(4)[None])
        bits = online_code(x, label, [np.arange(4)], (50, 100, 200, 400), 2.0, 100).bits[0]
        blocks = [bits[a:b].mean() for a, b in ((0, 50), (50, 100), (100, 200), (200, 400), (400, 1000))]
        assert blocks[0] == 2.0
        assert all(a > b for a, b in pairwise(blocks))
        assert blocks[-1] < 0.05

    def test_a_label_that_was_never_seen_has_a_finite_cost(self):
        x, labels = noise(1, 40, 3), np.array([[0, 1] * 15 + [7] * 10])
        bits = online_code(x, labels, [np.array([0, 1, 7])], (30,), 2.0, 100).bits[0]
        assert np.isfinite(bits).all()
        assert bits[30:].mean() > np.log2(3)

    def test_bad_input(self):
        x, labels, classes = self.material()
        for sizes in ((0, 10), (20, 20), (20, 151)):
            with pytest.raises(ValueError, match="must increase from at least 1 to at most 150"):
                online_code(x, labels, classes, sizes, 1.0, 10)
        with pytest.raises(ValueError, match="none of the probe's classes"):
            online_code(x, labels, [np.arange(3)] * 2, (50,), 1.0, 10)
