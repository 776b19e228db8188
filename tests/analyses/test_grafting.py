"""Grafting on a pair whose difference is one planted neuron: its bias switches it on, so one weight carries the loss."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from workbench.analyses import grafting
from workbench.analyses.grafting import GRID, RANDOM_AT, evidence, first_of, slope
from workbench.errors import UserError
from workbench.measures import correct_answers
from workbench.models.build import build_model
from workbench.models.checkpoints import save_model
from workbench.models.forward import nll
from workbench.models.spec import ModelSpec
from workbench.replicates import combine_results

pytestmark = pytest.mark.slow

WIDTH = 32
CHANGED = 2 * WIDTH + 1


@pytest.fixture(scope="module")
def covered(make_pair):
    return make_pair()


@pytest.fixture(scope="module")
def result(covered):
    return grafting(covered, n=200, score_examples=128)


def values(result, **at):
    table = result.table
    for name, value in at.items():
        table = table[table[name] == value]
    return table.sort_values("share_of_weights")


def test_both_directions_both_rankings_both_abilities_and_a_control(result):
    ranked = result.table[result.table["draw"] == 0]
    cells = ranked.groupby(["direction", "ranking", "capability"])["share_of_weights"].apply(lambda s: tuple(sorted(s)))
    assert len(cells) == 2 * 2 * 2
    assert cells.map(lambda shares: shares == GRID).all()
    random = result.table[result.table["draw"] > 0]
    assert set(random["ranking"]) == {"random"}
    assert set(random["share_of_weights"]) == set(RANDOM_AT)
    assert random.groupby(["direction", "capability", "share_of_weights"])["draw"].nunique().eq(10).all()


def test_the_ends_are_the_two_models(result, covered):
    test = {"look_a": (covered.examples("look_a", n=200)), "look_b": covered.examples("look_b", share=1.0, n=200)}
    for ranking in ("first_order", "magnitude"):
        for capability, examples in test.items():
            base, tuned = (correct_answers(m, examples).mean() for m in (covered.base, covered.tuned))
            revert = values(result, direction="revert", ranking=ranking, capability=capability)["value"]
            graft = values(result, direction="graft", ranking=ranking, capability=capability)["value"]
            assert (revert.iloc[0], revert.iloc[-1]) == (tuned, base)
            assert (graft.iloc[0], graft.iloc[-1]) == (base, tuned)


def test_one_weight_of_the_planted_neuron_brings_all_back(result):
    total = sum(p.numel() for p in build_model(ModelSpec(blocks=1, heads=2, width=WIDTH), 9, 15, 0).parameters())
    assert result.metric("changed").value == pytest.approx(CHANGED / total)
    assert result.metric("tuned_pt").value < 0.4
    assert result.metric("reverted_pt").value > 0.97
    assert result.metric("recovered").value == pytest.approx(1, abs=0.03)
    assert result.metric("random_reverted_pt").value < 0.6
    gain = result.metric("reverted_pt").value - result.metric("random_reverted_pt").value
    assert result.metric("gain").value == pytest.approx(gain)
    assert all(len(m.draws) == 400 for m in result.headline)


def test_one_weight_is_enough_to_graft_what_was_gained_since_fine_tuning_started(make_pair, covered):
    """The pair turned around, and held against another base: switching the inhibitor off is what fine-tuning did."""
    paths = {"base_path": covered.never_path, "start_path": covered.tuned_path, "tuned_path": covered.base_path}
    result = grafting(make_pair(**paths), n=64, score_examples=64)
    assert result.metric("changed").value < 0.01
    assert result.metric("start_ft_correlated").value < 0.6
    assert result.metric("grafted_ft_correlated").value > 0.97
    assert result.metric("reproduced").value == pytest.approx(1, abs=0.05)
    assert result.metric("random_grafted_ft").value < 0.8


def test_evidence_says_where_it_sits_and_takes_no_side(result):
    (line,) = result.evidence
    assert (line.analysis, line.direction, line.capability) == ("grafting", "neutral", "look_a")
    assert "sits in few weights" in line.text
    assert "hands weights from before fine-tuning back" in result.limits[0]


def test_first_order_is_the_change_times_the_slope(covered):
    model, examples = copy.deepcopy(covered.tuned).double(), covered.examples("look_a", n=50)
    nll(model, examples).mean().backward()
    expected = torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    assert torch.allclose(slope(model, examples, batch_size=16), expected.double(), rtol=1e-9, atol=1e-14)
    assert all(p.grad is None for p in model.parameters())


def test_slopes_and_accuracies_are_taken_on_different_draws(make_pair, task):
    """Of O_PT where the shortcut fails, of O_FT where it was trained."""
    task.drawn.clear()
    grafting(make_pair(), n=16, score_examples=16, control_examples=16)
    assert task.drawn == {
        (capability, split, share) for capability, share in (("look_a", 0.0), ("look_b", 1.0)) for split in ("score", "test")
    }


def test_shares_are_of_the_order_and_at_least_one_weight():
    order = torch.tensor([7, 2, 5, 0])
    assert first_of(order, 0.0, 9).sum() == 0
    assert first_of(order, 1e-4, 9).nonzero().flatten().tolist() == [7]
    assert first_of(order, 0.5, 9).nonzero().flatten().tolist() == [2, 7]
    assert first_of(order, 1.0, 9).nonzero().flatten().tolist() == [0, 2, 5, 7]


NUMBERS = {
    "start_pt": 1.0,
    "tuned_pt": 0.2,
    "reverted_pt": 0.6,
    "random_reverted_pt": 0.2,
    "gain": (0.4, 0.3, 0.5),
    "recovered": (0.5, 0.4, 0.6),
}


@pytest.mark.parametrize(
    ("changes", "direction", "words"),
    [
        ({}, "neutral", "50% of the loss sits in few weights, which tells where it is"),
        ({"gain": (0.4, -0.1, 0.5)}, "neutral", "does not sit in so few"),
        ({"recovered": (0.3, 0.2, 0.4)}, "neutral", "does not sit in so few"),
        ({"tuned_pt": 0.95}, "uninformative", "no loss to place"),
        ({"recovered": (float("nan"),) * 3}, "uninformative", "in some seed: there is no loss to place"),
    ],
)
def test_evidence_directions(made_up, changes, direction, words):
    (line,) = evidence(made_up("grafting", **{**NUMBERS, **changes}))
    assert line.direction == direction
    assert words in line.text


def test_models_of_another_shape_are_refused(make_pair, tmp_path):
    save_model(build_model(ModelSpec(blocks=1, heads=2, width=16), 9, 15, 0), tmp_path)
    with pytest.raises(UserError, match="the models of pair 'planted' differ in shape"):
        grafting(make_pair(tuned_path=tmp_path), n=32)


def test_seeds_pool_and_evidence_follows(result):
    pooled = combine_results([result, replace(result, provenance={**result.provenance, "seed": 4})])
    assert evidence(pooled)[0].direction == "neutral"
    assert np.isfinite(pooled.metric("recovered").value)
