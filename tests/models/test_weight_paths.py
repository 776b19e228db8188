"""Paths between models: exact at their ends, straight where they should be, and measured like any model."""

import copy

import numpy as np
import pytest
import torch

from workbench.models.fingerprint import check_unchanged, weights_sha256
from workbench.models.forward import accuracy, evaluate, nll
from workbench.models.weight_paths import (
    barrier,
    between,
    bezier,
    distance,
    middle_slopes,
    outcomes,
    put,
    random_step,
    train_middle,
    weights_of,
)


@pytest.fixture(scope="module")
def ends(make_model):
    return make_model("gpt2", seed=0), make_model("gpt2", seed=1)


def flat(weights):
    return torch.cat([w.double().flatten() for w in weights])


def test_the_ends_of_every_path_are_the_models_bit_for_bit(ends):
    a, b = map(weights_of, ends)
    negative = copy.deepcopy(ends[0])
    with torch.no_grad():
        next(iter(negative.parameters())).view(-1)[:8] = -0.0  # which 1 * -0.0 + 0 * x would make positive
    work, minus = copy.deepcopy(ends[0]), weights_of(negative)
    for path in (between, lambda x, y, t: bezier(x, a, y, t)):
        for t, model in ((0, negative), (1.0, ends[1])):
            put(work, path(minus, b, t))
            assert weights_sha256(work) == weights_sha256(model)


def test_a_straight_line_is_linear_and_goes_on_beyond_its_ends(ends):
    a, b = map(weights_of, ends)
    for alpha in (-1.0, 0.3, 0.5, 2.0):
        assert torch.allclose(flat(between(a, b, alpha)), flat(a) + alpha * (flat(b) - flat(a)), atol=1e-6)


def test_a_curve_with_its_middle_on_the_line_is_the_line(ends):
    a, b = map(weights_of, ends)
    for t in (0.1, 0.5, 0.8):
        assert torch.allclose(flat(bezier(a, between(a, b, 0.5), b, t)), flat(between(a, b, t)), atol=1e-6)
    assert torch.allclose(flat(bezier(a, b, a, 0.5)), (flat(a) + flat(b)) / 2, atol=1e-6)


def test_distance_and_random_steps(ends):
    a, b = map(weights_of, ends)
    assert distance(a, b) == pytest.approx(float((flat(a) - flat(b)).norm()))
    assert distance(a, a) == 0
    same = (a[0], *b[1:])
    step = random_step(a, same, torch.Generator().manual_seed(0))
    assert torch.equal(step[0], a[0])
    for x, y, z in zip(a, same, step, strict=True):
        assert float((z - x).norm()) == pytest.approx(float((y - x).norm()), rel=1e-4)
    assert abs(float(torch.nn.functional.cosine_similarity(flat(step) - flat(a), flat(same) - flat(a), dim=0))) < 0.1


@pytest.mark.parametrize("options", [{}, {"k": 2}, {"padded": True}])
def test_one_pass_gives_what_two_measures_do(ends, random_examples, options):
    examples = random_examples(n=9, **options)
    found = outcomes(ends[0], examples, batch_size=4)
    np.testing.assert_allclose(found.loss, evaluate(ends[0], examples, nll).numpy(), rtol=1e-5)
    np.testing.assert_array_equal(found.right, evaluate(ends[0], examples, accuracy).numpy())


def test_the_barrier_of_quadratic_losses_in_closed_form():
    """-||x||^2 rises by ||a - b||^2 / 4 in the middle; ||x||^2, like every convex loss, nowhere."""
    a, b = np.array([1.0, 2.0]), np.array([-3.0, 0.5])
    at = np.linspace(0, 1, 11)
    squares = np.array([np.sum(((1 - t) * a + t * b) ** 2) for t in at])
    high, where = barrier(-squares, at)
    assert float(high) == pytest.approx(np.sum((a - b) ** 2) / 4)
    assert float(where) == 0.5
    assert float(barrier(squares, at)[0]) == 0
    slanted = -squares + 7 * at  # what is linear does not count
    assert float(barrier(slanted, at)[0]) == pytest.approx(float(high))


def test_barriers_of_many_draws_take_the_maximum_in_each():
    losses = np.array([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 3.0, 2.0]])
    high, where = barrier(losses, np.array([0, 1 / 3, 2 / 3, 1]))
    np.testing.assert_allclose(high, [1.0, 3 - 4 / 3])
    np.testing.assert_allclose(where, [1 / 3, 2 / 3])


def mean_loss(model, a, middle, b, examples):
    """Over the curve, on the texts that it is trained on."""
    work, total = copy.deepcopy(model), []
    for t in np.linspace(0, 1, 11):
        put(work, bezier(a, middle, b, float(t)))
        total.append(outcomes(work, examples).loss.mean())
    return float(np.mean(total))


def test_a_trained_curve_has_a_lower_training_loss_than_the_line(ends, random_examples):
    examples = random_examples(n=24)
    a, b = map(weights_of, ends)
    options = {"lr": 3e-3, "batch_size": 24, "seed": 0}
    with check_unchanged(*ends):
        middle = train_middle(ends[0], a, b, examples, steps=40, **options)
    line = mean_loss(ends[0], a, between(a, b, 0.5), b, examples)
    assert mean_loss(ends[0], a, middle, b, examples) < line - 0.2
    once, again = (train_middle(ends[0], a, b, examples, steps=3, **options) for _ in range(2))
    assert torch.equal(flat(once), flat(again))
    untrained = train_middle(ends[0], a, b, examples, steps=0, **options)
    assert torch.equal(flat(untrained), flat(between(a, b, 0.5)))


def test_the_slope_of_the_middle_is_that_of_the_loss_on_the_curve(ends, random_examples, monkeypatch):
    """By central differences in double precision; batches that are split for their memory sum to the same."""
    examples, t = random_examples(n=8), 0.3
    model = copy.deepcopy(ends[0]).double()
    a, b = weights_of(copy.deepcopy(model)), tuple(w.double() for w in weights_of(ends[1]))
    middle = between(a, b, 0.5)
    found = middle_slopes(model, a, middle, b, t, examples)
    monkeypatch.setattr("workbench.models.weight_paths.AT_ONCE", 3 * examples.tokens.shape[1])
    for x, y in zip(found, middle_slopes(model, a, middle, b, t, examples), strict=True):
        torch.testing.assert_close(x, y)
    rng = np.random.default_rng(0)
    for index in range(2, len(middle)):
        entry = int(rng.integers(middle[index].numel()))
        losses = []
        for step in (1e-5, -1e-5):
            shifted = [w.clone() for w in middle]
            shifted[index].view(-1)[entry] += step
            put(model, bezier(a, tuple(shifted), b, t))
            losses.append(float(outcomes(model, examples).loss.mean()))
        assert float(found[index].view(-1)[entry]) == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-4, abs=1e-8)
