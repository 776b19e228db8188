"""Small problems: what is drawn is what is asked for, training stops where it should, and directions are those of a naive loop."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from workbench.curvature.small_problems import (
    COUNTING_ROWS,
    SOURCES,
    batches,
    class_gradients,
    class_logits,
    problem,
    train_to,
)
from workbench.errors import UserError


@pytest.mark.parametrize("source", SOURCES)
def test_classes_are_even_and_seeds_decide(source):
    given = problem(source, 3, 60, seed=0)
    counts = np.bincount(given.targets.numpy(), minlength=3)
    assert len(given) <= 60
    assert counts.min() >= 12
    net, again = given.net(8, 5), given.net(8, 5)
    assert net(given.inputs).shape == (len(given), 3)
    assert net(given.inputs).dtype == torch.float64
    assert torch.equal(net(given.inputs), again(problem(source, 3, 60, seed=0).inputs))
    assert not torch.equal(net(given.inputs), given.net(8, 6)(given.inputs))


def test_blobs_lie_around_orthogonal_centres_and_those_of_the_control_do_not():
    given, control = (problem("blobs", 4, 4000, 0, control=c) for c in (False, True))
    for some, apart in ((given, True), (control, False)):
        centres = torch.stack([some.inputs[some.targets == c].mean(0) for c in range(4)])
        gram = centres @ centres.T
        size = gram.diagonal().mean()
        assert (size > 0.4) == apart
        if apart:
            assert (gram - torch.diag(gram.diagonal())).abs().max() < 0.1 * size
    test = problem("blobs", 4, 400, 0, split="test")
    assert not torch.equal(test.inputs, given.inputs[:400])
    far = [(test.inputs[test.targets == c].mean(0) - given.inputs[given.targets == c].mean(0)).norm() for c in range(4)]
    assert max(far) < 0.5  # the same clusters


def test_digits_are_images_and_splits_do_not_share_any():
    train, test = (problem("digits", 10, 400, 0, split) for split in ("train", "test"))
    rows = {tuple(row) for row in train.inputs.tolist()}
    assert len(rows) == 400
    assert not rows & {tuple(row) for row in test.inputs.tolist()}
    shuffled = problem("digits", 10, 400, 0, control=True)
    assert torch.equal(shuffled.inputs, train.inputs)
    assert torch.equal(shuffled.targets.bincount(), train.targets.bincount())
    assert (shuffled.targets == train.targets).double().mean() < 0.3


def test_counting_asks_for_successive_counts():
    given = problem("counting", 3, 1000, 0)
    assert len(given) == COUNTING_ROWS // 3 * 3
    counts = given.inputs.labels["count_a"]
    assert set((counts - given.targets).tolist()) == {int(counts.min())}
    logits = given.net(8, 0)
    whole = logits.model(input_ids=given.inputs.tokens).logits  # pyright: ignore
    at = whole[torch.arange(len(given)), given.inputs.answer_position][:, logits.answers]  # pyright: ignore
    assert torch.allclose(logits(given.inputs), at)
    assert torch.equal(logits.answers[given.targets], given.inputs.answer[:, 0])  # pyright: ignore


def test_more_classes_than_there_are():
    with pytest.raises(UserError, match="digits with 11 classes cannot be drawn; give 2 to 10"):
        problem("digits", 11, 100, 0)


def test_training_stops_at_the_loss_or_at_the_last_step():
    given = problem("blobs", 3, 90, 0)
    net = given.net(8, 0)
    done = train_to(net, given, 0.2, 500)
    assert 0.1 < done.loss <= 0.2
    assert done.loss == pytest.approx(F.cross_entropy(net(given.inputs), given.targets).item())
    assert done.loss == pytest.approx(given.objective(net).loss())
    assert 0 < done.steps < 500
    assert train_to(given.net(8, 0), given, 0.0, 3).steps == 3


def test_batches_pass_over_all_rows_in_new_orders():
    two = list(islice(batches(10, 5, seed=1), 4))
    assert sorted(torch.cat(two[:2]).tolist()) == sorted(torch.cat(two[2:]).tolist()) == list(range(10))
    assert torch.cat(two[:2]).tolist() != torch.cat(two[2:]).tolist()
    assert all(len(batch) == 4 for batch in islice(batches(10, 4, seed=1), 9))


def test_directions_of_classes_are_gradients():
    given = problem("blobs", 3, 30, 0)
    net = given.net(4, 0)
    gradients, logits = class_gradients(given, net), class_logits(given, net)
    for c in range(3):
        for columns, value in ((gradients, "loss"), (logits, "logit")):
            net.zero_grad()
            outputs = net(given.inputs[given.targets == c])
            mean = (
                F.cross_entropy(outputs, torch.full((len(outputs),), c))
                if value == "loss"
                else (outputs[:, c] - outputs.mean(1)).mean()
            )
            mean.backward()
            naive = torch.cat([p.grad.reshape(-1) for p in net.parameters()])  # pyright: ignore
            np.testing.assert_allclose(columns[:, c], naive.numpy(), atol=1e-14)
